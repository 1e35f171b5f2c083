"""The candidates of a query, and the features by which they are ranked.

In: `Mixtures` of a batch. Out: for one query its `Candidates` with two tables of features: of the window, and of older
events.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.voices.mixtures import Mixtures
from model_store.voices.past import EVENT_FEATURES, QUERY_FEATURES, Described
from model_store.voices.votes import Votes

NUM_CANDIDATES = 200  # of the mixture without memory, and as many of the mixture with memory
_NO_VOTE, _NO_FORECAST, _NO_RATE = 1e-7, 1e-9, 1e-4  # inside logarithms
_OF_RETURNS = [
    EVENT_FEATURES.index(name)
    for name in (
        "age_in_baskets",
        "age_in_days",
        "count",
        "age_against_interval",
        "basket_overlap",
        "age_against_own_interval",
    )
]
_NUM_OF_RETURNS = len(_OF_RETURNS) + 1  # and whether the user had the item


def num_window_features(num_tables: int) -> int:
    return num_tables + 5 + _NUM_OF_RETURNS + len(QUERY_FEATURES)


def num_older_features(num_tables: int) -> int:
    return num_tables + 1 + _NUM_OF_RETURNS + len(QUERY_FEATURES)


class Candidates(NamedTuple):
    """The candidates of one query: `tokens` and `mixture` (c,), and features; `older` None without older events."""

    tokens: NDArray[np.int64]
    mixture: NDArray[np.float32]
    window: NDArray[np.float32]  # (c, F)
    older: NDArray[np.float32] | None  # (c, F')


def find_candidates(mixtures: Mixtures, row: int, allowed: NDArray[np.int64] | None) -> Candidates:
    """The best items of both mixtures among the tokens `allowed` (a,), in ascending order."""
    if allowed is None:
        allowed = np.arange(mixtures.whole.shape[1])
    has_older = bool(mixtures.described[1].can_vote[row].any())
    proposals = [mixtures.window[row], mixtures.whole[row]] if has_older else [mixtures.window[row]]
    tokens = np.unique(np.concatenate([_best(mixture, allowed) for mixture in proposals]))
    return Candidates(
        tokens,
        mixtures.whole[row, tokens],
        _window_features(mixtures, row, tokens),
        _older_features(mixtures, row, tokens) if has_older else None,
    )


def _best(mixture: NDArray[np.float32], allowed: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(allowed) <= NUM_CANDIDATES:
        return allowed
    scores = mixture[allowed]
    return allowed[np.argpartition(-scores, NUM_CANDIDATES)[:NUM_CANDIDATES]]


def _window_features(mixtures: Mixtures, row: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    known, is_known = mixtures.known, tokens < mixtures.known.num_tokens
    inside = np.where(is_known, tokens, 0)
    popularity = np.where(is_known, known.popularity[inside], 0)
    rate = np.where(is_known, known.facts.return_rate[inside], 0)
    columns = [
        *np.log(votes_at(mixtures, mixtures.recent[row], tokens) + _NO_VOTE).T,
        np.log(mixtures.window[row, tokens] + _NO_FORECAST),
        np.log(popularity + _NO_VOTE),
        np.log(rate + _NO_RATE),
        np.log(mixtures.forecast[row, tokens] + _NO_FORECAST),
    ]
    return _joined(columns, _returns(mixtures.described[0], row, tokens), mixtures.described[0], row)


def _older_features(mixtures: Mixtures, row: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    columns = list(np.log(votes_at(mixtures, mixtures.older[row], tokens) + _NO_VOTE).T)
    return _joined(columns, _returns(mixtures.described[1], row, tokens), mixtures.described[1], row)


def _joined(
    columns: Sequence[NDArray[np.floating]], returns: NDArray[np.float32], described: Described, row: int
) -> NDArray[np.float32]:
    query = np.broadcast_to(described.queries[row].numpy(), (len(returns), len(QUERY_FEATURES)))
    return np.concatenate([np.stack(columns, axis=1), returns, query], axis=1).astype(np.float32)


def votes_at(mixtures: Mixtures, votes: Votes, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """(c, C)"""
    return votes.at(tokens, mixtures.known.num_tokens, len(mixtures.known.channels))


def _looked_up(
    keys: NDArray[np.integer], values: NDArray[np.float32], wanted: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The values (n, …) of `wanted` keys, 0 where a key is missing. `keys` (n,) ascend."""
    found = np.zeros((len(wanted), *values.shape[1:]), dtype=np.float32)
    if len(keys):
        places = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
        is_there = keys[places] == wanted
        found[is_there] = values[places[is_there]]
    return found


def _returns(described: Described, row: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """(c, R): whether an item may come back; of its last event the age in baskets and days, count, age by interval."""
    places = np.flatnonzero(described.can_vote[row, :, -1].numpy())
    places = places[np.argsort(described.tokens[row, places])]
    numbers = described.events[row].numpy()[places][:, _OF_RETURNS]
    facts = np.concatenate([np.ones((len(places), 1), np.float32), numbers], axis=1)
    return _looked_up(described.tokens[row, places], facts, tokens)
