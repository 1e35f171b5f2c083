"""Rows that are added to the tables of near items while the service runs. Immutable.

A row of the trained tables is never changed: an added row says how much of it is kept, and which items come on top.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from immutables import Map
from numpy.typing import NDArray
from scipy import sparse


class AddedRow(NamedTuple):
    """`kept` (0 to 1) multiplies the trained row; with `values` (n,) of the items `tokens` (n,) the row sums to one."""

    kept: float
    tokens: NDArray[np.int64]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, trained_sum: float, tokens: NDArray[np.int64], values: NDArray[np.floating]) -> Self:
        """`trained_sum` and `values` are not normalised; the sum is 0 where there is no trained row."""
        total = trained_sum + float(values.sum())
        return cls(trained_sum / total, tokens, (values / total).astype(np.float32))


class AddedRows:
    """`rows`: for each table, token → added row. `has_row` (V', tables): whether a token has one; not changed later."""

    def __init__(self, rows: Sequence[Map[int, AddedRow]], has_row: NDArray[np.bool_]) -> None:
        self.rows, self.has_row = rows, has_row

    def onto(self, rows: sparse.csr_matrix, tables: NDArray[np.int64], tokens: NDArray[np.int64]) -> sparse.csr_matrix:
        """Trained `rows` with what was added to them; see `KnownItems.rows`. Changes `rows`."""
        found = np.flatnonzero(self.has_row[tokens, tables])
        if not len(found):
            return rows
        pairs = zip(tables[found].tolist(), tokens[found].tolist(), strict=True)
        added = [self.rows[table][token] for table, token in pairs]
        kept = np.ones(len(tokens), dtype=np.float32)
        kept[found] = [row.kept for row in added]
        rows.data *= np.repeat(kept, np.diff(rows.indptr))
        lengths = [len(row.tokens) for row in added]
        columns = np.concatenate([row.tokens for row in added]) + np.repeat(tables[found], lengths) * len(self.has_row)
        values = np.concatenate([row.values for row in added])
        return rows + sparse.csr_matrix((values, (np.repeat(found, lengths), columns)), rows.shape)
