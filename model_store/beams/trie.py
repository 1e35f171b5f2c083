"""The catalogue trie: which tokens may follow, so that only catalogue titles can be generated.

No nodes are built. The token sequences are sorted; a node is a range of sorted sequences that share their first
`depth` tokens, its children are the runs of equal tokens in the next column, and a run of forced tokens ends where the
first and the last sequence of the range differ. Sequences end with the prompt's terminator, which no title contains, so
none is a prefix of another. Items with the same tokens end at the same leaf: they are one title class. Numpy only.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.beams.paths import Paths

_FEW_ROWS, _FEW_SHARE = 64, 1 / 64  # of all rows: so many that differ from known counts are corrected one by one
_MAX_RECENT = 3
_MAX_CHILDREN, _MAX_EDGES = 100_000, 2**16  # kept: some tens of megabytes each, however many titles there are


class Node(NamedTuple):
    """Sorted sequences [start, stop) agree on their first `depth` tokens."""

    start: int
    stop: int
    depth: int


class Edge(NamedTuple):
    """From a node to its child: the first token is chosen, the others are forced."""

    tokens: tuple[int, ...]
    child: Node
    is_leaf: bool


class Children(NamedTuple):
    """Of one node or of several, (C,) each: the tokens that may follow, and the sorted sequences [starts, stops) behind
    each. They ascend, and no sequence is behind two of them."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence["Children"]) -> "Children":
        """Of several nodes, which must ascend and none of which may lie below another."""
        return parts[0] if len(parts) == 1 else cls(*map(np.concatenate, zip(*parts, strict=True)))


class Base(NamedTuple):
    """A mask whose counts are known: `before[place]` of the sorted sequences before a place are allowed."""

    rows: NDArray[np.bool_]  # (N,) by row
    before: NDArray[np.int32]  # (N + 1,)


class Allowed:
    """The items that a request may generate: known counts over sorted sequences, and the few places that differ.

    `rows` (N,) bool must not change as long as this is used. `places` (D,) are sorted, `signs` (D,) are 1 where a
    sequence is allowed that `before` (N + 1,) does not count, −1 where it is the other way round.
    """

    def __init__(
        self,
        order: NDArray[np.int32],
        rows: NDArray[np.bool_],
        before: NDArray[np.int32],
        places: NDArray[np.int32],
        signs: NDArray[np.int32],
    ) -> None:
        self._order, self._rows, self._before = order, rows, before
        self._places, self._signs = places, signs

    def among(self, children: Children) -> NDArray[np.int64]:
        """Places of the children that lead to an allowed item."""
        if not len(children.starts):
            return np.empty(0, dtype=np.int64)
        counts = self._before[children.stops] - self._before[children.starts]
        ends = np.array([children.starts[0], children.stops[-1]], dtype=self._places.dtype)
        first, last = self._places.searchsorted(ends)
        if first < last:
            places, signs = self._places[first:last], self._signs[first:last]
            behind = children.starts.searchsorted(places, side="right") - 1
            is_behind = places < children.stops[behind]  # or else between two nodes
            np.add.at(counts, behind[is_behind], signs[is_behind])
        return counts.nonzero()[0]

    def rows(self, node: Node) -> NDArray[np.int64]:
        """The allowed items below a node."""
        rows = self._order[node.start : node.stop]
        return rows[self._rows[rows]].astype(np.int64)


class Trie:
    """Over `sequences[row]`; rows are catalogue rows. Thread-safe."""

    def __init__(self, sequences: Sequence[Sequence[int]] | Paths) -> None:
        self.paths = sequences if isinstance(sequences, Paths) else Paths.of(sequences)
        self.order, self._table = self.paths.order, self.paths.tokens
        num_rows = len(self.paths)
        self.root = Node(0, num_rows, 0)
        self.children = lru_cache(maxsize=_MAX_CHILDREN)(self._children)
        self._edge_over = lru_cache(maxsize=_MAX_EDGES)(self._edge)
        self._none = Base(np.zeros(num_rows, dtype=bool), np.broadcast_to(np.int32(0), num_rows + 1))
        self._all = Base(np.ones(num_rows, dtype=bool), np.arange(num_rows + 1, dtype=np.int32))
        self._usual = self._all
        self._recent: list[Base] = []  # never changed in place

    def allow(self, rows: NDArray[np.bool_] | None = None) -> Allowed:
        """`rows` (N,) bool by catalogue row; None allows all.

        Counting all rows along the sorted sequences is dear where there are many. Masks of most requests differ little
        from the usual one or from one another, or allow little: they are told from counts that are known by the places
        where they differ.
        """
        wanted = self._all.rows if rows is None else rows
        few = max(_FEW_ROWS, int(_FEW_SHARE * len(wanted)))
        if np.count_nonzero(wanted) <= few:
            return self._differing(self._none, wanted, wanted)
        recent = self._recent
        for base in (self._usual, *recent):
            differs = base.rows != wanted
            if np.count_nonzero(differs) <= few:
                return self._differing(base, wanted, differs)
        base = self._counted(wanted)
        self._recent = [base, *recent][:_MAX_RECENT]
        nothing = np.empty(0, dtype=np.int32)
        return Allowed(self.order, wanted, base.before, nothing, nothing)

    def expect(self, rows: NDArray[np.bool_]) -> None:
        """What most requests will nearly ask for."""
        self._usual = self._counted(rows)

    def _differing(self, base: Base, wanted: NDArray[np.bool_], differs: NDArray[np.bool_]) -> Allowed:
        places = np.sort(self.paths.places[np.flatnonzero(differs)])
        signs = np.where(wanted[self.order[places]], np.int32(1), np.int32(-1))
        return Allowed(self.order, wanted, base.before, places, signs)

    def _counted(self, wanted: NDArray[np.bool_]) -> Base:
        before = np.zeros(len(wanted) + 1, dtype=np.int32)
        np.cumsum(wanted[self.order], out=before[1:], dtype=np.int32)
        return Base(wanted.copy(), before)

    def _children(self, node: Node) -> Children:
        """None at a leaf."""
        if node.start == node.stop or node.depth >= len(self._table) or self._table[node.depth, node.start] < 0:
            nothing = np.empty(0, dtype=np.int64)
            return Children(nothing.astype(np.int32), nothing, nothing)
        column = self._table[node.depth, node.start : node.stop]
        starts = np.concatenate([[0], np.flatnonzero(column[1:] != column[:-1]) + 1]) + node.start
        return Children(column[starts - node.start], starts, np.append(starts[1:], node.stop))

    def edge(self, children: Children, place: int, depth: int) -> Edge:
        """To the child at `place` of a node at `depth`, up to where sequences behind it part."""
        return self._edge_over(children.starts.item(place), children.stops.item(place), depth)

    def _edge(self, start: int, stop: int, depth: int) -> Edge:
        first, last = self._table[depth:, start], self._table[depth:, stop - 1]
        differs = np.flatnonzero(first != last)
        length = int(differs[0]) if len(differs) else int(np.count_nonzero(first >= 0))
        tokens = tuple(first[:length].tolist())
        return Edge(tokens, Node(start, stop, depth + length), is_leaf=not len(differs))
