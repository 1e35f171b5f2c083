"""Words of a tiny catalogue: hand-made weights, so that words, vectors, memories and aspects all count."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from model_store.bundle import Bundle, BundleWriter
from model_store.files import read_manifest
from model_store.grounding import ItemIndex
from model_store.manifest import WordsSpec
from model_store.reasoner.files import REASONER, save_reasoner
from model_store.words.answer import Words
from model_store.words.aspects import Aspect, GlobalMemory
from model_store.words.evidence import CONTEXT, FEATURES
from model_store.words.files import save_words
from model_store.words.index import CHANNELS, WordsIndex
from model_store.words.lexical import Lexicon
from model_store.words.ranker import Ranker
from model_store.words.selector import SELECTOR_FEATURES, Selector
from model_store.words.texts import item_text
from tests.conftest import TITLES, write_bundle
from tests.reasoners import tiny_model, tiny_tokenizer
from training.words.encoding import lsa_encoder

ASPECTS = ("warm", "strong", "for the evening")


def small_words(titles: Sequence[str] = tuple(TITLES)) -> Words:
    """A record or pattern that shares words with the query is chosen; the item after those of a memory is likely."""
    phrases = [("something warm", 1), ("日本 茶", 1), ("чай на вечер", 1)]
    texts = [item_text(title, {"kind": title.split()[-1]}, [phrases[n % 3]]) for n, title in enumerate(titles)]
    encoder = lsa_encoder([text.sentence for text in texts], size=16)
    vectors, size = encoder.encode([text.sentence for text in texts]), len(texts)
    rows = np.arange(size)
    ring = sparse.csr_matrix((np.ones(size, np.float32), (rows, np.roll(rows, -1))), (size, size))
    index = WordsIndex(
        texts=texts,
        lexicon=Lexicon.build([text.terms() for text in texts]),
        vectors=vectors,
        dense=ItemIndex.build(vectors),
        tables=dict.fromkeys(CHANNELS, ring),
        popularity=np.arange(size, 0, -1),
        shares={"moon": 0.2},
        encoder=encoder,
    )
    embeddings = encoder.encode(["something warm Tea", "Hot River", "Silent Moon"]).astype(np.float16)
    aspects = [
        Aspect(f"a{n}", "something warm", name, f"{name}, they say", embeddings[n], 5 + n)
        for n, name in enumerate(ASPECTS)
    ]
    return Words(index, GlobalMemory(aspects, vectors.shape[1]), _selector(), _ranker())


def write_words_bundle(path: Path, *, has_reasoner: bool = False) -> None:
    """The bundle of `write_bundle` with small words, and a tiny language model as their reasoner."""
    write_bundle(path)
    words, manifest = small_words(), read_manifest(path)
    spec = WordsSpec(
        dimension=words.index.encoder.dimension,
        num_aspects=len(words.aspects),
        memory_scale=words.ranker.memory_scale,
        has_reasoner=has_reasoner,
    )
    with tempfile.TemporaryDirectory() as draft, BundleWriter(path) as writer:
        save_words(words, Path(draft) / "words")
        if has_reasoner:
            tokenizer = tiny_tokenizer()
            model = tiny_model(len(tokenizer))
            save_reasoner(model, tokenizer, words.ranker, Path(draft) / "words" / REASONER)
        writer.add_all_but_words(path)
        writer.add_words(Path(draft) / "words")
        writer.finish(manifest.model_copy(update={"words": spec}))
    opened = Bundle.open(path)
    assert opened.words is not None and (opened.reasoner is not None) == has_reasoner


def _selector() -> Selector:
    weights = {"is_null": 0.2, "own_words": 2.0, "query_cosine": 1.0, "is_scenario": 1.0}
    row = np.array([[weights.get(name, 0.0) for name in SELECTOR_FEATURES]], np.float32)
    return Selector(((row, np.zeros(1, np.float32)),))


def _ranker() -> Ranker:
    def weights(**chosen: float) -> np.ndarray:
        found = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
        found[0] = [chosen.get(name, 0.0) for name in FEATURES]
        return found

    alone = {"lexical": 1.0, "cosine": 1.0, "popularity": 0.1, "aspects": 0.1}
    return Ranker(weights(**alone), weights(**alone, follow=0.5, profile=0.5), np.ones(len(FEATURES), np.float32), 1.0)
