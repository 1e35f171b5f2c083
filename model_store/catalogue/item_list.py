"""Items by row: those of a file, read where they are asked for, below those that changed since.

A million parsed items take a gigabyte and many seconds; their lines in a mapped file take neither. Knows nothing of
what an item is. Thread-safe, immutable.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Lines(Sequence[T]):
    """Line i of `file` is [starts[i], starts[i + 1]), parsed each time it is asked for."""

    def __init__(self, file: Path, starts: NDArray[np.int64], parse: Callable[[bytes], T]) -> None:
        """Raises ValueError when the lines do not fill the file."""
        size = file.stat().st_size
        if not len(starts) or starts[-1] != size:
            raise ValueError(f"{file}: has {size} bytes, its lines are elsewhere")
        self._text = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray) if size else np.empty(0, dtype=np.uint8)
        self._starts, self._parse = starts, parse

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> T: ...
    @overload
    def __getitem__(self, row: slice) -> list[T]: ...
    def __getitem__(self, row: int | slice) -> T | list[T]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"no row {row} of {len(self)}")
        row %= len(self)
        return self._parse(self._text[self._starts[row] : self._starts[row + 1]].tobytes())


class ItemList(Sequence[T]):
    """`base`, but other items at the rows of `changed`; rows from len(base) on are new."""

    def __init__(self, base: Sequence[T], changed: Mapping[int, T] | None = None) -> None:
        self.base = base
        self.changed = dict(changed or {})
        self._length = max(len(base), max(self.changed, default=-1) + 1)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, row: int) -> T: ...
    @overload
    def __getitem__(self, row: slice) -> list[T]: ...
    def __getitem__(self, row: int | slice) -> T | list[T]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        place = row + len(self) if row < 0 else row
        return self.changed[place] if place in self.changed else self.base[place]

    def replaced(self, changes: Mapping[int, T]) -> "ItemList[T]":
        return ItemList(self.base, {**self.changed, **changes})
