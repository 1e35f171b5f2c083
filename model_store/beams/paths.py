"""Token sequences in sorted order: the trie walks over them, a bundle stores them, changed titles are spliced in.

Immutable. The arrays may be memory-mapped; they are never written to. The sequences are kept in blocks, so that a
change copies the blocks that it touches, and shares the others with the paths before it. Imports numpy only.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

_PAD = -1  # sorts before every token, so a sequence comes before its extensions
_SORT_SHARE = 16  # if more than 1/16 of the sequences change, all are sorted again
_FEW = 8  # changed sequences whose places are found without inverting `order`
_BLOCK = 2048  # sequences in a block; a block that has grown to more than twice as many is cut


class Paths:
    """N sequences in sorted order.

    `order` (N,) int32: the row whose sequence is at a place. `blocks`: (L, n) int32 each, column = place, padded with
    −1; the first block holds the first n places, the next one those that follow.
    """

    def __init__(self, order: NDArray[np.int32], blocks: Sequence[NDArray[np.int32]]) -> None:
        """At least one block, which may be empty."""
        self.order, self._blocks = order, blocks
        self._starts = [0, *accumulate(block.shape[1] for block in blocks)]  # of each block, and N

    @classmethod
    def from_table(cls, order: NDArray[np.int32], tokens: NDArray[np.int32]) -> Self:
        """`tokens` (L, N) int32: column = place, padded with −1."""
        return cls(order, _cut(tokens))

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
            return cls.from_table(np.arange(table.shape[1], dtype=np.int32), table)
        order = np.lexsort(table[::-1]).astype(np.int32)
        tokens = np.empty_like(table)
        for column, sorted_column in zip(table, tokens, strict=True):
            np.take(column, order, out=sorted_column)
        return cls.from_table(order, tokens)

    def __len__(self) -> int:
        return len(self.order)

    @cached_property
    def places(self) -> NDArray[np.int32]:
        """(N,) the place of each row's sequence; the inverse of `order`."""
        places = np.empty_like(self.order)
        places[self.order] = np.arange(len(self), dtype=np.int32)
        return places

    def sequence(self, place: int) -> tuple[int, ...]:
        block = bisect_right(self._starts, place, hi=len(self._blocks)) - 1
        column = self._blocks[block][:, place - self._starts[block]].tolist()
        return tuple(column[: column.index(_PAD)] if column and column[-1] == _PAD else column)

    def column(self, depth: int, start: int, stop: int) -> NDArray[np.int32]:
        """(stop − start,) the token at `depth` of the sequences at these places; −1 for one that has ended before."""
        first = bisect_right(self._starts, start, hi=len(self._blocks)) - 1
        last = bisect_left(self._starts, stop, lo=first + 1)
        parts = [
            _at(block, depth, max(start - begin, 0), min(stop - begin, block.shape[1]))
            for block, begin in zip(self._blocks[first:last], self._starts[first:last], strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def first_tokens(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n,) the first token of the sequence of each of `rows` (n,)."""
        return self._first[self.places[rows]]

    @cached_property
    def _first(self) -> NDArray[np.int32]:
        return self.column(0, 0, len(self))

    @property
    def tokens(self) -> NDArray[np.int32]:
        """(L, N) all sequences in one table: column = place, padded with −1."""
        length = max(len(block) for block in self._blocks)
        return np.concatenate([_widened(block, length) for block in self._blocks], axis=1)

    def replaced(self, rows: NDArray[np.int64], sequences: Sequence[Sequence[int]]) -> "Paths":
        """Paths with other `sequences` for `rows`, which are all different. Rows from N on are new, without gaps.

        A small change is spliced in: nothing is sorted again, and of the sequences only some blocks are copied.
        """
        fresh = Paths.of(sequences)
        known = rows[rows < len(self)]
        if len(rows) * _SORT_SHARE > len(self):
            old, new = self.tokens, fresh.tokens
            length = max(len(old), len(new))
            table = np.full((length, int(max(len(self) - 1, rows.max(initial=-1))) + 1), _PAD, dtype=np.int32)
            table[:, self.order] = _widened(old, length)
            table[:, rows[fresh.order]] = _widened(new, length)
            return Paths._sorted(table)
        removed = np.sort(self.places[known]).tolist()
        found = map(fresh.sequence, range(len(fresh)))
        added = [bisect_left(range(len(self)), sequence, key=self.sequence) for sequence in found]
        names = rows[fresh.order].astype(np.int32)
        order = _spliced(self.order[None], names[None], removed, added)[0]
        made = Paths(order, self._blocks_with(fresh.tokens, removed, added))
        if len(rows) <= _FEW:
            made.__dict__["places"] = _moved(self.places, names, removed, added)
        return made

    def _blocks_with(
        self, new: NDArray[np.int32], removed: Sequence[int], added: Sequence[int]
    ) -> list[NDArray[np.int32]]:
        """See `_spliced`. What is added behind the last place goes into the last block."""
        found: list[NDArray[np.int32]] = []
        ends = [*self._starts[1:-1], len(self) + 1]
        gone, come = ([0, *(bisect_left(places, end) for end in ends)] for places in (removed, added))
        spans = zip(self._blocks, self._starts, pairwise(gone), pairwise(come), strict=False)
        for block, start, of_removed, of_added in spans:
            away = [place - start for place in removed[slice(*of_removed)]]
            before = [place - start for place in added[slice(*of_added)]]
            if away or before:
                length = max(len(block), len(new))
                fresh = _widened(new[:, slice(*of_added)], length)
                found += _cut(_spliced(_widened(block, length), fresh, away, before), 2 * _BLOCK)
            else:
                found.append(block)
        return [block for block in found if block.shape[1]] or found[:1]


def _at(block: NDArray[np.int32], depth: int, start: int, stop: int) -> NDArray[np.int32]:
    return block[depth, start:stop] if depth < len(block) else np.full(stop - start, _PAD, dtype=np.int32)


def _cut(table: NDArray[np.int32], most: int = _BLOCK) -> list[NDArray[np.int32]]:
    """The table (L, N) in parts of at most `_BLOCK` columns; in one part if it has at most `most`."""
    num_columns = table.shape[1]
    if num_columns <= most:
        return [table]
    return [table[:, start : start + _BLOCK] for start in range(0, num_columns, _BLOCK)]


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
