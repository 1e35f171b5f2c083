"""Sparse tables of near items: row i holds how near other items are to item i, as a distribution over items."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_store.voices.added import AddedRow, AddedRows
from model_store.voices.past import RETURN, ItemFacts

_PARTS = ("indptr", "indices", "data")


def normalised(table: sparse.csr_matrix) -> sparse.csr_matrix:
    """A copy whose rows sum to one; empty rows stay empty. Values must not be negative."""
    sums = row_sums(table)
    scale = sparse.diags(1 / np.where(sums > 0, sums, 1))
    return sparse.csr_matrix(scale @ table, dtype=np.float32)


def row_sums(table: sparse.csr_matrix) -> NDArray[np.float32]:
    sums: NDArray[np.float32] = np.asarray(table.sum(axis=1), dtype=np.float32).ravel()
    return sums


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


class Tables:
    """The trained tables of V items (tokens).

    `near` has all tables in one matrix, so that one look-up finds the rows of several: row c · V + t holds row t of
    table c, in the columns from c · V on.
    """

    def __init__(self, tables: Mapping[str, sparse.csr_matrix]) -> None:
        """`tables`: channel → (V, V) rows that sum to one or to zero."""
        self.names = tuple(tables)
        self.num_tokens = next(iter(tables.values())).shape[0]
        lengths = np.concatenate([np.diff(table.indptr) for table in tables.values()])
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        columns = [
            table.indices.astype(np.int32) + place * self.num_tokens for place, table in enumerate(tables.values())
        ]
        values = np.concatenate([table.data.astype(np.float32) for table in tables.values()])
        size = len(tables) * self.num_tokens
        self.near = sparse.csr_matrix((values, np.concatenate(columns), starts), (size, size))

    def rows(self, tables: NDArray[np.int64], tokens: NDArray[np.int64], num_tokens: int) -> sparse.csr_matrix:
        """(P, tables · num_tokens) the rows of P pairs of the number of a table and a token below `num_tokens` ≥ V.

        Those of tokens from V on are empty.
        """
        is_trained = tokens < self.num_tokens
        found = self.near[tables[is_trained] * self.num_tokens + tokens[is_trained]]
        if num_tokens == self.num_tokens:
            return found
        lengths = np.zeros(len(tokens), dtype=np.int64)
        lengths[is_trained] = np.diff(found.indptr)
        columns = found.indices + np.repeat(tables, lengths) * (num_tokens - self.num_tokens)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return sparse.csr_matrix((found.data, columns, starts), (len(tokens), len(self.names) * num_tokens))

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


class KnownItems:
    """What is known of V' items (tokens): facts, popularity, and for each channel with a table the near items.

    The first V of them were known in training. `popularity` (V',): shares of all events. Immutable.
    """

    def __init__(self, facts: ItemFacts, tables: Tables, added: AddedRows | None = None) -> None:
        """`added`: rows of items that came or were counted after training."""
        self.facts, self.tables, self._added = facts, tables, added
        self.popularity = (facts.popularity / max(float(facts.popularity.sum()), 1.0)).astype(np.float32)

    @property
    def channels(self) -> tuple[str, ...]:
        return (*self.tables.names, RETURN)

    @property
    def num_tokens(self) -> int:
        """V'"""
        return len(self.popularity)

    @property
    def num_trained(self) -> int:
        """V"""
        return self.tables.num_tokens

    def added_row(self, table: str, token: int) -> AddedRow | None:
        """What came on top of a row of a table."""
        return None if self._added is None else self._added.rows[self.tables.names.index(table)].get(token)

    def rows(self, tables: NDArray[np.int64], tokens: NDArray[np.int64]) -> sparse.csr_matrix:
        """(P, tables · V') the rows of P pairs of the number c of a table and a token, in columns from c · V' on."""
        found = self.tables.rows(tables, tokens, self.num_tokens)
        return found if self._added is None else self._added.onto(found, tables, tokens)

    @cached_property
    def has_row(self) -> NDArray[np.bool_]:
        """(V', C − 1) whether an item has neighbours in a table."""
        trained = self.tables.has_row
        if self._added is None:
            return trained
        found = self._added.has_row.copy()
        found[: len(trained)] |= trained
        return found
