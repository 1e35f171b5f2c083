"""Splits a data set into a train, a valid and a test period.

In: a `Dataset`. Out: a `Split`: the items that are frequent enough, every user's history as item rows, and the targets
of each period. What may be known of a target is everything earlier of its user. Knows nothing of models, prompts or
metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from training.data.dataset import DataError, Dataset
from training.data.meaning import Meaning, meaning_of

_REPEAT_SHARE = 0.01
_TYPES = {"weight": pl.Float32}
NUM_AGAINST = 50  # events against items that a request carries, as in the service


@dataclass(frozen=True, slots=True)
class Target:
    """An event to predict: `histories[user].items[position]` from `histories[user].items[:position]`."""

    user: int
    position: int


@dataclass(frozen=True, slots=True)
class History:
    user_id: str
    items: np.ndarray  # (length,) int32, rows of Split.item_ids, in history order
    timestamps: np.ndarray  # (length,) int64, seconds
    train_end: int  # first position outside the train period
    is_long: bool  # long users have targets; the train period of all users is trained on (in the paper: of long users)
    typed: "Typed | None" = None  # None where the data has no types

    def hidden(self, position: int, *, hides_seen: bool) -> np.ndarray:
        """Items that may not be shown for the target at `position`: those of the current basket; with `hides_seen` also
        those that count as seen at its time; and those that events before it speak against.
        """
        items, now = self.items[:position], self.timestamps[position]
        if self.typed is None:
            return items if hides_seen else items[self.timestamps[:position] == now]
        parts = [items[self.timestamps[:position] == now], self.typed.against_at(now).items]
        return np.concatenate([*parts, self.typed.seen_at(now)] if hides_seen else parts)


class Against(NamedTuple):
    """Events that speak against items, oldest first: `items` (a,) rows, and `weights` (a,), positive."""

    items: np.ndarray
    timestamps: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, slots=True)
class Typed:
    """What the types of a user's events say. `weights`, `is_popular`, `is_near`, `is_seen` (length,): of the events of
    the history. The others are of all events of the user, by time: `seen_items` count as seen from after `seen_from`
    until `seen_until`.
    """

    weights: np.ndarray
    is_popular: np.ndarray
    is_near: np.ndarray
    is_seen: np.ndarray
    seen_items: np.ndarray
    seen_from: np.ndarray
    seen_until: np.ndarray
    against: Against

    def seen_at(self, now: int) -> np.ndarray:
        found: np.ndarray = self.seen_items[(self.seen_from < now) & (self.seen_until > now)]
        return found

    def against_at(self, now: int) -> Against:
        """The newest before `now`, as many as the service reads."""
        end = int(np.searchsorted(self.against.timestamps, now, side="left"))
        span = slice(max(0, end - NUM_AGAINST), end)
        return Against(*(part[span] for part in self.against))


@dataclass(frozen=True)
class Split:
    name: str
    item_ids: list[str]  # the N items that are frequent enough, sorted by id
    titles: list[str]
    attributes: list[dict[str, Any]]
    popularity: np.ndarray  # (N,) int64, interactions in the train period, by their weights; see `_popularity`
    title_class: np.ndarray  # (N,) int32, equal for items of equal title
    histories: list[History]  # every user with such an item, sorted by user_id
    valid: list[Target]
    test: list[Target]
    train: list[Target]  # targets of long users in the train period, for annotation

    @cached_property
    def has_repeats(self) -> bool:
        """Whether users repeat items: at least 1 % of the events of the train period are repeats."""
        had = [
            items if history.typed is None else items[history.typed.is_seen[: history.train_end]]
            for history in self.histories
            for items in [history.items[: history.train_end]]
        ]
        num_events = sum(map(len, had))
        return sum(len(items) - len(np.unique(items)) for items in had) >= _REPEAT_SHARE * num_events


@dataclass(frozen=True)
class _Table:
    """The remaining interactions in history order. Arrays have one entry per interaction unless stated otherwise."""

    items: pl.DataFrame
    user_ids: list[str]  # (users,)
    starts: np.ndarray  # (users + 1,) the first event of each user, and the number of events
    user: np.ndarray
    position: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    events: pl.DataFrame
    meaning: Meaning | None

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


def time_split(
    dataset: Dataset,
    *,
    min_item_count: int = 5,
    long_user_length: int = 20,
    min_earlier: int = 10,
    valid_at: float = 0.8,
    test_at: float = 0.9,
) -> Split:
    """Cuts at two times, the same for all users: shares `valid_at` and `test_at` of long users' events are before them.

    An event exactly at a cut counts as after it. Targets are events of users with at least `long_user_length` events,
    and have at least `min_earlier` events before them. Raises DataError.
    """
    table = _table(dataset, min_item_count)
    is_long = table.lengths >= long_user_length
    if not is_long.any():
        raise DataError(
            f"{dataset.name}: no user has {long_user_length} interactions with items seen {min_item_count} "
            f"times; the longest history has {table.lengths.max()}"
        )
    of_long = is_long[table.user]
    valid_from, test_from = _cut_times(table.timestamp[of_long], (valid_at, test_at))
    period = (table.timestamp >= valid_from).astype(np.int8) + (table.timestamp >= test_from)
    is_target = of_long & (table.position >= min_earlier)
    return _split("time", dataset, table, period=period, is_target=is_target, is_long=is_long)


def leave_one_out(
    dataset: Dataset, *, min_item_count: int = 5, min_user_length: int = 5, min_earlier: int = 10
) -> Split:
    """The split of published tables: the last event of a user is a test target, the one before it a valid target.

    It applies to users with at least `min_user_length` events; all events of other users are in the train period.
    `min_earlier` restricts the train targets only. Raises DataError.
    """
    table = _table(dataset, min_item_count)
    is_long = table.lengths >= min_user_length
    from_end = table.lengths[table.user] - table.position  # 1 is a user's last event
    period = np.where(is_long[table.user], np.maximum(3 - from_end, 0), 0)
    is_target = is_long[table.user] & ((period > 0) | (table.position >= min_earlier))
    return _split("leave-one-out", dataset, table, period=period, is_target=is_target, is_long=is_long)


def sample_targets(targets: Sequence[Target], limit: int | None, seed: int) -> list[Target]:
    """At most `limit` random targets, in order. With the same seed, a smaller sample is part of a larger one."""
    if limit is None or limit >= len(targets):
        return list(targets)
    chosen = np.random.default_rng(seed).permutation(len(targets))[:limit]
    return [targets[row] for row in np.sort(chosen)]


def _table(dataset: Dataset, min_item_count: int) -> _Table:
    meaning = meaning_of(dataset.interactions, dataset.event_types)
    interactions = dataset.interactions if meaning is None else meaning.interest
    counts = interactions.group_by("item_id").len().filter(pl.col("len") >= min_item_count)
    items = dataset.items.join(counts.select("item_id"), on="item_id", how="semi").sort("item_id")
    if items.is_empty():
        raise DataError(f"{dataset.name}: no item has {min_item_count} interactions; more data is needed")
    rows = items.select("item_id").with_row_index("row")
    events = interactions.join(rows, on="item_id", how="inner", maintain_order="left")
    user = events["user_id"].rle_id().to_numpy().astype(np.int64)
    starts = np.flatnonzero(np.diff(user, prepend=-1, append=user[-1] + 1))
    return _Table(
        items=items,
        user_ids=events["user_id"].gather(starts[:-1]).to_list(),
        starts=starts,
        user=user,
        position=np.arange(len(user)) - starts[user],
        item=events["row"].to_numpy().astype(np.int32),
        timestamp=events["timestamp"].to_numpy().copy(),
        events=events,
        meaning=meaning,
    )


def _cut_times(timestamps: np.ndarray, shares: Sequence[float]) -> list[int]:
    ordered = np.sort(timestamps)
    return [int(ordered[min(int(share * len(ordered)), len(ordered) - 1)]) for share in shares]


def _split(
    name: str,
    dataset: Dataset,
    table: _Table,
    *,
    period: np.ndarray,
    is_target: np.ndarray,
    is_long: np.ndarray,
) -> Split:
    """`period` (0 train, 1 valid, 2 test) and `is_target` are per event, `is_long` is per user."""
    train, valid, test = (_targets(table, is_target & (period == number)) for number in range(3))
    for part, found in (("train", (period == 0).any()), ("valid", valid), ("test", test)):
        if not found:
            raise DataError(
                f"{dataset.name}: the {name} split leaves nothing to {part}: {len(table.user_ids)} users, "
                f"{is_long.sum()} of them long enough, {len(table.user)} interactions; more data is needed"
            )
    titles = table.items["title"].to_list()
    return Split(
        name=name,
        item_ids=table.items["item_id"].to_list(),
        titles=titles,
        attributes=_attributes(table.items),
        popularity=_popularity(table, period == 0),
        title_class=_title_classes(titles),
        histories=_histories(table, period, is_long),
        valid=valid,
        test=test,
        train=train,
    )


def _targets(table: _Table, chosen: np.ndarray) -> list[Target]:
    pairs = zip(table.user[chosen].tolist(), table.position[chosen].tolist(), strict=True)
    return [Target(user, position) for user, position in pairs]


def _histories(table: _Table, period: np.ndarray, is_long: np.ndarray) -> list[History]:
    train_ends = np.add.reduceat((period == 0).astype(np.int64), table.starts[:-1])
    spans = [slice(begin, end) for begin, end in zip(table.starts[:-1], table.starts[1:], strict=True)]
    users = zip(table.user_ids, spans, train_ends.tolist(), is_long.tolist(), _typed(table, spans), strict=True)
    return [
        History(user_id, table.item[span], table.timestamp[span], train_end, is_long_user, typed)
        for user_id, span, train_end, is_long_user, typed in users
    ]


def _popularity(table: _Table, is_counted: np.ndarray) -> np.ndarray:
    """(N,) int64: the sum of the weights of the events that count, rounded; at least 1 for an item with such an event.

    Live counts add the same weights.
    """
    if table.meaning is None:
        return np.bincount(table.item[is_counted], minlength=table.items.height)
    is_counted = is_counted & table.events["is_popular"].to_numpy()
    items, weights = table.item[is_counted], table.events["weight"].to_numpy()[is_counted]
    sums = np.bincount(items, weights=np.maximum(weights, 0), minlength=table.items.height)
    has_events = np.bincount(items[weights > 0], minlength=table.items.height) > 0
    return np.maximum(np.rint(sums).astype(np.int64), has_events)


def _typed(table: _Table, spans: Sequence[slice]) -> Sequence[Typed | None]:
    """Of each user."""
    if table.meaning is None:
        return [None] * len(spans)
    rows = table.items.select("item_id").with_row_index("row")
    others = []
    for frame in (table.meaning.seen, table.meaning.against):
        known = frame.join(rows, on="item_id", how="inner").sort("user_id", "timestamp", maintain_order=True)
        others.append(known.partition_by("user_id", as_dict=True))
    names = ("weight", "is_popular", "is_near", "is_seen")
    columns = [table.events[name].to_numpy() for name in names]
    found = []
    for user_id, span in zip(table.user_ids, spans, strict=True):
        seen = _arrays(others[0].get((user_id,)), ("row", "timestamp", "until"))
        against = _arrays(others[1].get((user_id,)), ("row", "timestamp", "weight"))
        weights, is_popular, is_near, is_seen = (column[span] for column in columns)
        found.append(Typed(weights, is_popular, is_near, is_seen, *seen, Against(*against)))
    return found


def _arrays(frame: pl.DataFrame | None, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three columns."""
    if frame is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    first, second, third = (frame[name].cast(_TYPES.get(name, pl.Int64)).to_numpy() for name in names)
    return first, second, third


def _title_classes(titles: Sequence[str]) -> np.ndarray:
    classes: dict[str, int] = {}
    return np.array([classes.setdefault(title, len(classes)) for title in titles], dtype=np.int32)


def _attributes(items: pl.DataFrame) -> list[dict[str, Any]]:
    rows = items.drop("item_id", "title").to_dicts() or [{} for _ in range(items.height)]
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
