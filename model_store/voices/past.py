"""A user's events as the voices read them, and the numbers that describe each event.

Events of one time are a basket: their order means nothing. So an age is counted in events of strictly later baskets,
and all events of a basket have equal numbers unless their items differ.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.manifest import VoicesSpec

_SECONDS_PER_DAY = 86_400
_LEAST_RATE = 1e-4  # of coming back, inside a logarithm

EVENT_FEATURES = (
    "age_in_events", "age_in_baskets", "age_in_days", "is_in_basket", "count", "is_latest", "popularity",
    "return_rate", "age_against_interval", "num_events", "is_recent", "days_since_last", "repeated_share",
    "basket_overlap", "age_against_own_interval",
)  # fmt: skip
QUERY_FEATURES = ("num_events", "days_since_last", "repeated_share")
RETURN = "return"  # the channel that points at the item itself
_OF_QUERY = [EVENT_FEATURES.index(name) for name in QUERY_FEATURES]
_IN_BASKET, _IS_RECENT = EVENT_FEATURES.index("is_in_basket"), EVENT_FEATURES.index("is_recent")


class ItemFacts(NamedTuple):
    """What the train period says of each of V items (tokens).

    `return_rate`: events that are followed by another one of the same user and item, as a share of all events of the
    item. `interval`: mean of log(1 + days) between two such events. Both are smoothed towards the mean of all items.
    """

    popularity: NDArray[np.float32]  # (V,) events
    return_rate: NDArray[np.float32]  # (V,)
    interval: NDArray[np.float32]  # (V,)


class Past(NamedTuple):
    """The events of a user that are known at the time `now`, at most K + M, oldest first.

    Timestamps are in seconds and do not fall. Events at the time `now` are the current basket.
    """

    tokens: NDArray[np.int64]  # (n,)
    timestamps: NDArray[np.int64]  # (n,)
    now: int

    def at(self, places: NDArray[np.int64]) -> "Past":
        return Past(self.tokens[places], self.timestamps[places], self.now)


def describe(past: Past, facts: ItemFacts, num_recent: int) -> NDArray[np.float32]:
    """(n, F) the columns of `EVENT_FEATURES` for each event. The newest `num_recent` events are the window."""
    num_events = len(past.tokens)
    if not num_events:
        return np.zeros((0, len(EVENT_FEATURES)), dtype=np.float32)
    basket = np.unique(past.timestamps, return_inverse=True)[1]
    is_recent = np.arange(num_events) >= num_events - num_recent
    num_in_basket = np.bincount(basket)
    num_later = num_events - np.cumsum(num_in_basket)
    in_basket = past.timestamps >= past.now
    days = np.maximum(past.now - past.timestamps, 0) / _SECONDS_PER_DAY
    _, whose, counts = np.unique(past.tokens, return_inverse=True, return_counts=True)
    interval = facts.interval[past.tokens]
    columns = (
        np.log1p(num_later[basket]),
        np.log1p(len(num_in_basket) - basket - in_basket.any()),
        np.log1p(days),
        in_basket,
        np.log(counts[whose]),
        is_latest(past.tokens),
        np.log1p(facts.popularity[past.tokens]),
        np.log(facts.return_rate[past.tokens] + _LEAST_RATE),
        np.log1p(days) - interval,
        np.full(num_events, np.log1p(num_events)),
        is_recent,
        np.full(num_events, np.log1p(days[-1])),
        np.full(num_events, 1 - len(counts) / num_events),
        np.log1p(_overlap(past.tokens, basket, is_recent)),
        np.log1p(days) - _own_interval(days, whose, interval),
    )
    return np.stack(columns, axis=1).astype(np.float32)


def _overlap(tokens: NDArray[np.int64], basket: NDArray[np.int64], is_recent: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) how many items of the window lie in the basket of each event: what was bought together may be so again."""
    shared = np.isin(tokens, tokens[is_recent]) & ~is_recent
    counts: NDArray[np.float64] = np.bincount(basket, weights=shared)[basket].astype(np.float64)
    return counts


def _own_interval(
    days: NDArray[np.float64], whose: NDArray[np.int64], interval: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(n,) mean of log(1 + days) between this user's events of the item, with that of all users as one more value."""
    order = np.lexsort((-days, whose))  # by item, oldest first
    same = whose[order][1:] == whose[order][:-1]
    gaps = np.log1p((days[order][:-1] - days[order][1:])[same])
    num_items = int(whose.max()) + 1
    count = np.bincount(whose[order][1:][same], minlength=num_items)
    total = np.bincount(whose[order][1:][same], weights=gaps, minlength=num_items)
    own = (total[whose] + interval) / (count[whose] + 1)
    return own


def is_latest(tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether an event is the last one of its item."""
    latest = np.zeros(len(tokens), dtype=bool)
    latest[len(tokens) - 1 - np.unique(tokens[::-1], return_index=True)[1]] = True
    return latest


class Described(NamedTuple):
    """Pasts of a batch as the networks read them, padded on the right.

    `places` (B, n): of the events in the past. `can_vote` (B, n, C): which channels of which events may count; none of
    padding.
    """

    tokens: NDArray[np.int64]  # (B, n)
    places: NDArray[np.int64]
    events: Tensor  # (B, n, F)
    queries: Tensor  # (B, Q)
    can_vote: Tensor  # (B, n, C) bool

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.events, self.queries, self.can_vote

    def without_recent(self) -> "Described":
        """The events of the window cannot vote."""
        return self._replace(can_vote=self.can_vote & (self.events[..., _IS_RECENT, None] == 0))


def describe_all(
    pasts: Sequence[Past], length: int, facts: ItemFacts, has_row: NDArray[np.bool_], spec: VoicesSpec
) -> Described:
    """The newest `length` events of each past, without those of items that the tables do not know.

    `has_row` (V, C − 1): whether a table has neighbours of an item.
    """
    kept = [_known_places(past, length, len(has_row)) for past in pasts]
    width = max(map(len, kept), default=0)
    tokens, places = np.zeros((2, len(kept), width), dtype=np.int64)
    events = np.zeros((len(kept), width, len(EVENT_FEATURES)), dtype=np.float32)
    can_vote = np.zeros((len(kept), width, has_row.shape[1] + 1), dtype=bool)
    queries = np.zeros((len(kept), len(QUERY_FEATURES)), dtype=np.float32)
    for row, own_places in enumerate(kept):
        if size := len(own_places):
            past = pasts[row].at(own_places)
            tokens[row, :size], places[row, :size] = past.tokens, own_places
            events[row, :size] = own = describe(past, facts, spec.recent_length)
            queries[row] = own[-1, _OF_QUERY]
            can_vote[row, :size, :-1] = has_row[past.tokens]
            # An item comes back once: at its last event, and not while it lies in the current basket.
            can_vote[row, :size, -1] = spec.has_returns & is_latest(past.tokens) & (own[:, _IN_BASKET] == 0)
    return Described(tokens, places, *map(torch.from_numpy, (events, queries, can_vote)))


def _known_places(past: Past, length: int, num_tokens: int) -> NDArray[np.int64]:
    start = max(0, len(past.tokens) - length)
    return start + np.flatnonzero(past.tokens[start:] < num_tokens)
