"""The candidates of a query, and the features by which they are ranked.

In: `Mixtures` of a batch. Out: for one query its `Candidates` with two tables of features: of the window, and of older
events.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.voices.mixtures import Mixtures
from model_store.voices.newcomers import with_newcomers
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


def return_column(num_tables: int) -> int:
    """The column of `Candidates.older` that is 1 for an item that the user had in older events and may come back to."""
    return num_tables + 1


class Candidates(NamedTuple):
    """The candidates of one query: `tokens` and `mixture` (c,), and features; `older` None without older events."""

    tokens: NDArray[np.int64]
    mixture: NDArray[np.float32]
    window: NDArray[np.float32]  # (c, F)
    older: NDArray[np.float32] | None  # (c, F')


def find_candidates(mixtures: Mixtures, row: int, allowed: NDArray[np.int64] | None) -> Candidates:
    """The best items of both mixtures among the tokens `allowed` (a,), in ascending order."""
    window, whole = mixtures.window[row], mixtures.whole[row]
    if allowed is None:
        allowed = np.arange(len(whole))
    has_older = bool(mixtures.described[1].can_vote[row].any())
    tokens = _best((window, whole) if has_older else (window,), allowed)
    tokens = with_newcomers(mixtures.known, tokens, whole, allowed)
    return Candidates(
        tokens,
        whole[tokens],
        _window_features(mixtures, row, tokens),
        _features(mixtures.older[row], (), mixtures.described[1], row, tokens) if has_older else None,
    )


def _best(mixtures: Sequence[NDArray[np.float32]], allowed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `allowed` that are among the best of any mixture."""
    if len(allowed) <= NUM_CANDIDATES:
        return allowed
    is_best = np.zeros(len(allowed), dtype=bool)
    for mixture in mixtures:
        is_best[np.argpartition(-mixture[allowed], NUM_CANDIDATES)[:NUM_CANDIDATES]] = True
    return allowed[is_best]


def _window_features(mixtures: Mixtures, row: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    known = mixtures.known
    inside, is_known = np.minimum(tokens, known.num_tokens - 1), tokens < known.num_tokens
    columns = (
        np.log(mixtures.window[row, tokens] + _NO_FORECAST),
        np.log(known.popularity[inside] * is_known * mixtures.scales[row, 1] + _NO_VOTE),
        np.log(known.facts.return_rate[inside] * is_known + _NO_RATE),
        np.log(mixtures.forecast[row, tokens] + _NO_FORECAST),
    )
    return _features(mixtures.recent[row], columns, mixtures.described[0], row, tokens)


def _features(
    votes: Votes, columns: Sequence[NDArray[np.float32]], described: Described, row: int, tokens: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The votes of each channel, `columns`, what is known of a return, and the numbers of the query."""
    query = np.broadcast_to(described.queries[row].numpy(), (len(tokens), len(QUERY_FEATURES)))
    parts = (np.log(votes.at(tokens) + _NO_VOTE), *columns, _returns(described, row, tokens), query)
    return np.column_stack(parts).astype(np.float32, copy=False)


def _returns(described: Described, row: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """(c, R): whether an item may come back; of its last event the age in baskets and days, count, age by interval.

    Zeros for an item that cannot. `tokens` ascend.
    """
    found = np.zeros((len(tokens), _NUM_OF_RETURNS), dtype=np.float32)
    events = np.flatnonzero(described.can_vote[row, :, -1].numpy())
    own = described.tokens[row, events]
    places = np.searchsorted(tokens, own)
    is_candidate = np.append(tokens, -1)[places] == own
    places, events = places[is_candidate], events[is_candidate]
    found[places, 0] = 1
    found[places, 1:] = described.events[row].numpy()[events][:, _OF_RETURNS]
    return found
