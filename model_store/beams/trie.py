"""The trie of all titles: which tokens may follow, so that only titles of the catalogue are generated.

No node objects are stored. The token sequences are sorted. A node is a range of sorted sequences that share their first
`depth` tokens; its children are the runs of equal tokens in the next column; forced tokens end where the first and the
last sequence of the range differ. Every sequence ends with the terminator of the prompt, which no title contains, so no
sequence is a prefix of another. Items with the same tokens share a leaf. Imports numpy only.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.beams.paths import Paths

# A mask that differs from a counted one in at most so many rows (whichever is more) is not counted itself.
_FEW_ROWS, _FEW_SHARE = 64, 1 / 64
_MAX_RECENT = 3  # counted masks that are kept
_MAX_CHILDREN, _MAX_EDGES = 100_000, 2**16  # cached; some tens of megabytes each for any number of titles


class Node(NamedTuple):
    """The sorted sequences [start, stop), which share their first `depth` tokens."""

    start: int
    stop: int
    depth: int


class ScoredTitle(NamedTuple):
    """A leaf of the trie and the log-probability of its title."""

    node: Node
    score: float


class TrieEdge(NamedTuple):
    """From a node to a child: the first token is a choice, the others are forced."""

    tokens: tuple[int, ...]
    child: Node
    is_leaf: bool


class Children(NamedTuple):
    """The children of one or several nodes, (C,) each: the next token, and the sorted sequences [start, stop) below.

    In ascending order; ranges do not overlap.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence["Children"]) -> "Children":
        """The children of several nodes, which are in ascending order and none below another."""
        return parts[0] if len(parts) == 1 else cls(*map(np.concatenate, zip(*parts, strict=True)))


class CountedMask(NamedTuple):
    """A mask of items, and for each place how many of the sorted sequences before it are allowed."""

    rows: NDArray[np.bool_]  # (N,) by catalogue row
    before: NDArray[np.int32]  # (N + 1,)


class AllowedItems:
    """The items that a query may generate: counts of another mask, and the few places that differ from it.

    `rows` (N,) bool must not change while this object is in use. `places` (D,) are sorted; `signs` (D,) are 1 where an
    allowed sequence is not counted in `before` (N + 1,), and −1 where a counted one is not allowed.
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
        """Places of the children with an allowed item below."""
        if not len(children.starts):
            return np.empty(0, dtype=np.int64)
        counts = self._before[children.stops] - self._before[children.starts]
        ends = np.array([children.starts[0], children.stops[-1]], dtype=self._places.dtype)
        first, last = self._places.searchsorted(ends)
        if first < last:
            places, signs = self._places[first:last], self._signs[first:last]
            above = children.starts.searchsorted(places, side="right") - 1  # index of the child
            is_below = places < children.stops[above]  # else the place is between two nodes
            np.add.at(counts, above[is_below], signs[is_below])
        return counts.nonzero()[0]

    def count(self, node: Node) -> int:
        """The number of allowed items below `node`."""
        first, last = self._places.searchsorted(np.array([node.start, node.stop], dtype=self._places.dtype))
        return int(self._before[node.stop] - self._before[node.start] + self._signs[first:last].sum())

    def has(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """(n,) whether each of the catalogue rows (n,) is allowed."""
        found: NDArray[np.bool_] = self._rows[rows]
        return found

    def rows(self, node: Node) -> NDArray[np.int64]:
        """Catalogue rows of the allowed items below `node`."""
        rows = self._order[node.start : node.stop]
        return rows[self._rows[rows]].astype(np.int64)


class Trie:
    """The trie over `sequences`, one for each catalogue row. Thread-safe.

    `is_new` (N,): rows whose titles came after training, which a search scores in another way (see `new_titles.py`);
    None if there are none.
    """

    def __init__(self, sequences: Sequence[Sequence[int]] | Paths, is_new: NDArray[np.bool_] | None = None) -> None:
        self.paths = sequences if isinstance(sequences, Paths) else Paths.of(sequences)
        self.order = self.paths.order
        num_rows = len(self.paths)
        self.root = Node(0, num_rows, 0)
        self.is_new = is_new if is_new is not None and is_new.any() else None
        self._trained_before = None if self.is_new is None else self._counted(~self.is_new).before
        # Caches of functions, not of methods: an old trie is freed at once, without the garbage collector.
        self.children = lru_cache(maxsize=_MAX_CHILDREN)(partial(_children, self.paths))
        self._edge_over = lru_cache(maxsize=_MAX_EDGES)(partial(_edge, self.paths))
        self._none = CountedMask(np.zeros(num_rows, dtype=bool), np.broadcast_to(np.int32(0), num_rows + 1))
        self._all = CountedMask(np.ones(num_rows, dtype=bool), np.arange(num_rows + 1, dtype=np.int32))
        self._expected = self._all
        self._recent: list[CountedMask] = []  # never changed in place

    def allow(self, rows: NDArray[np.bool_] | None = None) -> AllowedItems:
        """The allowed items for `rows` (N,) bool by catalogue row; None allows all.

        Counting all rows in sorted order takes long for large catalogues. Most masks allow few items, or differ in few
        rows from the expected mask or a recent one: they reuse its counts and keep the places that differ.
        """
        wanted = self._all.rows if rows is None else rows
        num_few = max(_FEW_ROWS, int(_FEW_SHARE * len(wanted)))
        if np.count_nonzero(wanted) <= num_few:
            return self._differing(self._none, wanted, wanted)
        recent = self._recent
        for base in (self._expected, *recent):
            differs = base.rows != wanted
            if np.count_nonzero(differs) <= num_few:
                return self._differing(base, wanted, differs)
        base = self._counted(wanted)
        self._recent = [base, *recent][:_MAX_RECENT]
        nothing = np.empty(0, dtype=np.int32)
        return AllowedItems(self.order, wanted, base.before, nothing, nothing)

    def expect(self, rows: NDArray[np.bool_]) -> None:
        """Count `rows` (N,) in advance: a mask from which those of most queries will differ little."""
        if not np.array_equal(self._expected.rows, rows):
            self._expected = self._counted(rows)

    def _differing(self, base: CountedMask, wanted: NDArray[np.bool_], differs: NDArray[np.bool_]) -> AllowedItems:
        places = np.sort(self.paths.places[np.flatnonzero(differs)])
        signs = np.where(wanted[self.order[places]], np.int32(1), np.int32(-1))
        return AllowedItems(self.order, wanted, base.before, places, signs)

    def _counted(self, wanted: NDArray[np.bool_]) -> CountedMask:
        before = np.zeros(len(wanted) + 1, dtype=np.int32)
        np.cumsum(wanted[self.order], out=before[1:], dtype=np.int32)
        return CountedMask(wanted.copy(), before)

    def without_trained(self, children: Children, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether the children at `places` (n,) have only titles below that came after training."""
        if self._trained_before is None:
            return np.zeros(len(places), dtype=bool)
        before = self._trained_before
        found: NDArray[np.bool_] = before[children.stops[places]] == before[children.starts[places]]
        return found

    def leaf_of(self, row: int) -> Node:
        """The leaf of a catalogue row: its title, which other rows may share."""
        place = int(self.paths.places[row])
        tokens, start, stop = self.paths.sequence(place), place, place + 1
        while start and self.paths.sequence(start - 1) == tokens:
            start -= 1
        while stop < self.root.stop and self.paths.sequence(stop) == tokens:
            stop += 1
        return Node(start, stop, len(tokens))

    def edge(self, children: Children, place: int, depth: int) -> TrieEdge:
        """The edge from a node at `depth` to its child at `place`: all tokens that the sequences below share."""
        return self._edge_over(children.starts.item(place), children.stops.item(place), depth)


def _children(paths: Paths, node: Node) -> Children:
    """A leaf has no children."""
    column = paths.column(node.depth, node.start, node.stop)
    if not len(column) or column[0] < 0:
        nothing = np.empty(0, dtype=np.int64)
        return Children(nothing.astype(np.int32), nothing, nothing)
    starts = np.concatenate([[0], np.flatnonzero(column[1:] != column[:-1]) + 1]) + node.start
    return Children(column[starts - node.start], starts, np.append(starts[1:], node.stop))


def _edge(paths: Paths, start: int, stop: int, depth: int) -> TrieEdge:
    first, last = paths.sequence(start), paths.sequence(stop - 1)
    end = next((at for at in range(depth, len(first)) if first[at] != last[at]), len(first))
    return TrieEdge(first[depth:end], Node(start, stop, end), is_leaf=first == last)
