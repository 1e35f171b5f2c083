"""Sparse tables of near items: row i holds how near other items are to item i, as a distribution over items."""

from collections.abc import Mapping
from typing import NamedTuple

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


def speaks(table: sparse.csr_matrix) -> NDArray[np.bool_]:
    """(V,) whether a row has any neighbour."""
    found: NDArray[np.bool_] = np.diff(table.indptr) > 0
    return found


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


class KnownItems(NamedTuple):
    """What is known of V items (tokens). `tables`: channel → (V, V) rows that sum to one or to zero.

    `popularity` (V,): shares of all events.
    """

    facts: ItemFacts
    tables: Mapping[str, sparse.csr_matrix]
    popularity: NDArray[np.float32]

    @classmethod
    def of(cls, facts: ItemFacts, tables: Mapping[str, sparse.csr_matrix]) -> "KnownItems":
        total = max(float(facts.popularity.sum()), 1.0)
        return cls(facts, dict(tables), (facts.popularity / total).astype(np.float32))

    @property
    def channels(self) -> tuple[str, ...]:
        return (*self.tables, RETURN)

    @property
    def num_tokens(self) -> int:
        """V"""
        return len(self.popularity)
