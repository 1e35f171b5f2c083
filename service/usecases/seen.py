"""Which items count as seen: those of events whose type says so, for as long as it says, and those of the session.

The store keeps a digest and a time for the item of each such event (`service/store/lua/sorting.py`); `SeenRows` finds
the catalogue rows of these digests.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.catalogue import Catalogue
from service.store.events import SEEN, SEEN_FOR_EVER, item_digest

_NUM_CACHED = 4096  # digests that fit into the processor's cache


class SeenRows:
    """Sorted digests of the catalogue's items, so that thousands of digests are looked up in one call.

    For one event loop.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._digests = np.zeros(0, dtype=np.uint64)  # sorted
        self._rows = np.zeros(0, dtype=np.int64)
        self._follow(catalogue)

    def of(self, seen: bytes, catalogue: Catalogue, now: int) -> NDArray[np.int64]:
        """Rows of the items that `seen` names for the time `now`, in any order, some repeated. Unknown items have none.

        `catalogue` is the one of the last call, or has new items at its end.
        """
        entries = np.frombuffer(seen[: len(seen) // SEEN.itemsize * SEEN.itemsize], dtype=SEEN)
        until = entries["until"]
        wanted = entries["digest"][(until == SEEN_FOR_EVER) | (until > now)]
        if len(self._digests) > _NUM_CACHED:
            wanted = np.sort(wanted)  # then neighbours are looked up next to each other
        rows = self.rows_of(wanted, catalogue)
        return rows[rows >= 0]

    def rows_of(self, digests: NDArray[np.uint64], catalogue: Catalogue) -> NDArray[np.int64]:
        """(n,) the row of each digest (n,), −1 where the item is not known. `catalogue` as in `of`."""
        self._follow(catalogue)
        if not len(self._digests):
            return np.full(len(digests), -1)
        places = np.minimum(np.searchsorted(self._digests, digests), len(self._digests) - 1)
        return np.where(self._digests[places] == digests, self._rows[places], -1)

    def with_session(self, seen: NDArray[np.int64], item_ids: Sequence[str], catalogue: Catalogue) -> NDArray[np.int64]:
        """`seen` and the rows of the items of the session; unknown items are left out."""
        rows = [catalogue.rows[item_id] for item_id in item_ids if item_id in catalogue.rows]
        return np.append(seen, rows).astype(np.int64)

    def _follow(self, catalogue: Catalogue) -> None:
        if len(catalogue.rows) > len(self._rows):
            first = len(self._rows)
            digests = _read(b"".join(map(item_digest, catalogue.ids_from(first))))
            order = np.argsort(digests)
            places = np.searchsorted(self._digests, digests[order])
            self._digests = np.insert(self._digests, places, digests[order])
            self._rows = np.insert(self._rows, places, first + order)


def _read(digests: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(digests, dtype="<u8")
