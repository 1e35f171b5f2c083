"""The catalogue trie: which tokens may follow, so that only catalogue titles can be generated.

No nodes are built. The token sequences are sorted; a node is a range of sorted sequences that share their first
`depth` tokens, its children are the runs of equal tokens in the next column, and a run of forced tokens ends where the
first and the last sequence of the range differ. Sequences end with the prompt's terminator, which no title contains, so
none is a prefix of another. Items with the same tokens end at the same leaf: they are one title class. Numpy only,
immutable.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


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
    """Of one node, (C,) each: the tokens that may follow, and the sorted sequences [starts, stops) behind each."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]


class Allowed:
    """The items that a request may generate, as counts over ranges of sorted sequences."""

    def __init__(self, trie: "Trie", rows: NDArray[np.bool_]) -> None:
        self._sorted = rows[trie.order]
        self._before = np.concatenate([[0], np.cumsum(self._sorted)])
        self._order = trie.order

    def among(self, children: Children) -> NDArray[np.int64]:
        """Places of the children that lead to an allowed item."""
        return np.flatnonzero(self._before[children.stops] > self._before[children.starts])

    def rows(self, node: Node) -> NDArray[np.int64]:
        """The allowed items below a node."""
        return self._order[node.start : node.stop][self._sorted[node.start : node.stop]]


class Trie:
    """Over `sequences[row]`; rows are catalogue rows."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        table = np.full((len(sequences), int(lengths.max(initial=0))), -1, dtype=np.int32)
        for row, sequence in enumerate(sequences):
            table[row, : len(sequence)] = sequence
        self.order = np.lexsort(table.T[::-1]) if len(sequences) else np.empty(0, dtype=np.int64)
        self._table = table[self.order]
        self._lengths = lengths[self.order]
        self.root = Node(0, len(sequences), 0)
        self.children = lru_cache(maxsize=100_000)(self._children)

    def allow(self, rows: NDArray[np.bool_] | None = None) -> Allowed:
        """`rows` (N,) bool by catalogue row; None allows all."""
        return Allowed(self, np.ones(self.root.stop, dtype=bool) if rows is None else rows)

    def _children(self, node: Node) -> Children:
        """None at a leaf."""
        if node.start == node.stop or node.depth >= self._lengths[node.start]:
            nothing = np.empty(0, dtype=np.int64)
            return Children(nothing.astype(np.int32), nothing, nothing)
        column = self._table[node.start : node.stop, node.depth]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(column)) + 1]) + node.start
        return Children(column[starts - node.start], starts, np.append(starts[1:], node.stop))

    def edge(self, children: Children, place: int, depth: int) -> Edge:
        """To the child at `place` of a node at `depth`, up to where sequences behind it part."""
        start, stop = int(children.starts[place]), int(children.stops[place])
        first, last = self._table[start, depth:], self._table[stop - 1, depth:]
        differs = np.flatnonzero(first != last)
        length = int(differs[0]) if len(differs) else int(self._lengths[start]) - depth
        tokens = tuple(first[:length].tolist())
        return Edge(tokens, Node(start, stop, depth + length), is_leaf=not len(differs))
