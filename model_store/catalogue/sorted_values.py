"""The values of one attribute in order, with the rows that have them: ranges and prefixes are slices of it.

In: values, and the rows of the items that have them. Out: rows. Texts are ordered by code points, numbers by size.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.conditions import Bound

Rows = NDArray[np.integer]


class SortedValues:
    """The rows of value i are `rows[starts[i] : starts[i + 1]]`. `values` are of one type. Immutable."""

    def __init__(self, values: Sequence[Any], starts: NDArray[np.int64], rows: Rows) -> None:
        self._values, self._starts, self.rows = values, starts, rows

    @classmethod
    def of(cls, found: Iterable[tuple[Any, Rows]]) -> Self:
        """From pairs of a value and its rows."""
        pairs = sorted(found, key=lambda pair: pair[0])
        starts = np.cumsum([0, *(len(rows) for _, rows in pairs)])
        rows = np.concatenate([np.zeros(0, dtype=np.int32), *(rows for _, rows in pairs)])
        return cls([value for value, _ in pairs], starts, rows)

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Self:
        """Row i has `texts[i]`."""
        order = sorted(range(len(texts)), key=texts.__getitem__)
        return cls([texts[row] for row in order], np.arange(len(texts) + 1), np.array(order, dtype=np.int32))

    def equal(self, value: Any) -> Rows:
        return self._slice(bisect_left(self._values, value), bisect_right(self._values, value))

    def between(self, low: Bound | None, high: Bound | None) -> Rows:
        first, last = 0, len(self._values)
        if low is not None:
            first = (bisect_left if low.is_included else bisect_right)(self._values, low.value)
        if high is not None:
            last = (bisect_right if high.is_included else bisect_left)(self._values, high.value)
        return self._slice(first, max(first, last))

    def starting(self, text: str) -> Rows:
        def beginning(value: str) -> str:
            return value[: len(text)]

        first = bisect_left(self._values, text, key=beginning)
        return self._slice(first, bisect_right(self._values, text, lo=first, key=beginning))

    def _slice(self, first: int, last: int) -> Rows:
        return self.rows[self._starts[first] : self._starts[last]]
