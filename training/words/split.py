"""Splits the events and queries of a data set into periods, and makes targets of the queries.

In: a `Dataset` with queries. Out: a `WordsSplit`. The times at 80 % and 90 % of the queries separate train, valid and
test. A *target* is a user and a query, with the time when the user first wrote it in the period; its *answers* are all
items that the user chose after this query from then on, to the end of the period. What may be known of a target is what
its user did before the target's day. Documents, tables and global memory are made of the train period.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model_store.text.history import derived_event_id
from model_store.words.events import DAY_S, WordEvent
from training.data.dataset import DataError, Dataset
from training.run.stage import digest

TRAIN, VALID, TEST = 0, 1, 2
VALID_AT, TEST_AT = 0.8, 0.9


@dataclass(frozen=True)
class QueryTarget:
    """`answers`: rows of items, in ascending order. `user` is a number of `WordsSplit.user_ids`."""

    user: int
    query: str
    timestamp: int
    answers: NDArray[np.int64]


@dataclass(frozen=True)
class WordsSplit:
    """All events, sorted by user, time, item and query. `query` is "" where the user wrote nothing."""

    name: str
    item_ids: list[str]
    titles: list[str]
    attributes: list[dict[str, Any]]
    user_ids: list[str]
    starts: NDArray[np.int64]  # (users + 1,) the first event of each user, and the number of events
    items: NDArray[np.int64]  # (events,) rows of items
    timestamps: NDArray[np.int64]
    queries: list[str]
    periods: NDArray[np.int8]
    cuts: tuple[int, int]  # the first second of the valid and of the test period

    @cached_property
    def popularity(self) -> NDArray[np.int64]:
        """(N,) events of the train period."""
        return np.bincount(self.items[self.periods == TRAIN], minlength=len(self.item_ids))

    @cached_property
    def users(self) -> NDArray[np.int64]:
        """(events,) the number of the user."""
        return np.repeat(np.arange(len(self.user_ids)), np.diff(self.starts))

    def history(self, user: int, before: int) -> list[WordEvent]:
        """The events of a user before the day of the second `before`, oldest first."""
        first, last = int(self.starts[user]), int(self.starts[user + 1])
        end = first + int(np.searchsorted(self.timestamps[first:last], before // DAY_S * DAY_S, side="left"))
        return [self.event(place) for place in range(first, end)]

    def event(self, place: int) -> WordEvent:
        user, item = self.user_ids[self.users[place]], int(self.items[place])
        time, query = int(self.timestamps[place]), self.queries[place]
        return WordEvent(derived_event_id(user, self.item_ids[item], time, query), item, time, query)

    def targets(self, period: int) -> list[QueryTarget]:
        """By user and time. The answers of a target are within the period."""
        found: dict[tuple[int, str], tuple[int, set[int]]] = {}
        for place in np.flatnonzero(self.periods == period).tolist():
            if self.queries[place]:
                key = int(self.users[place]), self.queries[place]
                found.setdefault(key, (int(self.timestamps[place]), set()))[1].add(int(self.items[place]))
        return [
            QueryTarget(user, query, time, np.array(sorted(answers), dtype=np.int64))
            for (user, query), (time, answers) in found.items()
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any event, title, attribute or cut."""
        events = [self.items.tobytes().hex(), self.timestamps.tobytes().hex(), self.queries, self.starts.tolist()]
        return digest([self.item_ids, self.titles, self.attributes, self.user_ids, self.cuts, events])


def words_split(dataset: Dataset, item_ids: Sequence[str] | None = None) -> WordsSplit:
    """`item_ids`: the order of the rows, all items of the data set; by default that of the data set.

    Raises DataError where the data set has no queries, or a period has none."""
    if dataset.queries is None or dataset.queries.is_empty():
        raise DataError(f"{dataset.name}: no queries; a data set for words has queries.parquet (training.prepare)")
    items = dataset.items if item_ids is None else _in_order(dataset, item_ids)
    cuts = _cuts(dataset.queries["timestamp"].to_numpy())
    events = _events(dataset)
    rows = {item: row for row, item in enumerate(items["item_id"])}
    user_ids = events["user_id"].unique().sort().to_list()
    times = events["timestamp"].to_numpy()
    split = WordsSplit(
        name=dataset.name,
        item_ids=items["item_id"].to_list(),
        titles=items["title"].to_list(),
        attributes=_attributes(items),
        user_ids=user_ids,
        starts=np.searchsorted(events["user_id"].rle_id().to_numpy(), np.arange(len(user_ids) + 1)),
        items=np.array([rows[item] for item in events["item_id"]], dtype=np.int64),
        timestamps=times,
        queries=events["query"].to_list(),
        periods=(times >= cuts[0]).astype(np.int8) + (times >= cuts[1]).astype(np.int8),
        cuts=cuts,
    )
    for name, period in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        if not any(query and of == period for query, of in zip(split.queries, split.periods.tolist(), strict=True)):
            raise DataError(f"{dataset.name}: the {name} period has no query; more data is needed")
    return split


def sample_query_targets(targets: Sequence[QueryTarget], limit: int, seed: int) -> list[QueryTarget]:
    """At most `limit` random targets, in order. With the same seed, a smaller sample is part of a larger one."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(targets))[:limit])
    return [targets[place] for place in chosen]


def _in_order(dataset: Dataset, item_ids: Sequence[str]) -> pl.DataFrame:
    if sorted(item_ids) != dataset.items["item_id"].to_list():
        raise DataError(f"{dataset.name}: the items are not those of the bundle; build the bundle from this data set")
    return pl.DataFrame({"item_id": item_ids}).join(dataset.items, on="item_id", how="left", maintain_order="left")


def _cuts(times: NDArray[np.int64]) -> tuple[int, int]:
    ordered = np.sort(times)
    valid, test = (int(ordered[min(int(share * len(ordered)), len(ordered) - 1)]) for share in (VALID_AT, TEST_AT))
    return valid, test


def _events(dataset: Dataset) -> pl.DataFrame:
    """Queries, and the interactions that no query explains, in order."""
    keys = ["user_id", "item_id", "timestamp"]
    queries = dataset.queries
    assert queries is not None
    others = dataset.interactions.select(keys).join(queries, on=keys, how="anti").with_columns(query=pl.lit(""))
    return pl.concat([queries.select(*keys, "query"), others]).sort("user_id", "timestamp", "item_id", "query")


def _attributes(items: pl.DataFrame) -> list[dict[str, Any]]:
    rows = items.drop("item_id", "title").to_dicts() or [{} for _ in range(items.height)]
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
