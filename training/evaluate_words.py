"""Evaluate recommendation by words: does memory help to answer queries? All rows on the same targets and items.

In: a data set with queries, and OUT of `training.train_words`. Out: OUT/metrics.json and report.md. The rows are listed
in `training/words/rows.py`. Lists are cached by part of the targets, so an interrupted run continues. Targets are drawn
by seed. Nothing is chosen on these targets. Intervals are 95 %, paired by user.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.reasoner.files import REASONER, open_reasoner
from model_store.reasoner.language import LanguageReasoner
from model_store.words.answer import Words, WordsQuery
from model_store.words.files import open_words
from model_store.words.ranker import Ranker
from model_store.words.selector import Selector
from training.data.dataset import load_dataset
from training.run.program import run_program
from training.run.stage import atomic_file, digest, progress, read_certificate
from training.words.examples import Example, ExampleMaker, ranked_rows
from training.words.metrics import CUT, list_metrics
from training.words.report import comparison, slices, write_words_report
from training.words.rewards import Rewards
from training.words.rows import ORACLE, REASONED, ROWS, chosen_features
from training.words.split import TEST, TRAIN, VALID, QueryTarget, WordsSplit, sample_query_targets, words_split
from training.words.words_files import WORDS, read_rows

_PART = 250  # targets whose lists are cached together
_VAGUE = 50  # choices in training, from which on a query says little
_VERSION = 1


def run(split: WordsSplit, words_dir: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    period = VALID if options.split == "valid" else TEST
    targets = sample_query_targets(split.targets(period), options.max_targets, options.seed)
    words, certificate = open_words(words_dir / WORDS), read_certificate(words_dir)
    out.mkdir(parents=True, exist_ok=True)
    cache = out / "cache" / digest([_VERSION, certificate, options.split, options.max_targets, options.seed])
    maker = ExampleMaker(split, words.index, words.aspects, options.seed)
    lists = _lists(maker, words_dir, targets, cache)
    if options.reasoner:
        lists[REASONED] = _reasoned(split, words, options.reasoner, targets, cache)
    answers, users = [target.answers for target in targets], np.array([target.user for target in targets])
    metrics = {row: list_metrics(list(lists[row]), answers) for row in lists}
    report = {
        "data": split.name,
        "split": options.split,
        "targets": len(targets),
        "users": len(np.unique(users)),
        "items": len(split.item_ids),
        "rows": comparison(metrics, users),
        "slices": slices(metrics, users, _parts(split, targets)),
        "milliseconds": _times(split, words, targets[: options.time_targets]),
        "training": certificate,
    }
    write_words_report(report, out)
    return report


def _lists(
    maker: ExampleMaker, words_dir: Path, targets: Sequence[QueryTarget], cache: Path
) -> dict[str, NDArray[np.int64]]:
    """Row → (targets, 100) ranked rows of items, −1 where there are fewer."""
    cache.mkdir(parents=True, exist_ok=True)
    selectors, rankers = read_rows(words_dir)
    starts = list(range(0, len(targets), _PART))
    for start in progress(starts, desc="parts", unit="part"):
        file = cache / f"{start}.json"
        if not file.is_file():
            made = maker.make(targets[start : start + _PART], "rank")
            found = list(_ranked(made, selectors, rankers, len(maker.index)))
            with atomic_file(file) as draft:
                draft.write_text(json.dumps({row: [ranks[row] for ranks in found] for row in found[0]}))
    parts = [json.loads((cache / f"{start}.json").read_text()) for start in starts]
    return {row: np.array([ranks for part in parts for ranks in part[row]], dtype=np.int64) for row in parts[0]}


def _reasoned(
    split: WordsSplit, words: Words, reasoner_dir: Path, targets: Sequence[QueryTarget], cache: Path
) -> NDArray[np.int64]:
    """(targets, 100) as a bundle with this reasoner answers. Cached like the other rows."""
    reasoner, facts = open_reasoner(reasoner_dir / REASONER), read_certificate(reasoner_dir)
    found: list[list[int]] = []
    for start in progress(range(0, len(targets), _PART), desc="reasoned", unit="part"):
        file = cache / f"reasoned-{digest(facts)}-{start}.json"
        if not file.is_file():
            part = targets[start : start + _PART]
            ranked = [_answered(split, words, target, reasoner) for target in progress(part, unit="query")]
            with atomic_file(file) as draft:
                draft.write_text(json.dumps(ranked))
        found += json.loads(file.read_text())
    return np.array(found, dtype=np.int64)


def _answered(split: WordsSplit, words: Words, target: QueryTarget, reasoner: LanguageReasoner) -> list[int]:
    memory = words.remember(split.history(target.user, target.timestamp))
    query = WordsQuery(target.query, target.timestamp, memory)
    (answer,) = words.answer([query], CUT, reasoning="full", reasoner=reasoner)
    return _padded(answer.rows)


def _parts(split: WordsSplit, targets: Sequence[QueryTarget]) -> dict[str, NDArray[np.bool_]]:
    """Vague and exact queries, by how many items were chosen after them in the train period; own and new ones."""
    asked = Counter(
        query for query, period in zip(split.queries, split.periods.tolist(), strict=True) if period == TRAIN
    )
    chosen = np.array([asked[target.query] for target in targets])
    is_own = [
        any(event.query == target.query for event in split.history(target.user, target.timestamp)) for target in targets
    ]
    return {
        "never asked in training": chosen == 0,
        "exact: 1 to 50 choices in training": (chosen > 0) & (chosen <= _VAGUE),
        "vague: more than 50 choices in training": chosen > _VAGUE,
        "the user asked exactly this before": np.array(is_own),
        "new for the user": ~np.array(is_own),
    }


def _ranked(
    examples: Iterator[Example], selectors: dict[str, Selector], rankers: dict[str, Ranker], num_items: int
) -> Iterator[dict[str, list[int]]]:
    features = {name: chosen_features(row, selectors) for name, row in ROWS.items()}
    for example in examples:
        scored = {name: rankers[name].scores(features[name](example), example.evidence.context) for name in ROWS}
        scored[ORACLE] = _oracle_scores(example, rankers["mr_rec"], num_items)
        yield {name: _padded(ranked_rows(example.evidence.rows, scores, CUT)) for name, scores in scored.items()}


def _oracle_scores(example: Example, ranker: Ranker, num_items: int) -> NDArray[np.float32]:
    """The ranking with the single memory of the pool, or none, that has the largest reward; it knows the answers."""
    rewards = Rewards(example, ranker, num_items)
    choices: list[list[int]] = [[], *([place] for place in range(len(rewards)))]
    best = max(choices, key=rewards.reward) if example.is_answer.any() else []
    places = [example.pools["chain"][place] for place in best]
    return ranker.scores(example.evidence.with_chosen(places), example.evidence.context)


def _padded(rows: NDArray[np.int64]) -> list[int]:
    return [*rows.tolist(), *[-1] * (CUT - len(rows))]


def _times(split: WordsSplit, words: Words, targets: Sequence[QueryTarget]) -> dict[str, float]:
    """Median milliseconds of one query at a time: words alone, with memory, and to write the user's memory anew."""
    found: dict[str, list[float]] = {"off": [], "retrieve": [], "full": [], "write_memory": []}
    for target in progress(targets, desc="times", unit="query"):
        events = split.history(target.user, target.timestamp)
        started = time.perf_counter()
        query = WordsQuery(target.query, target.timestamp, words.remember(events))
        found["write_memory"].append(1000 * (time.perf_counter() - started))
        for reasoning in ("off", "retrieve", "full"):
            started = time.perf_counter()
            words.answer([query], 10, reasoning=reasoning)
            found[reasoning].append(1000 * (time.perf_counter() - started))
    return {name: round(float(np.median(times)), 2) for name, times in found.items() if times}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set with queries")
    parser.add_argument("--words", type=Path, required=True, help="directory that training.train_words wrote")
    parser.add_argument("--reasoner", type=Path, help="OUT of training.reason; adds the row of the language model")
    parser.add_argument("--out", type=Path, required=True, help="directory of the report")
    parser.add_argument("--split", default="test", choices=("valid", "test"), help="period of the targets (test)")
    parser.add_argument("--max-targets", type=int, default=5000, help="number of targets, drawn by seed (5000)")
    parser.add_argument("--time-targets", type=int, default=100, help="targets that answers are timed on (100)")
    parser.add_argument("--seed", type=int, default=0)

    def stage(options: argparse.Namespace) -> dict[str, Any]:
        report = run(words_split(load_dataset(options.data)), options.words, options.out, options)
        ndcg = {row: round(values["ndcg@100"][0], 4) for row, values in report["rows"]["means"].items()}
        return {"report": str(options.out), "ndcg@100": ndcg}

    return run_program(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
