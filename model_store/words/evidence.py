"""What is known of each candidate item for a query: the features that the ranking weighs.

    query     lexical, asked, cosine, popularity
    history   near, follow and cosine of everything in memory; whether the user had the item, and for this query
    read      near and cosine of all records, each as much as it has to do with the query: by vector, and by words
    chosen    near, follow and cosine of the memories that were chosen: of the ideal profile
    aspects   cosine of the global aspects that were chosen

Shares of tables are logarithms, so that a sum of weighted features is a product of evidence. A part that is missing is
zero for all candidates and so changes no ranking. Needs an index, but neither weights nor a selector.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.words.index import CHANNELS, Found, Rows, Values, WordsIndex, largest
from model_store.words.memory import Entry
from model_store.words.texts import words_of
from model_store.words.vectors import Vectors, unit

QUERY_PART = ("lexical", "asked", "cosine", "popularity")
HISTORY_PART = ("all_near", "all_follow", "all_cosine", "had", "had_asked")
READ_PART = ("vector_near", "vector_cosine", "words_near", "words_cosine")
CHOSEN_PART = ("near", "follow", "profile")
ASPECTS_PART = ("aspects",)
FEATURES = (*QUERY_PART, *HISTORY_PART, *READ_PART, *CHOSEN_PART, *ASPECTS_PART)
CONTEXT = ("always", "history", "known", "matched")  # what the weights may depend on
_FLOOR = np.float32(1e-3)  # of a share, before its logarithm
_SHARPNESS, _LEAST = 10.0, 0.05  # of the attention to records, by cosine and by words
_NUM_NEAR, _NUM_NEAR_ENTRY = 200, 40  # candidates near the whole history, and near each entry of the pool


class LocalMemory:
    """The entries of one user as arrays. `embeddings` (n, D); `rows`: different items of the records, newest first."""

    def __init__(self, entries: Sequence[Entry], dimension: int) -> None:
        self.entries = list(entries)
        stacked = [entry.embedding for entry in self.entries]
        self.embeddings: Vectors = (np.stack(stacked) if stacked else np.zeros((0, dimension))).astype(np.float32)
        is_record = [entry.level == "record" for entry in self.entries]
        self.records: Vectors = self.embeddings[is_record]
        self.rows = [entry.rows[0] for entry in self.entries if entry.level == "record"]
        self.num_events = max((entry.count for entry in self.entries), default=0)
        self.words = [frozenset(words_of(f"{entry.scenario} {entry.text}")) for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def attention(self, vector: Vectors, lexical: Values) -> dict[str, Values]:
        """(records,) how much each record has to do with a query: by its vector (D,), by BM25 of all items (N,)."""
        by_vector = np.exp(_SHARPNESS * (self.records @ vector - 1))
        by_words = (_LEAST + np.log1p(lexical[self.rows])) ** 2
        both = {"vector": by_vector, "words": by_words}
        return {name: (weights / weights.sum()).astype(np.float32) for name, weights in both.items()}

    def own_words(self, query: str) -> Values:
        """(n,) share of the words of a query in each entry; a word counts by how rare it is among the entries."""
        totals, norm = np.zeros(len(self), dtype=np.float32), 0.0
        for word in sorted(set(words_of(query))):
            has = np.array([word in each for each in self.words], dtype=np.float32)
            weight = float(np.log((len(self) + 1) / (has.sum() + 1))) if has.any() else 0.0
            totals, norm = totals + np.float32(weight) * has, norm + weight
        return totals / np.float32(norm) if norm else totals

    def rows_of_scenario(self, query: str) -> set[int]:
        """The items that the user chose after exactly this query."""
        name = " ".join(words_of(query))
        return {row for e in self.entries if e.level == "pattern" and e.scenario == name for row in e.rows}


class PoolParts(NamedTuple):
    """What each of n entries says of C candidates. `gram` (n, n): products of their embeddings."""

    near: Values  # (n, C) shares
    follow: Values
    cosine: Values
    gram: Values

    def chosen(self, places: Sequence[int]) -> Values:
        """(3, C) the features `CHOSEN_PART` of entries, most useful first: each counts half of the one before.

        Zeros for none.
        """
        if not len(places):
            return np.zeros((len(CHOSEN_PART), self.near.shape[1]), dtype=np.float32)
        picked = list(places)
        weights = np.float32(0.5) ** np.arange(len(picked), dtype=np.float32)
        weights /= weights.sum()
        length = np.sqrt(max(float(weights @ self.gram[np.ix_(picked, picked)] @ weights), 1e-12))
        near, follow = (np.log(weights @ part[picked] + _FLOOR) for part in (self.near, self.follow))
        return np.stack([near, follow, weights @ self.cosine[picked] / np.float32(length)]).astype(np.float32)


class Evidence(NamedTuple):
    """`rows` (C,) of the candidates, ascending; `features` (F, C), of which `CHOSEN_PART` is zero; `context` (X,)."""

    rows: Rows
    features: Values
    context: Values
    pool: PoolParts

    def with_chosen(self, places: Sequence[int]) -> Values:
        """(F, C) the features with some entries of the pool chosen, most useful first."""
        features = self.features.copy()
        first = FEATURES.index(CHOSEN_PART[0])
        features[first : first + len(CHOSEN_PART)] = self.pool.chosen(places)
        return features


def gather(
    index: WordsIndex,
    query: str,
    vector: Vectors,
    *,
    found: Found,
    memory: LocalMemory,
    pool: Sequence[Entry],
    aspects: Vectors,
) -> Evidence:
    """The evidence on all candidates: what the words find, popular items, and items near the memory and the pool.

    `aspects` (a, D): vectors of the chosen global aspects.
    """
    attention = memory.attention(vector, found.lexical) if len(memory) else {}
    history = {channel: index.neighbours(channel, memory.rows) for channel in CHANNELS}
    read = {name: index.neighbours("near", memory.rows, weights) for name, weights in attention.items()}
    parts = [{channel: index.neighbours(channel, entry.rows) for channel in CHANNELS} for entry in pool]
    rows = _candidates(index, found, memory, [history, read], parts)
    items = index.vectors[rows]
    asked_rows = memory.rows_of_scenario(query)
    features = np.zeros((len(FEATURES), len(rows)), dtype=np.float32)
    values = {
        "lexical": np.log1p(found.lexical[rows]),
        "asked": np.log(np.float32(0.1) + found.asked[rows]),
        "cosine": items @ vector,
        "popularity": index.log_popularity[rows],
    }
    if len(memory):
        values |= {f"all_{channel}": np.log(shares[rows] + _FLOOR) for channel, shares in history.items()}
        values |= {f"{name}_near": np.log(shares[rows] + _FLOOR) for name, shares in read.items()}
        for name, weights in attention.items():
            values[f"{name}_cosine"] = items @ unit(weights @ index.vectors[memory.rows])
        values["all_cosine"] = items @ unit(index.vectors[memory.rows].mean(axis=0))
        values["had"] = np.isin(rows, memory.rows)
        values["had_asked"] = np.isin(rows, list(asked_rows))
    if len(aspects):
        values["aspects"] = items @ unit(aspects.mean(axis=0))
    for name, value in values.items():
        features[FEATURES.index(name)] = value
    return Evidence(rows, features, _context(query, memory, found), _pool_parts(pool, parts, rows, items))


def _candidates(
    index: WordsIndex,
    found: Found,
    memory: LocalMemory,
    histories: Sequence[dict[str, Values]],
    parts: Sequence[dict[str, Values]],
) -> Rows:
    near = [largest(shares, _NUM_NEAR) for history in histories for shares in history.values()]
    near += [largest(shares, _NUM_NEAR_ENTRY) for part in parts for shares in part.values()]
    own = np.array(memory.rows, dtype=np.int64)
    return np.unique(np.concatenate([found.rows, index.popular, own, *near]))


def _pool_parts(pool: Sequence[Entry], parts: Sequence[dict[str, Values]], rows: Rows, items: Vectors) -> PoolParts:
    if not pool:
        empty = np.zeros((0, len(rows)), dtype=np.float32)
        return PoolParts(empty, empty, empty, np.zeros((0, 0), dtype=np.float32))
    embeddings = np.stack([entry.embedding for entry in pool]).astype(np.float32)
    near, follow = (np.stack([part[channel][rows] for part in parts]) for channel in CHANNELS)
    return PoolParts(near, follow, embeddings @ items.T, embeddings @ embeddings.T)


def _context(query: str, memory: LocalMemory, found: Found) -> NDArray[np.float32]:
    """One; the length of the history; how many people asked exactly this; how well the user's own words match it."""
    matched = memory.own_words(query).max(initial=0)
    history, known = np.log1p(memory.num_events) / 6, np.log1p(found.asked.sum()) / 6
    return np.array([1.0, history, known, matched], dtype=np.float32)
