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


class Allowed:
    """The items that a request may generate, as counts over ranges of sorted sequences."""

    def __init__(self, trie: "Trie", rows: NDArray[np.bool_]) -> None:
        self._sorted = rows[trie.order]
        self._before = np.concatenate([[0], np.cumsum(self._sorted)])
        self._order = trie.order

    def any(self, node: Node) -> bool:
        return bool(self._before[node.stop] > self._before[node.start])

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
        self.edges = lru_cache(maxsize=100_000)(self._edges)

    def allow(self, rows: NDArray[np.bool_] | None = None) -> Allowed:
        """`rows` (N,) bool by catalogue row; None allows all."""
        return Allowed(self, np.ones(self.root.stop, dtype=bool) if rows is None else rows)

    def _edges(self, node: Node) -> tuple[Edge, ...]:
        """One edge per allowed next token; none at a leaf."""
        if node.start == node.stop or node.depth >= self._lengths[node.start]:
            return ()
        column = self._table[node.start : node.stop, node.depth]
        bounds = np.flatnonzero(np.diff(column)) + 1 + node.start
        starts, stops = [node.start, *bounds.tolist()], [*bounds.tolist(), node.stop]
        return tuple(self._edge(start, stop, node.depth) for start, stop in zip(starts, stops, strict=True))

    def _edge(self, start: int, stop: int, depth: int) -> Edge:
        first, last = self._table[start, depth:], self._table[stop - 1, depth:]
        differs = np.flatnonzero(first != last)
        length = int(differs[0]) if len(differs) else int(self._lengths[start]) - depth
        tokens = tuple(first[:length].tolist())
        return Edge(tokens, Node(start, stop, depth + length), is_leaf=not len(differs))
