"""Sparse tables of near items: row i holds how near other items are to item i, as a distribution over items."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_store.voices.past import RETURN, ItemFacts

_PARTS = ("indptr", "indices", "data")


def normalised(table: sparse.csr_matrix) -> sparse.csr_matrix:
    """A copy whose rows sum to one; empty rows stay empty. Values must not be negative."""
    sums = np.asarray(table.sum(axis=1)).ravel()
    scale = sparse.diags(1 / np.where(sums > 0, sums, 1))
    return sparse.csr_matrix(scale @ table, dtype=np.float32)


def table_arrays(name: str, table: sparse.csr_matrix) -> dict[str, NDArray[np.generic]]:
    """The arrays of a table for a file of safetensors; `read_table` is the inverse up to float16 rounding."""
    arrays = (table.indptr.astype(np.int64), table.indices.astype(np.int32), table.data.astype(np.float16))
    return {f"{name}.{part}": array for part, array in zip(_PARTS, arrays, strict=True)}


def read_table(name: str, arrays: Mapping[str, NDArray[np.generic]]) -> sparse.csr_matrix:
    """Raises KeyError or ValueError if the arrays are missing or do not fit together."""
    starts, columns, values = (arrays[f"{name}.{part}"] for part in _PARTS)
    size = len(starts) - 1
    if size < 0 or int(starts[-1]) != len(columns) or (len(columns) and int(columns.max()) >= size):
        raise ValueError(f"the parts of table {name!r} disagree in length")
    return sparse.csr_matrix((values.astype(np.float32), columns, starts), (size, size))


class KnownItems:
    """What is known of V items (tokens): facts, popularity, and for each channel with a table the near items.

    `near` has all tables in one matrix, so that one look-up finds the rows of several: row c · V + t holds row t of
    table c, in the columns from c · V on. `popularity` (V,): shares of all events.
    """

    def __init__(self, facts: ItemFacts, tables: Mapping[str, sparse.csr_matrix]) -> None:
        """`tables`: channel → (V, V) rows that sum to one or to zero."""
        self.facts, self.names = facts, tuple(tables)
        self.popularity = (facts.popularity / max(float(facts.popularity.sum()), 1.0)).astype(np.float32)
        lengths = np.concatenate([np.diff(table.indptr) for table in tables.values()])
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        columns = [
            table.indices.astype(np.int32) + place * self.num_tokens for place, table in enumerate(tables.values())
        ]
        values = np.concatenate([table.data.astype(np.float32) for table in tables.values()])
        size = len(tables) * self.num_tokens
        self.near = sparse.csr_matrix((values, np.concatenate(columns), starts), (size, size))

    @property
    def channels(self) -> tuple[str, ...]:
        return (*self.names, RETURN)

    @property
    def num_tokens(self) -> int:
        """V"""
        return len(self.popularity)

    def table(self, name: str) -> sparse.csr_matrix:
        """(V, V)"""
        first = self.names.index(name) * self.num_tokens
        own = slice(first, first + self.num_tokens)
        return self.near[own, own]

    @cached_property
    def has_row(self) -> NDArray[np.bool_]:
        """(V, C − 1) whether an item has neighbours in a table."""
        lengths = np.diff(self.near.indptr).reshape(len(self.names), self.num_tokens)
        return (lengths > 0).T.copy()
