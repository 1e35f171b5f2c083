"""Pages of the catalogue: the items whose id or title contains all words of a query, and that pass a filter, by row.

A row never changes while a bundle serves and new items come last, so pages neither repeat nor lose an item. The lines
of all items of the bundle are searched as one text, which is made at the first search. Knows no HTTP.
"""

import asyncio
import base64
import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.conditions import Condition
from model_store.catalogue.filters import Filters
from model_store.catalogue.items import Item
from model_store.view import BundleView
from service.errors import BadRequest, UnknownItem
from service.usecases.items import Items

_MOST_LOOKED = 20_000  # items that one call looks at


class ItemPage(NamedTuple):
    items: list[Item]
    next_cursor: str | None


class ItemList:
    def __init__(self, view: BundleView, items: Items) -> None:
        self.view, self.items = view, items
        self._filters = Filters()
        self._lines: _Lines | None = None
        self._making = asyncio.Lock()

    async def page(self, query: str, condition: Condition | None, limit: int, cursor: str | None) -> ItemPage:
        """Up to `limit` items, hidden ones too. A page may be short, even empty, and have a next one.

        Raises BadRequest for a cursor that this service did not make for the catalogue of today.
        """
        start = 0 if cursor is None else self._read(cursor)
        words = query.casefold().split()
        async with self._making:  # the lines and a new mask take long: not twice at once
            rows, next_row = await asyncio.to_thread(self._rows, self.view.catalogue, words, condition, limit, start)
        items = self.view.catalogue.items.at(rows)
        found = [item for item in items if await self._exists(item)]
        return ItemPage(found, None if next_row is None else self._write(next_row))

    async def _exists(self, item: Item) -> bool:
        """False for a deleted item, of which the catalogue keeps the title."""
        try:
            await self.items.get(item.item_id)
        except UnknownItem:
            return False
        return True

    def _rows(
        self, catalogue: Catalogue, words: Sequence[str], condition: Condition | None, limit: int, start: int
    ) -> tuple[list[int], int | None]:
        """The rows of a page from row `start` on, and where the next page begins."""
        mask = None if condition is None else self._filters.mask(catalogue, condition)
        found: list[int] = []
        for looked, row in enumerate(self._matching(catalogue, words, start)):
            if len(found) == limit or looked == _MOST_LOOKED:
                return found, row
            if mask is None or (row < len(mask) and mask[row]):
                found.append(row)
        return found, None

    def _matching(self, catalogue: Catalogue, words: Sequence[str], start: int) -> Iterator[int]:
        """Rows from `start` on, in order."""
        if not words:
            return iter(range(start, len(catalogue)))
        lines = self._lines
        if lines is None or not lines.is_of(catalogue):
            lines = self._lines = _Lines(catalogue)
        changed = catalogue.items.changed
        own = (row for row in lines.matching(words, start) if row not in changed)
        later = sorted(row for row, item in changed.items() if row >= start and _has_words(_line(item), words))
        return heapq.merge(own, later)

    def _write(self, row: int) -> str:
        return base64.urlsafe_b64encode(f"{row}:{self.view.manifest.name}".encode()).decode().rstrip("=")

    def _read(self, cursor: str) -> int:
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        except ValueError:
            raw = ""
        row, _, bundle = raw.partition(":")
        if not row.isdecimal() or len(row) > 12:
            raise BadRequest("The cursor was not made by this service.")
        if bundle != self.view.manifest.name:
            raise BadRequest("The cursor is of another bundle; start with the first page again.")
        return int(row)


class _Lines:
    """The ids and titles of the items that a catalogue was opened with, in small letters, one item a line."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._items = catalogue.items.base
        lines = [_line(item) for item in self._items]
        self._text = "\n".join(lines)
        self._starts = list(accumulate((len(line) + 1 for line in lines), initial=0))

    def is_of(self, catalogue: Catalogue) -> bool:
        return catalogue.items.base is self._items

    def matching(self, words: Sequence[str], start: int) -> Iterator[int]:
        rarest = max(words, key=len)
        at = self._starts[min(start, len(self._starts) - 1)]
        while (at := self._text.find(rarest, at)) >= 0:
            row = bisect_right(self._starts, at) - 1
            if _has_words(self._text[self._starts[row] : self._starts[row + 1]], words):
                yield row
            at = self._starts[row + 1]


def _line(item: Item) -> str:
    return f"{item.item_id} {item.title}".casefold().replace("\n", " ")


def _has_words(line: str, words: Sequence[str]) -> bool:
    return all(word in line for word in words)
