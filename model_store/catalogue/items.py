"""Items: the item, the file of items, and the list of items by row.

The file is UTF-8 with one JSON object per line; line number = row. A million parsed items take a gigabyte and many
seconds, so an opened bundle maps the file into memory and parses a line when its item is needed. Everything here is
immutable.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from immutables import Map
from numpy.typing import NDArray

from model_store.text.history import clean_title

ADDED_AT = "automr_added_at"  # the column of a data set's items that holds `Item.added_at`
_NUM_CACHED = 50_000  # parsed lines
_JOURNAL_SHARE, _LEAST_JOURNAL = 2, 10_000  # a journal longer than this many times the changed items is begun again


@dataclass(frozen=True)
class Item:
    """An item of the catalogue.

    `popularity`: interactions in training. Available from `available_from` (included) to `available_until` (excluded),
    epoch seconds, None = open, and never if `hidden`. `added_at`: when it came while a service ran, epoch seconds; None
    for an item of which no service saw it come.
    """

    item_id: str
    title: str
    popularity: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    hidden: bool = False
    available_from: int | None = None
    available_until: int | None = None
    added_at: int | None = None


def write_items(items: Iterable[Item], path: Path) -> NDArray[np.int64]:
    """Write the file of items. Returns (N + 1,): the offset of each line, and the size of the file."""
    sizes = [0]
    with path.open("wb") as file:
        for item in items:
            fields = {name: value for name, value in vars(item).items() if (name, value) != ("added_at", None)}
            sizes.append(file.write((json.dumps(fields, ensure_ascii=False) + "\n").encode()))
    return np.cumsum(sizes, dtype=np.int64)


def read_items(path: Path) -> list[Item]:
    with path.open("rb") as file:
        return [_parse(line) for line in file]


def clean(item: Item) -> Item:
    """The item with its title as the prompt shows it. Raises ValueError if the title has no visible text."""
    title = clean_title(item.title)
    if not title:
        raise ValueError(f"item {item.item_id!r} has no visible title")
    return replace(item, title=title)


class MappedItems(Sequence[Item]):
    """The items of a memory-mapped file. Line i is at [starts[i], starts[i + 1]). Thread-safe."""

    def __init__(self, file: Path, starts: NDArray[np.int64]) -> None:
        """Raises ValueError if the size of the file does not fit `starts`."""
        size = file.stat().st_size
        if not len(starts) or starts[-1] != size:
            raise ValueError(f"{file}: has {size} bytes, which does not fit the offsets of its lines")
        text = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray) if size else np.empty(0, dtype=np.uint8)
        self._starts = starts
        # A cache of a function, not of a method: the items are freed at once, without the garbage collector.
        self.at: Callable[[int], Item] = lru_cache(maxsize=_NUM_CACHED)(partial(_item_at, text, starts))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> list[Item]: ...
    def __getitem__(self, row: int | slice) -> Item | list[Item]:
        if isinstance(row, slice):
            return [self.at(each) for each in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"no row {row} of {len(self)}")
        return self.at(row % len(self))


def _item_at(text: NDArray[np.uint8], starts: NDArray[np.int64], row: int) -> Item:
    return _parse(text[starts[row] : starts[row + 1]].tobytes())


class ItemList(Sequence[Item]):
    """`base` with other items at the rows of `changed`; rows from len(base) on are new. Thread-safe.

    A list and the lists that `replaced` made from it share what did not change, and a journal of the changed rows.
    """

    def __init__(self, base: list[Item] | MappedItems, changed: Mapping[int, Item] | None = None) -> None:
        self.base = base
        self.changed: Map[int, Item] = Map(changed or {})
        self._length = max(len(base), max(self.changed, default=-1) + 1)
        self._journal: list[int] = []  # lists that were made later append to it
        self._position = 0  # the end of the journal for this list
        self.base_at: Callable[[int], Item] = base.at if isinstance(base, MappedItems) else base.__getitem__

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> list[Item]: ...
    def __getitem__(self, row: int | slice) -> Item | list[Item]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        place = row + len(self) if row < 0 else row
        found = self.changed.get(place)
        return self.base[place] if found is None else found

    def at(self, rows: Iterable[int]) -> list[Item]:
        """The items at `rows`, which exist and are not negative."""
        changed, base_at = self.changed, self.base_at
        return [changed[row] if row in changed else base_at(row) for row in rows]

    def replaced(self, changes: Mapping[int, Item]) -> "ItemList":
        """A list with other items at the rows of `changes`. The cost depends on the number of changes only."""
        made = copy(self)
        made.changed = self.changed.update(changes)
        made._length = max(len(self), max(changes, default=-1) + 1)
        is_newest = len(self._journal) == self._position
        is_short = self._position <= _JOURNAL_SHARE * len(made.changed) + _LEAST_JOURNAL
        if is_newest and is_short:
            self._journal.extend(changes)
        else:
            made._journal = list(changes)
        made._position = len(made._journal)
        return made

    def changed_since(self, earlier: "ItemList") -> Iterable[int]:
        """Rows whose items may differ from those of `earlier`; few if this list was made from it a short time ago."""
        if earlier._journal is self._journal and earlier._position <= self._position:
            return set(self._journal[earlier._position : self._position])
        return {*self.changed, *earlier.changed}


def _parse(line: bytes) -> Item:
    return Item(**json.loads(line))
