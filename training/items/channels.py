"""The tables and facts that the voices need, from the train period.

In: a split and the token of each item. Out: for each channel a table of near items over tokens (`model_store.voices`),
and facts of the items. Channels, each from the events that a user has in common:

    near     events at most `SPAN` events apart, in either order
    follow   the basket after: what came next, in this order
    linear   EASE (Steck, WWW 2019): a linear model of all items of a user, which subtracts what other items explain
    alike    similar titles; the only table that knows items without events

A count c(i, j) becomes c / (√n_i √n_j + shrinkage), and each row keeps its largest entries; the voices divide a row by
its sum. An event counts its weight w in the popularity n, and √w in a pair: a pair counts the geometric mean of its
weights. Events of one time and user are a basket: their order means nothing.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_store.voices.live import NEAR_SHRINKAGE
from model_store.voices.past import ItemFacts
from training.data.splits import History, Split
from training.items.co_occurrence import keep_largest
from training.items.likeness import alike_items, most_popular_of_titles
from training.run.stage import progress

SPAN = 20  # events
NUM_NEAR = 200  # entries of a row
SHRINKAGE = {"near": NEAR_SHRINKAGE, "follow": 1.0}
LINEAR_ITEMS, LINEAR_RIDGE = 9000, 200.0  # the most popular items only: the model inverts a matrix of this size
_PRIOR_EVENTS = 5.0  # weight of the mean of all items in the facts of one item
_SECONDS_PER_DAY = 86_400
_USUAL_INTERVAL_DAYS = 30.0  # where nobody returned to anything


class TrainEvents(NamedTuple):
    """All events of the train period, by user and time. Arrays of equal length."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]
    basket: NDArray[np.int64]  # number of the basket, over all users
    root: NDArray[np.float32]  # square root of the weight

    @classmethod
    def of(cls, split: Split) -> "TrainEvents":
        parts = [
            (history.items[kept], history.timestamps[kept], _weights(history, kept))
            for history in split.histories
            for kept in [slice(history.train_end) if history.typed is None else _near_places(history)]
        ]
        user = np.repeat(np.arange(len(parts)), [len(items) for items, *_ in parts])
        item, time, weight = map(np.concatenate, zip(*parts, strict=True))
        is_first = np.ones(len(user), dtype=bool)
        is_first[1:] = (np.diff(user) != 0) | (np.diff(time) != 0)
        root = np.sqrt(np.maximum(weight, 0)).astype(np.float32)
        return cls(user, item.astype(np.int64), time.astype(np.int64), np.cumsum(is_first) - 1, root)


def _weights(history: History, kept: slice | NDArray[np.int64]) -> NDArray[np.float32]:
    if history.typed is None:
        return np.ones(history.train_end, dtype=np.float32)
    return history.typed.weights[kept]


def _near_places(history: History) -> NDArray[np.int64]:
    """Places of the events of the train period whose type counts for neighbours."""
    assert history.typed is not None
    return np.flatnonzero(history.typed.is_near[: history.train_end])


def channel_tables(split: Split, tokens: NDArray[np.int64]) -> dict[str, sparse.csr_matrix]:
    """Channel → (V, V), where V is the largest token + 1. The rows are not normalised yet."""
    events = TrainEvents.of(split)
    makers = {"near": near_items, "follow": following_items, "linear": linear_items}
    found = {
        name: makers[name](events, split.popularity)
        for name in progress(makers, desc="tables of near items", unit="table")
    }
    found["alike"] = alike_items(split)
    return {name: over_tokens(table, tokens, split.popularity) for name, table in found.items()}


def near_items(events: TrainEvents, popularity: NDArray[np.int64]) -> sparse.csr_matrix:
    counts = sparse.csr_matrix((len(popularity), len(popularity)), dtype=np.float32)
    for gap in range(1, SPAN + 1):
        same = events.user[gap:] == events.user[:-gap]
        pairs = events.item[:-gap][same], events.item[gap:][same]
        values = events.root[:-gap][same] * events.root[gap:][same]
        counts += sparse.csr_matrix((values, pairs), counts.shape)
    return _nearest(counts + counts.T, popularity, SHRINKAGE["near"])


def following_items(events: TrainEvents, popularity: NDArray[np.int64]) -> sparse.csr_matrix:
    """From each item of a basket, equally, to each item of the user's next basket."""
    baskets = _incidence(events.basket, events, len(popularity))
    owner = events.user[np.unique(events.basket, return_index=True)[1]]
    before = np.flatnonzero(owner[1:] == owner[:-1])
    sizes = np.maximum(np.diff(baskets.indptr), 1)
    shares = sparse.diags(1 / sizes) @ baskets
    return _nearest((shares[before].T @ baskets[before + 1]).tocsr(), popularity, SHRINKAGE["follow"])


def linear_items(events: TrainEvents, popularity: NDArray[np.int64]) -> sparse.csr_matrix:
    """The positive weights of EASE, W = −P / diag(P) with P = (XᵀX + λI)⁻¹, over the most popular items."""
    kept = np.sort(np.argsort(-popularity, kind="stable")[:LINEAR_ITEMS])
    had = _incidence(events.user, events, len(popularity))[:, kept]
    gram = (had.T @ had).toarray().astype(np.float32)
    gram[np.diag_indices_from(gram)] += LINEAR_RIDGE
    inverse = np.linalg.inv(gram)
    weights = np.maximum(-inverse / np.diag(inverse), 0)
    np.fill_diagonal(weights, 0)
    found = keep_largest(sparse.csr_matrix(weights), NUM_NEAR).tocoo()
    return sparse.csr_matrix((found.data, (kept[found.row], kept[found.col])), (len(popularity), len(popularity)))


def _incidence(rows: NDArray[np.int64], events: TrainEvents, num_items: int) -> sparse.csr_matrix:
    """(rows, N): the square root of the largest weight of the events of an item in a row, 0 where there is none."""
    order = np.lexsort((-events.root, events.item, rows))
    rows, items, roots = rows[order], events.item[order], events.root[order]
    is_first = np.ones(len(rows), dtype=bool)
    is_first[1:] = (np.diff(rows) != 0) | (np.diff(items) != 0)
    kept = roots[is_first], (rows[is_first], items[is_first])
    return sparse.csr_matrix(kept, (int(rows.max()) + 1, num_items))


def _nearest(counts: sparse.csr_matrix, popularity: NDArray[np.int64], shrinkage: float) -> sparse.csr_matrix:
    table = counts.tocoo()
    roots = np.sqrt(np.maximum(popularity, 1)).astype(np.float32)
    values = table.data / (roots[table.row] * roots[table.col] + np.float32(shrinkage))
    values[table.row == table.col] = 0
    found = sparse.csr_matrix((values.astype(np.float32), (table.row, table.col)), table.shape)
    found.eliminate_zeros()
    return keep_largest(found, NUM_NEAR)


def over_tokens(
    table: sparse.csr_matrix, tokens: NDArray[np.int64], popularity: NDArray[np.int64]
) -> sparse.csr_matrix:
    """A table over items (N, N) as one over their tokens (V, V); items of equal title share a token.

    Rows of items with one token are added. In the columns only the most popular item of a token stays, because it is
    the one that is shown: if all of them counted, a common title would rank before better ones.
    """
    is_shown = np.zeros(len(tokens), dtype=bool)
    is_shown[most_popular_of_titles(tokens, popularity)] = True
    found = table.tocoo()
    kept = is_shown[found.col]
    size = int(tokens.max()) + 1
    renamed = tokens[found.row[kept]], tokens[found.col[kept]]
    merged = sparse.csr_matrix((found.data[kept], renamed), (size, size), dtype=np.float32)
    merged.sum_duplicates()
    return merged


def item_facts(split: Split, tokens: NDArray[np.int64]) -> ItemFacts:
    """Popularity, rate of return and interval of return of each token."""
    events = TrainEvents.of(split)
    token = tokens[events.item]
    size = int(tokens.max()) + 1
    num_events = np.bincount(token, minlength=size)
    order = np.lexsort((events.time, token, events.user))
    same = (np.diff(events.user[order]) == 0) & (np.diff(token[order]) == 0)
    seconds = np.diff(events.time[order])[same]
    returned, days = token[order][1:][same][seconds > 0], seconds[seconds > 0] / _SECONDS_PER_DAY
    num_returns = np.bincount(returned, minlength=size)
    intervals = np.log1p(days)
    usual = float(intervals.mean()) if len(days) else float(np.log1p(_USUAL_INTERVAL_DAYS))
    rate = len(days) / max(len(token), 1)
    return ItemFacts(
        popularity=np.bincount(tokens, weights=split.popularity, minlength=size).astype(np.float32),
        return_rate=_smoothed(num_returns, num_events, rate),
        interval=_smoothed(np.bincount(returned, weights=intervals, minlength=size), num_returns, usual),
    )


def _smoothed(sums: NDArray[np.number], counts: NDArray[np.integer], mean: float) -> NDArray[np.float32]:
    return ((sums + _PRIOR_EVENTS * mean) / (counts + _PRIOR_EVENTS)).astype(np.float32)
