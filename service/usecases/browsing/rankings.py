"""Lists that are the same for everybody: what is popular, what is chosen more than usual lately, what is new.

In: the catalogue and the live counts. Out: available items, best first. Knows no HTTP.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.conditions import Condition
from model_store.catalogue.filters import Filters
from model_store.view import BundleView
from service.usecases.live import LiveCounts

Ranking = Literal["popular", "trending", "latest"]


class RankedItem(NamedTuple):
    rank: int
    item_id: str
    title: str
    score: float


class Rankings:
    def __init__(self, view: BundleView, live: LiveCounts) -> None:
        self.view, self.live = view, live
        self._filters = Filters()
        self._making = asyncio.Lock()
        self._rank: dict[Ranking, Callable[[Catalogue, NDArray[np.bool_], int], _Scored]] = {
            "popular": _popular,
            "trending": self._trending,
            "latest": _latest,
        }

    async def of(self, ranking: Ranking, k: int, condition: Condition | None) -> list[RankedItem]:
        """Up to `k` available items that satisfy the condition."""
        catalogue = self.view.catalogue
        async with self._making:  # a new mask takes long: not twice at once
            rows, scores = await asyncio.to_thread(self._found, catalogue, ranking, k, condition)
        items = zip(catalogue.items.at(rows.tolist()), scores.tolist(), strict=True)
        return [RankedItem(rank, item.item_id, item.title, score) for rank, (item, score) in enumerate(items, start=1)]

    def _found(self, catalogue: Catalogue, ranking: Ranking, k: int, condition: Condition | None) -> "_Scored":
        among = None if condition is None else self._filters.mask(catalogue, condition)
        return self._rank[ranking](catalogue, catalogue.allowed(time.time(), among=among), k)

    def _trending(self, catalogue: Catalogue, allowed: NDArray[np.bool_], k: int) -> "_Scored":
        trends = self.live.trends
        best = np.flatnonzero(allowed[trends.rows])[:k]
        return _Scored(trends.rows[best], trends.counts[best].round(2))


class _Scored(NamedTuple):
    rows: NDArray[np.int64]
    scores: NDArray[np.float64]


def _popular(catalogue: Catalogue, allowed: NDArray[np.bool_], k: int) -> _Scored:
    rows = np.array(catalogue.most_popular(allowed, k), dtype=np.int64)
    return _Scored(rows, catalogue.popularity_of(rows).round(2))


def _latest(catalogue: Catalogue, allowed: NDArray[np.bool_], k: int) -> _Scored:
    rows = np.array(catalogue.latest(allowed, k), dtype=np.int64)
    return _Scored(rows, catalogue.added_at[rows].astype(np.float64))
