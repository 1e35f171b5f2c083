"""Items that exploration has shown often enough: for them it ends, whatever users did with them.

In: the items that have ended, from the store. Out: rows of the catalogue of each bundle, ready before a request asks.
Every server reads every few seconds which items are new among them, so some lists more may show an item. Knows no HTTP.
"""

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.catalogue import Catalogue
from model_store.view import BundleView
from service.background import Repeated
from service.store.feedback.explored import AT_ONCE, ExploredStore

_LOOK_EVERY_S = 5.0


class ExploredItems:
    """For one event loop."""

    def __init__(self, store: ExploredStore) -> None:
        self._store = store
        self._item_ids: list[str] = []  # only grows
        self._place, self._is_filled = 0, False
        self._of_bundles: list[ExploredRows] = []
        self._following = Repeated("explored-items", self.catch_up, every_s=_LOOK_EVERY_S, at_once=True)

    def start(self) -> None:
        if self._store.most:
            self._following.start()

    async def stop(self) -> None:
        await self._following.stop()

    async def catch_up(self) -> None:
        """Costs one read of the store when no further item has ended. Raises StoreUnavailable."""
        if not self._is_filled:
            await self._store.fill()
            self._is_filled = True
        is_last = False
        while not is_last:
            found, self._place = await self._store.ended(self._place)
            self._item_ids += found
            is_last = len(found) < AT_ONCE
        for rows in list(self._of_bundles):
            await asyncio.to_thread(rows.update)

    def add(self, view: BundleView) -> "ExploredRows":
        """Follows the catalogue of a bundle from now on."""
        rows = ExploredRows(view, self._item_ids)
        self._of_bundles.append(rows)
        return rows

    def remove(self, rows: "ExploredRows") -> None:
        self._of_bundles.remove(rows)


class ExploredRows:
    """The rows of one bundle. One thread at a time updates them; any may read."""

    def __init__(self, view: BundleView, item_ids: Sequence[str]) -> None:
        """`item_ids`: the items that have ended; may grow later."""
        self._view, self._item_ids = view, item_ids
        self._num_read, self._num_items = 0, 0
        self._unknown: list[str] = []  # items that the catalogue did not have when it was looked at
        self._rows: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # replaced as a whole
        self.update()

    def of(self, catalogue: Catalogue) -> NDArray[np.int64]:
        """(n,) the rows of this catalogue for which exploration has ended."""
        return self._rows[self._rows < len(catalogue)]

    def update(self) -> None:
        """Looks up items that are new, and those that the catalogue did not have, if it has grown."""
        rows, num_items, num_ended = self._view.catalogue.rows, len(self._view.catalogue), len(self._item_ids)
        asked = list(self._item_ids[self._num_read : num_ended])
        if num_items != self._num_items:
            asked, self._unknown = self._unknown + asked, []
        self._num_read, self._num_items = num_ended, num_items
        self._unknown += [item_id for item_id in asked if item_id not in rows]
        found = [rows[item_id] for item_id in asked if item_id in rows]
        if found:
            self._rows = np.append(self._rows, np.array(found, dtype=np.int64))
