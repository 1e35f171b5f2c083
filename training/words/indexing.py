"""The hybrid index of a data set: documents, BM25, vectors and tables of near items, all from the train period.

The document of an item is its title, its attributes, and the queries after which people chose it, each with the number
of these people. So a document never contains what the user of a valid or test target wrote later. The saturation and
the length of BM25 are chosen by NDCG@100 on valid targets.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_store.grounding import ItemIndex
from model_store.words.encoders import TextEncoder
from model_store.words.index import WordsIndex
from model_store.words.lexical import Lexicon
from model_store.words.memory import MemoryLimits, scenarios_of
from model_store.words.texts import ItemText, item_text, query_terms
from training.items.co_occurrence import keep_largest
from training.run.stage import progress
from training.words.encoding import make_encoder
from training.words.metrics import CUT, ndcg_of
from training.words.split import TRAIN, QueryTarget, WordsSplit

SATURATIONS, LENGTHS = (1.5, 6.0, 20.0), (0.0, 0.3, 0.75)
NUM_NEAR = 200  # entries of a row
SHRINKAGE = 5.0
_MAX_EVENTS = 400  # newest events of a user whose order is counted
_POPULARITY_WEIGHT = 0.05  # breaks ties of BM25 while it is chosen


def make_index(
    split: WordsSplit, encoder: str, work: Path | None, choosing: Sequence[QueryTarget], seed: int = 0
) -> WordsIndex:
    """`choosing`: valid targets that choose BM25's settings. `work`: a folder for weights that are unpacked."""
    texts = documents(split)
    sentences = [text.sentence for text in texts]
    chosen = make_encoder(encoder, sentences, work, seed)
    vectors = _encoded(chosen, sentences)
    return WordsIndex(
        texts=texts,
        lexicon=_best_lexicon(texts, split, choosing),
        vectors=vectors,
        dense=ItemIndex.build(vectors),
        tables=near_tables(split),
        popularity=split.popularity,
        shares=_scenario_shares(split, texts),
        encoder=chosen,
    )


def documents(split: WordsSplit) -> list[ItemText]:
    """(N,) the texts of the items, with queries of the train period."""
    askers: dict[int, dict[str, set[int]]] = {}
    for place in np.flatnonzero(split.periods == TRAIN).tolist():
        if query := split.queries[place]:
            found = askers.setdefault(int(split.items[place]), {})
            found.setdefault(query, set()).add(int(split.users[place]))
    return [
        item_text(
            split.titles[row],
            split.attributes[row],
            [(query, len(users)) for query, users in askers.get(row, {}).items()],
        )
        for row in range(len(split.titles))
    ]


def near_tables(split: WordsSplit) -> dict[str, sparse.csr_matrix]:
    """`near`: users of the train period had both items. `follow`: the second on a later day than the first.

    A count c(i, j) becomes c / (√n_i √n_j + shrinkage), and each row keeps its largest entries.
    """
    is_train = split.periods == TRAIN
    had = sparse.csr_matrix(
        (np.ones(int(is_train.sum()), np.float32), (split.users[is_train], split.items[is_train])),
        (len(split.user_ids), len(split.item_ids)),
    )
    had.data[:] = 1
    near = (had.T @ had).tocsr()
    near.setdiag(0)
    near.eliminate_zeros()
    people = np.asarray(had.sum(axis=0)).ravel()
    counts = {"near": near, "follow": _later_items(split)}
    return {name: _shrunk(table, people) for name, table in counts.items()}


def _later_items(split: WordsSplit) -> sparse.csr_matrix:
    size = len(split.item_ids)
    table = sparse.csr_matrix((size, size), dtype=np.float32)
    parts: list[NDArray[np.int64]] = []
    for user in progress(range(len(split.user_ids)), desc="items in order", unit="user"):
        parts.append(_ordered_pairs(split, user))
        if sum(part.shape[1] for part in parts) > 5_000_000 or user == len(split.user_ids) - 1:
            pairs = np.concatenate(parts, axis=1)
            table += sparse.csr_matrix((np.ones(pairs.shape[1], np.float32), (pairs[0], pairs[1])), (size, size))
            parts = []
    return table


def _ordered_pairs(split: WordsSplit, user: int) -> NDArray[np.int64]:
    """(2, pairs) of one user: an item, and a different item whose first day is later."""
    span = slice(int(split.starts[user]), int(split.starts[user + 1]))
    is_train = split.periods[span] == TRAIN
    items, first = np.unique(split.items[span][is_train][-_MAX_EVENTS:], return_index=True)
    days = split.timestamps[span][is_train][-_MAX_EVENTS:][first] // 86_400
    earlier, later = np.nonzero(days[:, None] < days[None, :])
    return np.stack([items[earlier], items[later]])


def _shrunk(counts: sparse.csr_matrix, people: NDArray[np.float32]) -> sparse.csr_matrix:
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    near = counts.copy()
    near.data = near.data / (np.sqrt(people[rows] * people[near.indices]) + np.float32(SHRINKAGE))
    return keep_largest(near, NUM_NEAR).astype(np.float32)


def _scenario_shares(split: WordsSplit, texts: Sequence[ItemText]) -> dict[str, float]:
    limit = MemoryLimits().scenarios
    places = np.flatnonzero(split.periods == TRAIN).tolist()
    counts = Counter(
        name for place in places for name in scenarios_of(split.event(place), texts[int(split.items[place])], limit)
    )
    return {name: count / len(places) for name, count in sorted(counts.items()) if count > 1}


def _encoded(encoder: TextEncoder, sentences: Sequence[str]) -> NDArray[np.float32]:
    """All sentences, with progress."""
    step = 2048
    starts = progress(range(0, len(sentences), step), desc="vectors of items", unit="batch")
    return np.concatenate([encoder.encode(sentences[start : start + step]) for start in starts])


def _best_lexicon(texts: Sequence[ItemText], split: WordsSplit, choosing: Sequence[QueryTarget]) -> Lexicon:
    terms = [text.terms() for text in texts]
    tie = _POPULARITY_WEIGHT * np.log1p(split.popularity).astype(np.float32)

    def quality(lexicon: Lexicon) -> float:
        scores = (np.log1p(lexicon.scores(query_terms(target.query))) + tie for target in choosing)
        return float(
            np.mean([ndcg_of(each, target.answers, CUT) for each, target in zip(scores, choosing, strict=True)])
        )

    settings = progress(list(product(SATURATIONS, LENGTHS)), desc="BM25", unit="setting")
    made = (Lexicon.build(terms, saturation=saturation, length=length) for saturation, length in settings)
    return max(made, key=quality)
