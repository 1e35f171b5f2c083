"""Follows the live counts of the store and gives them to the model, so that popularity and near items stay up to date.

    p(item) and what goes together  =  of training  +  Σ_day 2^(−(newest day − day) / half-life) · count of the day

Each server looks for days whose counts have changed, loads these, and sends the sums to its model. The newest day that
was counted is "now", so sums follow from the events alone. Knows no HTTP.
"""

import asyncio
import math
import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model_store.answers import RowCounts
from model_store.catalogue.catalogue import Catalogue
from model_store.view import BundleView
from service.background import Repeated
from service.engine.engine import Engine
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.counts import Counts
from service.usecases.items import Items
from service.usecases.seen import SeenRows

_LOOK_EVERY_S = 5.0
_TREND_HALF_LIFE_DAYS, _TREND_DAYS = 1.0, 14
LEAST_TREND = 3.0  # standard deviations; a new item needs four or five users on one day


class LiveCounts:
    """For one event loop."""

    def __init__(
        self,
        view: BundleView,
        engine: Engine,
        store: MemoryStore,
        items: Items,
        metrics: Metrics,
        *,
        half_life_days: float,
    ) -> None:
        """`half_life_days` 0: live counts are not used."""
        self.view, self.engine, self.store, self.items = view, engine, store, items
        self._half_life_days = half_life_days
        self._rows = SeenRows(view.catalogue)
        self._changes: dict[int, int] = {}  # of the days that are loaded
        self._days: dict[int, Counts] = {}
        self.trends = RowCounts.none()  # how far the newest days exceed what was expected, the most first; see `trends`
        self._num_items = 0  # of the catalogue for which the model has counts
        self._looked_at = time.monotonic()
        self._looking = asyncio.Lock()
        self.following = Repeated("live-counts", self.catch_up, every_s=_LOOK_EVERY_S, at_once=True)
        self._metrics = metrics

    def show_metrics(self) -> None:
        """The gauge is that of this bundle from now on."""
        if self._half_life_days:
            self._metrics.live_counts_age_seconds.set_function(lambda: time.monotonic() - self._looked_at)

    def start(self) -> None:
        if self._half_life_days:
            self.following.start()

    async def stop(self) -> None:
        await self.following.stop()

    async def catch_up(self) -> None:
        """Loads the days that changed. Costs one read of the store when there are none.

        Raises StoreUnavailable, ModelUnavailable or ModelFailed; the next call repeats what was not done.
        """
        async with self._looking:
            changes = await self.store.counted_days()
            catalogue = self.view.catalogue
            if changes != self._changes or (changes and len(catalogue) != self._num_items):
                await self._load(changes)
                counts, self.trends = await asyncio.to_thread(self._sums_and_trends, catalogue)
                await self.items.recount(counts.by_row(len(catalogue)))
                await self.engine.count_items(counts)
                self._changes, self._num_items = changes, len(catalogue)
            self._looked_at = time.monotonic()

    async def _load(self, changes: Mapping[int, int]) -> None:
        for day in self._days.keys() - changes.keys():
            del self._days[day]
        for day, number in changes.items():
            if self._changes.get(day) != number:
                self._days[day] = await self.store.counts_of(day)

    def trending(self) -> NDArray[np.int64]:
        """Rows of the items that trend more than chance explains, best first."""
        return certain(self.trends)

    def _sums_and_trends(self, catalogue: Catalogue) -> tuple[RowCounts, RowCounts]:
        """Counts of items that the catalogue does not know are left out."""
        sums = decayed(self._days, self._half_life_days)
        return self._by_row(sums, catalogue), falling(self._by_row(trends(self._days), catalogue))

    def _by_row(self, found: Counts, catalogue: Catalogue) -> RowCounts:
        pairs, counts = found
        rows = self._rows.rows_of(pairs.ravel(), catalogue).reshape(-1, 2)
        is_known = (rows >= 0).all(axis=1)
        rows, counts = rows[is_known], counts[is_known]
        is_item = rows[:, 0] == rows[:, 1]
        return RowCounts(rows[is_item, 0], counts[is_item], rows[~is_item], counts[~is_item])


def decayed(days: Mapping[int, Counts], half_life_days: float) -> Counts:
    """The sum over days, where a count halves with each half-life before the newest day."""
    if not days:
        return Counts(np.zeros((0, 2), dtype=np.uint64), np.zeros(0))
    newest = max(days)
    pairs = np.concatenate([part.pairs for part in days.values()])
    counts = np.concatenate([part.counts * 2.0 ** ((day - newest) / half_life_days) for day, part in days.items()])
    return _summed(pairs, counts)


def trends(days: Mapping[int, Counts]) -> Counts:
    """Of each item, how far the events of the newest days exceed what all days let expect, in standard deviations.

    (recent − expected) / √(expected + 1), where a day of `recent` counts half after `_TREND_HALF_LIFE_DAYS`, and
    `expected` is what `recent` would be if the item's events were spread over `_TREND_DAYS`, or over all counted days
    if those are more. Items at or below what is expected are left out.
    """
    if not days:
        return decayed(days, 1.0)
    newest, num_days = max(days), max(_TREND_DAYS, max(days) - min(days) + 1)
    items = {day: Counts(part.pairs[own], part.counts[own]) for day, part in days.items() for own in [_is_item(part)]}
    whole, recent = decayed(items, math.inf), decayed(items, _TREND_HALF_LIFE_DAYS)
    weight = sum(2.0 ** (-age / _TREND_HALF_LIFE_DAYS) for age in range(min(num_days, newest + 1)))
    expected = whole.counts * weight / num_days
    excess = (recent.counts - expected) / np.sqrt(expected + 1)
    return Counts(whole.pairs[excess > 0], excess[excess > 0])


def falling(found: RowCounts) -> RowCounts:
    """The items by their counts, the largest first; of equal ones the higher row, which came later."""
    order = np.lexsort((-found.rows, -found.counts))
    return found._replace(rows=found.rows[order], counts=found.counts[order])


def certain(trends: RowCounts, least: float = LEAST_TREND) -> NDArray[np.int64]:
    """The rows of those that trend by at least `least` standard deviations. `trends`: sorted, the most first."""
    return trends.rows[: np.searchsorted(-trends.counts, -least, side="right")]


def _is_item(counts: Counts) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = counts.pairs[:, 0] == counts.pairs[:, 1]
    return found


def _summed(pairs: NDArray[np.uint64], counts: NDArray[np.float64]) -> Counts:
    """Equal pairs as one."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, counts = pairs[order], counts[order]
    is_first = np.ones(len(pairs), dtype=bool)
    is_first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return Counts(pairs[is_first], np.bincount(np.cumsum(is_first) - 1, counts).astype(np.float64))
