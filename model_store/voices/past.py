"""A user's events as the voices read them, and the numbers that describe each event.

In: pasts of a batch, facts of the items. Out: `Described` for the window of each past, and for its older events. The
numbers of the window come from the window alone, those of older events from the whole past.

Events of one time are a basket: their order means nothing. So an age is counted in events of strictly later baskets,
and all events of a basket have equal numbers unless their items differ.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.manifest import VoicesSpec

_SECONDS_PER_DAY = 86_400
_LEAST_RATE = 1e-4  # of coming back, inside a logarithm
_NONE = np.zeros(0, dtype=np.int64)

EVENT_FEATURES = (
    "age_in_events", "age_in_baskets", "age_in_days", "is_in_basket", "count", "is_latest", "popularity",
    "return_rate", "age_against_interval", "num_events", "is_recent", "days_since_last", "repeated_share",
    "basket_overlap", "age_against_own_interval",
)  # fmt: skip
QUERY_FEATURES = ("num_events", "days_since_last", "repeated_share")
RETURN = "return"  # the channel that points at the item itself
_IN_BASKET, _IS_LATEST = EVENT_FEATURES.index("is_in_basket"), EVENT_FEATURES.index("is_latest")


class ItemFacts(NamedTuple):
    """What the train period says of each of V items (tokens).

    `return_rate`: events that are followed by another one of the same user and item, as a share of all events of the
    item. `interval`: mean of log(1 + days) between two such events. Both are smoothed towards the mean of all items.
    """

    popularity: NDArray[np.float32]  # (V,) events
    return_rate: NDArray[np.float32]  # (V,)
    interval: NDArray[np.float32]  # (V,)


class Against(NamedTuple):
    """Items that events of a user speak against: `tokens` (a,), and how strongly, `weights` (a,), positive."""

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]


class Past(NamedTuple):
    """The events of a user that are known at the time `now`, oldest first; the newest are read, see `VoicesSpec`.

    Timestamps are in seconds and do not fall. Events at the time `now` are the current basket. `weights` multiply the
    votes of the events; None where each counts 1. `voices` multiply the weights of voices, by their names.
    """

    tokens: NDArray[np.int64]  # (n,)
    timestamps: NDArray[np.int64]  # (n,)
    now: int
    weights: NDArray[np.float32] | None = None  # (n,)
    against: Against | None = None
    voices: Mapping[str, float] = {}


class Described(NamedTuple):
    """One half of the pasts of a batch, the window or the older events, as a gate reads it; padded on the right.

    `places` (B, n): of the events in the past. `can_vote` (B, n, C): which channels of which events may count, none of
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


class _Events(NamedTuple):
    """Events of B pasts, one past after the other, each oldest first: arrays (E,), but for `nows` (B,).

    `past`: the number of the past. `is_recent`: whether an event is in the window.
    """

    past: NDArray[np.int64]
    places: NDArray[np.int64]
    tokens: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    is_recent: NDArray[np.bool_]
    nows: NDArray[np.int64]

    def at(self, kept: NDArray[np.bool_]) -> "_Events":
        return self._replace(
            past=self.past[kept],
            places=self.places[kept],
            tokens=self.tokens[kept],
            timestamps=self.timestamps[kept],
            is_recent=self.is_recent[kept],
        )


def describe(
    pasts: Sequence[Past], facts: ItemFacts, has_row: NDArray[np.bool_], spec: VoicesSpec
) -> tuple[Described, Described]:
    """The window of each past, which is its newest `recent_length` events, and the events before, to `past_length`.

    Events of items that the tables do not know are left out; every other one is in one half. `has_row` (V, C − 1):
    whether a table has neighbours of an item.
    """
    whole = _known_events(pasts, spec, len(has_row))
    window, is_older = whole.at(whole.is_recent), ~whole.is_recent
    moved = whole._replace(past=whole.past + len(pasts))  # after the windows, which are pasts of their own
    both = _Events(*(np.concatenate(parts) for parts in zip(window, moved, strict=True)))
    numbers, queries = _numbers(both, facts)
    first, rest = np.split(numbers, [len(window.past)])
    return (
        _padded(window, first, queries[: len(pasts)], has_row, spec),
        _padded(whole.at(is_older), rest[is_older], queries[len(pasts) :], has_row, spec),
    )


def _known_events(pasts: Sequence[Past], spec: VoicesSpec, num_tokens: int) -> _Events:
    ends = np.array([len(past.tokens) for past in pasts], dtype=np.int64)
    lengths = np.minimum(ends, spec.past_length)
    number = np.repeat(np.arange(len(pasts)), lengths)
    age = np.cumsum(lengths)[number] - np.arange(len(number))  # in events of the past; 1 for the newest
    events = _Events(
        past=number,
        places=ends[number] - age,
        tokens=np.concatenate([_NONE, *(past.tokens[-spec.past_length :] for past in pasts)]),
        timestamps=np.concatenate([_NONE, *(past.timestamps[-spec.past_length :] for past in pasts)]),
        is_recent=age <= spec.recent_length,
        nows=np.array([past.now for past in pasts], dtype=np.int64),
    )
    return events.at(events.tokens < num_tokens)


def _numbers(events: _Events, facts: ItemFacts) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(E, F) the columns of `EVENT_FEATURES` for each event, and (B, Q) those of `QUERY_FEATURES` for each past."""
    past, tokens, nows = events.past, events.tokens, events.nows
    queries = np.zeros((len(nows), len(QUERY_FEATURES)), dtype=np.float32)
    if not len(tokens):
        return np.zeros((0, len(EVENT_FEATURES)), dtype=np.float32), queries
    lengths = np.bincount(past, minlength=len(nows))
    newest = np.cumsum(lengths) - 1  # place of the newest event of each past; without meaning if there is none

    # Baskets of all pasts, in the order of the events.
    starts = np.flatnonzero(_is_new(past) | _is_new(events.timestamps))
    owner, times = past[starts], events.timestamps[starts]
    basket = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(past)))
    days = np.maximum(nows[owner] - times, 0) / _SECONDS_PER_DAY
    is_current = times >= nows[owner]
    newest_basket = basket[newest]
    num_later = newest[owner] + 1 - np.append(starts[1:], len(past))
    baskets_later = newest_basket[owner] + 1 - np.arange(len(starts)) - is_current[newest_basket][owner]

    interval = facts.interval[tokens]
    item, counts, is_latest, own_interval, num_items = _items_of(events, days[basket], interval)

    # How many items of the window lie in a basket: what was bought together may be so again.
    in_window = np.zeros(len(counts), dtype=bool)
    in_window[item[events.is_recent]] = True
    overlap = np.bincount(basket, weights=in_window[item] & ~events.is_recent)

    log_days = np.log1p(days)
    has_events = lengths > 0
    queries[has_events] = np.stack(
        [np.log1p(lengths), log_days[newest_basket], 1 - num_items / np.maximum(lengths, 1)], axis=1
    )[has_events]
    columns = (
        np.log1p(num_later)[basket],
        np.log1p(baskets_later)[basket],
        log_days[basket],
        is_current[basket],
        np.log(counts)[item],
        is_latest,
        np.log1p(facts.popularity[tokens]),
        np.log(facts.return_rate[tokens] + _LEAST_RATE),
        log_days[basket] - interval,
        queries[past, 0],
        events.is_recent,
        queries[past, 1],
        queries[past, 2],
        np.log1p(overlap)[basket],
        log_days[basket] - own_interval,
    )
    return np.stack(columns, axis=1).astype(np.float32), queries


class _PastItems(NamedTuple):
    """The items of all pasts, each item of each past with a number of its own.

    `item`, `is_latest`, `own_interval` (E,): of each event its item, whether it is the last one of it, and the mean of
    log(1 + days) between this user's events of the item, with that of all users as one more value. `counts`: events of
    each item. `num_items` (B,) of each past.
    """

    item: NDArray[np.int64]
    counts: NDArray[np.int64]
    is_latest: NDArray[np.bool_]
    own_interval: NDArray[np.float64]
    num_items: NDArray[np.int64]


def _items_of(events: _Events, days: NDArray[np.float64], interval: NDArray[np.float32]) -> _PastItems:
    """`days` (E,) before the time of the request; `interval` (E,) of all users."""
    past, tokens = events.past, events.tokens
    order = np.argsort(past * (int(tokens.max()) + 1) + tokens, kind="stable")  # by past and item, oldest first
    is_first = _is_new(past[order]) | _is_new(tokens[order])
    item, is_latest = np.empty_like(order), np.empty_like(is_first)
    item[order], is_latest[order] = np.cumsum(is_first) - 1, np.append(is_first[1:], True)
    counts = np.bincount(item)
    gaps = np.zeros(len(order))
    gaps[1:] = np.log1p(np.where(is_first[1:], 0, -np.diff(days[order])))
    own_interval = (np.bincount(item[order], weights=gaps)[item] + interval) / counts[item]
    num_items = np.bincount(past[order[is_first]], minlength=len(events.nows))
    return _PastItems(item, counts, is_latest, own_interval, num_items)


def _is_new(keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether an element differs from the one before it; the first does."""
    found = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=found[1:])
    return found


def _padded(
    events: _Events,
    numbers: NDArray[np.float32],
    queries: NDArray[np.float32],
    has_row: NDArray[np.bool_],
    spec: VoicesSpec,
) -> Described:
    lengths = np.bincount(events.past, minlength=len(events.nows))
    shape = len(lengths), int(lengths.max(initial=0))
    where = events.past, np.arange(len(events.past)) - (np.cumsum(lengths) - lengths)[events.past]
    tokens, places = np.zeros((2, *shape), dtype=np.int64)
    padded = np.zeros((*shape, len(EVENT_FEATURES)), dtype=np.float32)
    can_vote = np.zeros((*shape, has_row.shape[1] + 1), dtype=bool)
    tokens[where], places[where], padded[where] = events.tokens, events.places, numbers
    # An item comes back once: at its last event, and not while it lies in the current basket.
    returns = (numbers[:, _IS_LATEST] == 1) & (numbers[:, _IN_BASKET] == 0) & spec.has_returns
    can_vote[where] = np.column_stack([has_row[events.tokens], returns])
    return Described(tokens, places, *map(torch.from_numpy, (padded, queries, can_vote)))
