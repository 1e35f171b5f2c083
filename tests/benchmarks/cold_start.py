"""What the first list of a new user is worth: popular items alone, and with places for items that trend and new ones.

In: data sets. Users whose first event is in the valid period are new; the test period is not read. The list of each is
made by the functions of the service from what was known right before the event: popularity of the train period, the
live counts of the newest days, and the items that had come. Out: Recall and NDCG at 10 for each mix, and what it gains
over popular items alone, with 95 % intervals by user. Prints a table for each data set and, last, one line of JSON.

    PYTHONPATH=. python tests/benchmarks/cold_start.py DATA [DATA ...] [--known] [--mix 7,2,1 ...] [--least-trend 0]

The data do not tell when an item came: it is the time of its first event. So the first event of an item is a miss for
every list, and a new item without events is never shown. `--known`: events of users with a history, who get this list
when the model does not answer; what they had is left out if users of the data do not come back to items.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model_store.answers import LATEST, POPULAR, TRENDING, RowCounts, Source
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from service.settings import Settings
from service.store.counts import KEPT_DAYS, SECONDS_PER_DAY, Counts
from service.usecases.counting import NUM_COUNTED
from service.usecases.live import LEAST_TREND, certain, decayed, falling, trends
from service.usecases.ranking.cold_start import ColdStart
from tests.benchmarks.machine import last_line, table
from training.data.dataset import Dataset, load_dataset
from training.data.splits import Split, sample_targets, time_split
from training.run.metrics import Interval, paired_bootstrap, rank_in_list, ranks_to_metrics

Rows = NDArray[np.int64]
Mix = tuple[int, int, int]  # shares of popular, trending and new items

K = 10
ALONE: Mix = (1, 0, 0)
MIXES: Sequence[Mix] = (ALONE, (9, 1, 0), (9, 0, 1), (8, 1, 1), (7, 2, 1), (6, 3, 1), (5, 5, 0), (1, 9, 0), (1, 0, 9))
NEVER = np.iinfo(np.int64).max
_MOST_KNOWN = 2000  # events of known users, drawn by seed


class Asked(NamedTuple):
    """A list is made for `user` at `now`, who then chooses `row`. `hidden`: rows that are not shown."""

    user: int
    now: int
    row: int
    hidden: Rows = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Log:
    """All events by time: `users`, `rows` of items and `times` (n,). `came` (N,): time of each item's first event.

    `until` (n,): when the event is not counted any more, because its user has sent so many since.
    """

    users: Rows
    rows: Rows
    times: Rows
    until: Rows
    came: Rows

    @classmethod
    def of(cls, events: pl.DataFrame, num_items: int) -> "Log":
        """`events`: user, row and timestamp, in the order of each user's history."""
        until = pl.col("timestamp").shift(-NUM_COUNTED).over("user").fill_null(NEVER)
        events = events.with_columns(until=until).sort("timestamp", maintain_order=True)
        users, rows, times, ends = (events[name].to_numpy() for name in ("user", "row", "timestamp", "until"))
        came = np.full(num_items, NEVER)
        np.minimum.at(came, rows, times)
        return cls(users, rows, times, ends, came)

    def days_before(self, now: int) -> dict[int, Counts]:
        """The live counts of the service at `now`: a user counts once for each item and day."""
        stop = int(np.searchsorted(self.times, now))
        newest = int(self.times[stop - 1]) // SECONDS_PER_DAY
        start = int(np.searchsorted(self.times, (newest - KEPT_DAYS + 1) * SECONDS_PER_DAY))
        kept = np.flatnonzero(self.until[start:stop] >= now) + start
        cells = np.stack([self.times[kept] // SECONDS_PER_DAY, self.rows[kept], self.users[kept]], axis=1)
        days, rows = np.unique(cells, axis=0)[:, :2].T
        found: dict[int, Counts] = {}
        for day in np.unique(days).tolist():
            items, counts = np.unique(rows[days == day], return_counts=True)
            found[day] = Counts(np.stack([items, items], axis=1).astype(np.uint64), counts.astype(np.float64))
        return found


class World:
    """The catalogue and the live counts as they were at any time of the valid period."""

    def __init__(self, dataset: Dataset, split: Split, least_trend: float) -> None:
        self.split, self._least_trend = split, least_trend
        later = [int(own.timestamps[own.train_end]) for own in split.histories if own.train_end < len(own.items)]
        self.valid_from = min(later)
        self.last = max(int(split.histories[each.user].timestamps[each.position]) for each in split.valid)
        self.items = dataset.items.select("item_id", "title").with_row_index("row")
        self.events = dataset.interactions.join(self.items, on="item_id", maintain_order="left").select(
            "timestamp", user=pl.col("user_id").rank("dense").cast(pl.Int64), row=pl.col("row").cast(pl.Int64)
        )
        self.log = Log.of(self.events, len(self.items))
        is_train = self.log.times < self.valid_from
        popularity = np.bincount(self.log.rows[is_train], minlength=len(self.items)).tolist()
        columns = zip(self.items["item_id"], self.items["title"], popularity, self.log.came.tolist(), strict=True)
        self._trained = Catalogue([Item(name, title, count, added_at=came) for name, title, count, came in columns])

    def new_users(self) -> list[Asked]:
        first = self.events.group_by("user", maintain_order=True).first()
        first = first.filter(pl.col("timestamp").is_between(self.valid_from, self.last))
        return [Asked(user, now, row) for user, now, row in first.select("user", "timestamp", "row").iter_rows()]

    def known_users(self) -> list[Asked]:
        rows = dict(zip(self.items["item_id"], self.items["row"].cast(pl.Int64), strict=True))
        row_of = np.array([rows[item_id] for item_id in self.split.item_ids])
        found = []
        for target in sample_targets(self.split.valid, _MOST_KNOWN, seed=0):
            own, place = self.split.histories[target.user], target.position
            hidden = row_of[own.hidden(place, hides_seen=not self.split.has_repeats)]
            found.append(Asked(target.user, int(own.timestamps[place]), int(row_of[own.items[place]]), hidden))
        return found

    def at(self, now: int) -> tuple[Catalogue, Rows, NDArray[np.bool_]]:
        """The catalogue, the rows that trend, and which items (N,) had come."""
        days = self.log.days_before(now)
        live = _by_row(decayed(days, Settings.model_fields["live_half_life_days"].default))
        trending = certain(falling(_by_row(trends(days))), self._least_trend)
        return self._trained.with_live(live.by_row(len(self.items))), trending, self.log.came < now


def _by_row(counts: Counts) -> RowCounts:
    return RowCounts.none()._replace(rows=counts.pairs[:, 0].astype(np.int64), counts=counts.counts)


def ranks(world: World, asked: Sequence[Asked], mixes: Sequence[Mix]) -> Iterator[list[int]]:
    """Of each list, the rank of what was chosen in the list of each mix. `asked` by time."""
    now, catalogue, trending, has_come = -1, *world.at(asked[0].now)
    starts = [ColdStart(shares_of(mix), lambda: trending) for mix in mixes]
    for each in asked:
        if each.now != now:
            now, catalogue, trending, has_come = each.now, *world.at(each.now)
        allowed = has_come.copy()
        allowed[each.hidden] = False
        lists = [start.items(catalogue, allowed, K, now) for start in starts]
        yield [rank_in_list([item.row for item in found], each.row) for found in lists]


def shares_of(mix: Mix) -> dict[Source, int]:
    return dict(zip((POPULAR, TRENDING, LATEST), mix, strict=True))


def measure(path: Path, mixes: Sequence[Mix], *, known: bool, least_trend: float) -> dict[str, Any]:
    dataset = load_dataset(path)
    world = World(dataset, time_split(dataset), least_trend)
    asked = sorted(world.known_users() if known else world.new_users(), key=lambda each: each.now)
    found = np.array(list(ranks(world, asked, mixes))).T
    metrics = {mix: ranks_to_metrics(own) for mix, own in zip(mixes, found, strict=True)}
    columns = {(mix, name): metrics[mix][name] for mix in mixes for name in ("recall@10", "ndcg@10")}
    means = paired_bootstrap(columns, np.array([each.user for each in asked]))
    lines = {
        ",".join(map(str, mix)): {
            name: (means.means[mix, name], *means.difference((mix, name), (ALONE, name)))
            for name in ("recall@10", "ndcg@10")
        }
        for mix in mixes
    }
    num_firsts = sum(int(world.log.came[each.row]) >= each.now for each in asked)
    return {"data": path.name, "lists": len(asked), "of items that come with them": num_firsts, "mixes": lines}


def shown(result: dict[str, Any]) -> str:
    head = ["popular, trending, new", "Recall@10", "NDCG@10", "gain in Recall@10", "gain in NDCG@10"]
    rows = [
        [mix, *(f"{line[name][0]:.4f}" for name in line), *(_interval(line[name][1:]) for name in line)]
        for mix, line in result["mixes"].items()
    ]
    return f"{result['data']}: {result['lists']} lists\n\n" + table([head, *rows])


def _interval(interval: Interval) -> str:
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*interval)


def _mix(text: str) -> Mix:
    popular, trending, latest = map(int, text.split(","))
    return popular, trending, latest


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="directories of data sets")
    parser.add_argument("--known", action="store_true", help="users with a history, in the place of new users")
    parser.add_argument("--mix", type=_mix, nargs="+", default=MIXES, help="as AUTOMR_COLD_START")
    parser.add_argument("--least-trend", type=float, default=LEAST_TREND, help="standard deviations")
    options = parser.parse_args(argv)
    mixes, results = list(dict.fromkeys((ALONE, *options.mix))), []
    for path in options.data:
        results.append(measure(path, mixes, known=options.known, least_trend=options.least_trend))
        print(shown(results[-1]), end="\n\n", flush=True)
    print(last_line("cold_start", {"known": options.known, "least_trend": options.least_trend, "data": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
