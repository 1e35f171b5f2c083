"""Stage "words": what answers queries in words (see model_store/words), from a data set with queries.

In: a data set with `queries.parquet`. Out: `words/`, the folder of a bundle; `rows.safetensors`, the weights of the
rows of the evaluation; and a certificate. Documents, tables and aspects come from the train period; everything is
learned and chosen on valid targets, by users with different roles (`training/words/training.py`). The index is a stage
of its own in OUT/index, so an interrupted run continues after it.

With `--bundle`, the words are put into a bundle that was made from the same data set.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_store.bundle import BundleWriter
from model_store.catalogue.items import read_items
from model_store.files import ITEMS, read_manifest
from model_store.manifest import FORMAT_VERSION, WordsSpec
from model_store.words.answer import Words
from model_store.words.evidence import CONTEXT, FEATURES
from model_store.words.files import open_words, save_words
from model_store.words.ranker import Ranker
from model_store.words.selector import SELECTOR_FEATURES, Selector
from training.data.dataset import load_dataset
from training.run.program import run_program
from training.run.stage import begin, digest, finish, is_done, read_certificate
from training.words.aspects import global_memory
from training.words.encoding import ENCODERS
from training.words.examples import ExampleMaker
from training.words.indexing import make_index
from training.words.rows import OWN
from training.words.split import VALID, WordsSplit, sample_query_targets, words_split
from training.words.training import learn
from training.words.words_files import WORDS, write_rows

MAX_TARGETS, CHOOSING_TARGETS = 6000, 500
_VERSION, _INDEX_VERSION = 1, 1


def stage_key(split: WordsSplit, encoder: str, max_targets: int, seed: int) -> str:
    """Changes with everything that changes the words."""
    return digest([_VERSION, split.fingerprint, encoder, max_targets, seed, FEATURES, SELECTOR_FEATURES])


def run(
    split: WordsSplit, out: Path, *, encoder: str = "auto", max_targets: int = MAX_TARGETS, seed: int = 0
) -> dict[str, Any]:
    """Returns the certificate. Does nothing when `out` holds the result of the same inputs."""
    inputs = stage_key(split, encoder, max_targets, seed)
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    targets = sample_query_targets(split.targets(VALID), max_targets, seed)
    words = _indexed(split, out, encoder, seed)
    maker = ExampleMaker(split, words.index, words.aspects, seed)
    learned = learn(list(maker.make(targets, "valid")), split.user_ids, len(words.index), seed)
    save_words(Words(words.index, words.aspects, learned.selectors["grpo"], learned.rankers[OWN]), out / WORDS)
    write_rows(learned, out)
    encoding = {"encoder": encoder, "dimension": words.index.encoder.dimension, "aspects": len(words.aspects)}
    return finish(out, inputs, {**encoding, "items": len(words.index), **learned.facts})


def put_into_bundle(words_dir: Path, bundle: Path) -> None:
    """Replace the bundle, at once, by itself with the words. Raises BundleError."""
    words, manifest = open_words(words_dir / WORDS), read_manifest(bundle)
    spec = WordsSpec(
        dimension=words.index.encoder.dimension,
        num_aspects=len(words.aspects),
        memory_scale=words.ranker.memory_scale,
    )
    with BundleWriter(bundle) as writer:
        writer.add_all_but_words(bundle)
        writer.add_words(words_dir / WORDS)
        writer.finish(manifest.model_copy(update={"format_version": FORMAT_VERSION, "words": spec}))


def _indexed(split: WordsSplit, out: Path, encoder: str, seed: int) -> Words:
    """The index and global memory, with a selector and a ranker that know nothing."""
    place, inputs = out / "index", digest([_INDEX_VERSION, split.fingerprint, encoder, seed])
    if not is_done(place, inputs):
        begin(place)
        choosing = sample_query_targets(split.targets(VALID), CHOOSING_TARGETS, seed)
        index = make_index(split, encoder, out, choosing, seed)
        save_words(Words(index, global_memory(split, index), _no_selector(), _no_ranker()), place)
        finish(place, inputs, {})
    return open_words(place)


def _no_selector() -> Selector:
    return Selector(((np.zeros((1, len(SELECTOR_FEATURES)), np.float32), np.zeros(1, np.float32)),))


def _no_ranker() -> Ranker:
    zeros = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
    return Ranker(zeros, zeros, np.ones(len(FEATURES), np.float32), 0.0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set directory with queries.parquet")
    parser.add_argument("--out", type=Path, required=True, help="directory this stage writes")
    parser.add_argument("--bundle", type=Path, help="bundle of the same data set, which gets the words")
    parser.add_argument("--encoder", default="auto", choices=ENCODERS, help="auto: MiniLM if installed, otherwise LSA")
    parser.add_argument("--max-targets", type=int, default=MAX_TARGETS, help=f"valid targets ({MAX_TARGETS})")
    parser.add_argument("--seed", type=int, default=0)

    def stage(options: argparse.Namespace) -> dict[str, Any]:
        order = [item.item_id for item in read_items(options.bundle / ITEMS)] if options.bundle else None
        split = words_split(load_dataset(options.data), order)
        facts = run(split, options.out, encoder=options.encoder, max_targets=options.max_targets, seed=options.seed)
        if options.bundle:
            put_into_bundle(options.out, options.bundle)
        return facts

    return run_program(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
