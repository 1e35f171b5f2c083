"""Which rows of the catalogue a user has had, from what the store keeps of it: 8 bytes for each event.

The catalogue's own digests are kept sorted, so that thousands of events are looked up at once. Event loop only.
"""

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.catalogue import Catalogue
from service.store.events import DIGEST_BYTES, item_digest

_NUM_CACHED = 4096  # digests that fit into the processor's cache


class SeenRows:
    def __init__(self, catalogue: Catalogue) -> None:
        self._digests = np.zeros(0, dtype=np.uint64)  # sorted
        self._rows = np.zeros(0, dtype=np.int64)
        self._follow(catalogue)

    def of(self, seen: bytes, catalogue: Catalogue) -> NDArray[np.int64]:
        """Rows of the items whose `item_digest` is in `seen`, in any order, some repeated. Unknown items have none.

        `catalogue` is the one of the last call, or has new items at its end.
        """
        self._follow(catalogue)
        wanted = _read(seen[: len(seen) // DIGEST_BYTES * DIGEST_BYTES])
        if len(self._digests) > _NUM_CACHED:
            wanted = np.sort(wanted)  # then neighbours are looked up next to each other
        places = np.searchsorted(self._digests, wanted)
        known = places < len(self._digests)
        places, wanted = places[known], wanted[known]
        return self._rows[places[self._digests[places] == wanted]]

    def _follow(self, catalogue: Catalogue) -> None:
        if len(catalogue.rows) > len(self._rows):
            added = dict(islice(catalogue.rows.items(), len(self._rows), None))  # it is in the order of rows
            digests = _read(b"".join(map(item_digest, added)))
            order = np.argsort(digests)
            places = np.searchsorted(self._digests, digests[order])
            self._digests = np.insert(self._digests, places, digests[order])
            self._rows = np.insert(self._rows, places, np.fromiter(added.values(), dtype=np.int64)[order])


def _read(digests: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(digests, dtype="<u8")
