"""What the histories of a split look like: lengths, baskets, items that come back, items without events.

In: a split, the token of each item (items of equal title share one), K. Out: numbers, grouped as `training.diagnose`
prints them. Nothing is learned here. Shares are from 0 to 1. Events of one user and time are a basket.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.data.splits import Split, Target

FEW_EVENTS = 5  # fewer say little of an item
SECONDS_PER_DAY = 86_400
Facts = dict[str, Any]


class Events(NamedTuple):
    """All events of all users, by user and position. Arrays of equal length, but for `starts`.

    `gap`: how many events ago the user had the same token, 0 if never. `days`: how many days ago, NaN if never.
    """

    starts: NDArray[np.int64]  # (users,)
    user: NDArray[np.int64]
    token: NDArray[np.int64]
    time: NDArray[np.int64]
    is_train: NDArray[np.bool_]
    gap: NDArray[np.int64]
    days: NDArray[np.float64]

    @classmethod
    def of(cls, split: Split, tokens: NDArray[np.int64]) -> "Events":
        lengths = np.array([len(history.items) for history in split.histories])
        starts = np.cumsum(lengths) - lengths
        user = np.repeat(np.arange(len(lengths)), lengths)
        token = tokens[np.concatenate([history.items for history in split.histories])]
        time = np.concatenate([history.timestamps for history in split.histories]).astype(np.int64)
        train_ends = np.array([history.train_end for history in split.histories])
        is_train = np.arange(len(user)) - starts[user] < train_ends[user]
        before = _same_before(user, token)
        has_before, here = before >= 0, np.arange(len(user))
        days = np.where(has_before, (time - time[before]) / SECONDS_PER_DAY, np.nan)
        return cls(starts, user, token, time, is_train, np.where(has_before, here - before, 0), days)

    def rows(self, targets: Sequence[Target]) -> NDArray[np.int64]:
        return np.array([self.starts[target.user] + target.position for target in targets], dtype=np.int64)

    @property
    def shares_time(self) -> NDArray[np.bool_]:
        """Whether an event has the time of the user's event before."""
        same = np.zeros(len(self.user), dtype=bool)
        same[1:] = (np.diff(self.user) == 0) & (np.diff(self.time) == 0)
        return same


def _same_before(user: NDArray[np.int64], token: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of the latest earlier event of the same user and token, −1 if there is none."""
    order = np.lexsort((np.arange(len(user)), token, user))
    same = (np.diff(user[order]) == 0) & (np.diff(token[order]) == 0)
    before = np.full(len(user), -1, dtype=np.int64)
    before[order[1:][same]] = order[:-1][same]
    return before


def history_facts(split: Split, tokens: NDArray[np.int64], *, window: int) -> Facts:
    """Groups of numbers; `window` is K. `cold` lacks the likeness of titles, see `like_titles`."""
    events = Events.of(split, tokens)
    rows = events.rows(split.valid)
    return {
        "size": _size(split, events),
        "histories": _histories(split, events),
        "targets": _targets(split, window),
        "baskets": _baskets(events, rows, split, window),
        "returns": _returns(events, rows, window),
        "cold": _cold(split, tokens, events.token[rows]),
    }


def like_titles(split: Split, tokens: NDArray[np.int64], has_like_title: NDArray[np.bool_], facts: Facts) -> Facts:
    """The group `cold`, with the share of its targets whose title is like another one. `has_like_title`: (V,)."""
    truths = np.array([tokens[split.histories[target.user].items[target.position]] for target in split.valid])
    is_cold = _popularity(split, tokens)[truths] < FEW_EVENTS
    return {**facts, "like_title_share": _share(has_like_title[truths[is_cold]])}


def _size(split: Split, events: Events) -> Facts:
    return {
        "users": len(split.histories),
        "items": len(split.item_ids),
        "titles": len(set(split.title_class.tolist())),
        "events": len(events.user),
        "first_day": _day(int(events.time.min())),
        "last_day": _day(int(events.time.max())),
        "whole_days": bool((events.time % SECONDS_PER_DAY == 0).all()),
    }


def _day(seconds: int) -> str:
    return str(np.datetime64(seconds, "s").astype("datetime64[D]"))


def _histories(split: Split, events: Events) -> Facts:
    """Spans are of long users: only these have targets."""
    lengths = np.array([len(history.items) for history in split.histories])
    is_long = np.array([history.is_long for history in split.histories])
    ends = events.starts + lengths - 1
    spans = (events.time[ends] - events.time[events.starts])[is_long]
    return {
        "median_length": float(np.median(lengths)),
        "p90_length": round(float(np.quantile(lengths, 0.9)), 1),
        "long_users": int(is_long.sum()),
        "within_a_day_share": _share(spans < SECONDS_PER_DAY),
        "one_time_share": _share(spans == 0),
    }


def _targets(split: Split, window: int) -> Facts:
    positions = np.array([target.position for target in split.valid])
    users = {target.user for target in split.valid}
    return {"valid": len(positions), "users": len(users), "with_older_share": _share(positions > window)}


def _baskets(events: Events, rows: NDArray[np.int64], split: Split, window: int) -> Facts:
    """`window_in_basket_share`: targets whose whole window has the time of the target."""
    shares_time = events.shares_time
    num_baskets = int((~shares_time).sum())
    places = np.array([min(window, target.position) for target in split.valid])
    return {
        "shared_time_share": _share(shares_time),
        "mean_size": round(len(shares_time) / num_baskets, 2),
        "window_in_basket_share": _share((events.time[rows] == events.time[rows - places]) & (places > 0)),
    }


def _returns(events: Events, rows: NDArray[np.int64], window: int) -> Facts:
    """`in_window_share` and `older_share` add up to `targets_share`: the latest event of the item is in one of them."""
    gaps, days = events.gap[rows], events.days[events.is_train & (events.gap > 0)]
    return {
        "train_share": _share(events.gap[events.is_train] > 0),
        "targets_share": _share(gaps > 0),
        "in_window_share": _share((gaps > 0) & (gaps <= window)),
        "older_share": _share(gaps > window),
        "median_days": round(float(np.median(days)), 2) if len(days) else None,
    }


def _cold(split: Split, tokens: NDArray[np.int64], truths: NDArray[np.int64]) -> Facts:
    found = _popularity(split, tokens)[truths]
    return {"no_event_share": _share(found == 0), "few_events_share": _share(found < FEW_EVENTS)}


def _popularity(split: Split, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """(V,) events of the train period."""
    return np.bincount(tokens, weights=split.popularity).astype(np.float64)


def _share(chosen: NDArray[np.bool_]) -> float:
    return round(float(chosen.mean()), 4) if len(chosen) else 0.0
