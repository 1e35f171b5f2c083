"""Items that exploration has shown often enough: for them it ends, whatever users did with them.

In: the counts of the store, which the lists that were shown add to. Out: rows of a catalogue. Every server reads which
items have reached the limit every few seconds, so some lists more may show an item. Knows no HTTP.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.catalogue import Catalogue
from service.background import Repeated
from service.store.shown import ShownStore

_LOOK_EVERY_S = 5.0


class ExploredItems:
    """For one event loop. `most`: times that exploration shows an item; 0: without end."""

    def __init__(self, store: ShownStore, *, most: int) -> None:
        self._store, self._most = store, most
        self.item_ids: list[str] = []  # replaced as a whole
        self._following = Repeated("explored-items", self.catch_up, every_s=_LOOK_EVERY_S, at_once=True)

    def start(self) -> None:
        if self._most:
            self._following.start()

    async def stop(self) -> None:
        await self._following.stop()

    async def catch_up(self) -> None:
        """Costs one number where no further item has reached the limit. Raises StoreUnavailable."""
        if await self._store.num_explored(self._most) != len(self.item_ids):
            self.item_ids = await self._store.explored(self._most)

    def rows(self) -> Callable[[Catalogue], NDArray[np.int64]]:
        """For the catalogues of one bundle: the rows (n,) of the items for which exploration has ended."""
        known: tuple[list[str], int, NDArray[np.int64]] = [], 0, np.zeros(0, dtype=np.int64)

        def rows_of(catalogue: Catalogue) -> NDArray[np.int64]:
            nonlocal known
            item_ids, num_items, rows = known
            if item_ids is not self.item_ids or (num_items != len(catalogue) and len(rows) < len(item_ids)):
                item_ids, num_items = self.item_ids, len(catalogue)
                found = (catalogue.rows.get(item_id) for item_id in item_ids)
                rows = np.array([row for row in found if row is not None], dtype=np.int64)
                known = item_ids, num_items, rows
            return rows[rows < len(catalogue)]

        return rows_of
