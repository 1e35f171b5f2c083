"""Token sequences in sorted order: the trie walks over them, a bundle stores them, changed titles are spliced in.

Immutable. The arrays may be memory-mapped; they are never written to. Imports numpy only.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

_PAD = -1  # sorts before every token, so a sequence comes before its extensions
_SORT_SHARE = 16  # if more than 1/16 of the sequences change, all are sorted again
_FEW = 8  # changed sequences whose places are found without inverting `order`


@dataclass(frozen=True)
class Paths:
    """N sequences in sorted order.

    `order` (N,) int32: the row whose sequence is at a place. `tokens` (L, N) int32: column = place, padded with −1.
    """

    order: NDArray[np.int32]
    tokens: NDArray[np.int32]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Self:
        """Sort `sequences`; sequence i belongs to row i."""
        counts = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
        flat = np.fromiter(chain.from_iterable(sequences), dtype=np.int32, count=int(counts.sum()))
        return cls.from_flat(flat, counts)

    @classmethod
    def from_flat(cls, flat: NDArray[np.int32], counts: NDArray[np.int64]) -> Self:
        """As `of`, from the tokens of all sequences in one array and the length of each, `counts` (N,)."""
        return cls._sorted(_table(flat, counts))

    @classmethod
    def _sorted(cls, table: NDArray[np.int32]) -> Self:
        """Sort the columns of `table` (L, N), column = row."""
        if not table.size:
            return cls(np.arange(table.shape[1], dtype=np.int32), table)
        order = np.lexsort(table[::-1]).astype(np.int32)
        tokens = np.empty_like(table)
        for column, sorted_column in zip(table, tokens, strict=True):
            np.take(column, order, out=sorted_column)
        return cls(order, tokens)

    def __len__(self) -> int:
        return len(self.order)

    @cached_property
    def places(self) -> NDArray[np.int32]:
        """(N,) the place of each row's sequence; the inverse of `order`."""
        places = np.empty_like(self.order)
        places[self.order] = np.arange(len(self), dtype=np.int32)
        return places

    def sequence(self, place: int) -> tuple[int, ...]:
        column = self.tokens[:, place]
        return tuple(column[column != _PAD].tolist())

    def replaced(self, rows: NDArray[np.int64], sequences: Sequence[Sequence[int]]) -> "Paths":
        """A copy with other `sequences` for `rows`, which are all different. Rows from N on are new, without gaps.

        A small change is spliced in: that copies the table, but sorts nothing again.
        """
        fresh = Paths.of(sequences)
        old = _widened(self.tokens, len(fresh.tokens))
        new = _widened(fresh.tokens, len(old))
        known = rows[rows < len(self)]
        if len(rows) * _SORT_SHARE > len(self):
            table = np.full((len(old), int(max(len(self) - 1, rows.max(initial=-1))) + 1), _PAD, dtype=np.int32)
            table[:, self.order] = old
            table[:, rows[fresh.order]] = new
            return Paths._sorted(table)
        removed = np.sort(self.places[known]).tolist()
        added = [bisect_left(range(len(self)), _key(column), key=lambda place: _key(old[:, place])) for column in new.T]
        names = rows[fresh.order].astype(np.int32)
        made = Paths(_spliced(self.order[None], names[None], removed, added)[0], _spliced(old, new, removed, added))
        if len(rows) <= _FEW:
            made.__dict__["places"] = _moved(self.places, names, removed, added)
        return made


def _table(flat: NDArray[np.int32], counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """A padded table (L, N), one sequence a column."""
    table = np.full((int(counts.max(initial=0)), len(counts)), _PAD, dtype=np.int32)
    starts = counts.cumsum() - counts
    for depth, column in enumerate(table):
        rows = np.flatnonzero(counts > depth)
        column[rows] = flat[starts[rows] + depth]
    return table


def _widened(tokens: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    missing = length - len(tokens)
    return np.pad(tokens, ((0, missing), (0, 0)), constant_values=_PAD) if missing > 0 else tokens


def _key(column: NDArray[np.int32]) -> list[int]:
    keys: list[int] = column.tolist()
    return keys


def _moved(
    places: NDArray[np.int32], names: NDArray[np.int32], removed: Sequence[int], added: Sequence[int]
) -> NDArray[np.int32]:
    """`places` after the sequence of row `names[i]` came before the old place `added[i]`; see `_spliced`."""
    found = np.zeros(max(len(places), int(names.max(initial=-1)) + 1), dtype=np.int32)
    kept = found[: len(places)]
    kept[:] = places
    for place in removed:
        kept -= places > place
    for place in added:
        kept += places >= place
    found[names] = [place + number - bisect_left(removed, place) for number, place in enumerate(added)]
    return found


def _spliced(
    old: NDArray[np.int32], new: NDArray[np.int32], removed: Sequence[int], added: Sequence[int]
) -> NDArray[np.int32]:
    """`old` (L, N) without the columns `removed`, with column i of `new` inserted before the old column `added[i]`.

    `removed` and `added` are in ascending order.
    """
    events = sorted(
        [*((place, 1, 0) for place in removed), *((place, 0, number) for number, place in enumerate(added))]
    )
    pieces, start = [], 0
    for place, is_removal, number in events:
        pieces.append(old[:, start:place])
        if is_removal:
            start = place + 1
        else:
            pieces.append(new[:, number : number + 1])
            start = place
    return np.concatenate([*pieces, old[:, start:]], axis=1)
