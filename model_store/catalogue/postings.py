"""An inverted index over attributes: for each name and value, the rows of the items that have it.

Filters use it and need not read the items. Values are compared as in JSON: true is not 1, but 1 is 1.0. Nested values
and null match nothing.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.mapped import json_array

Key = tuple[str, bool, str | int | float]  # name, whether the value is a boolean, value


class Postings:
    """The rows of key i are `rows[starts[i] : starts[i + 1]]`. Immutable."""

    def __init__(self, keys: Mapping[Key, int], starts: NDArray[np.int64], rows: NDArray[np.int32]) -> None:
        self._keys, self._starts, self._rows = keys, starts, rows

    @classmethod
    def of(cls, attributes: Iterable[tuple[int, Mapping[str, Any]]]) -> Self:
        """Index pairs of row and attributes."""
        keys: dict[Key, int] = {}
        numbers, rows = [], []
        for row, named in attributes:
            for name, value in named.items():
                for key in _keys_of(name, value):
                    numbers.append(keys.setdefault(key, len(keys)))
                    rows.append(row)
        found = np.array(numbers, dtype=np.int64)
        starts = np.searchsorted(np.sort(found), np.arange(len(keys) + 1))
        return cls(keys, starts, np.array(rows, dtype=np.int32)[np.argsort(found, kind="stable")])

    def rows(self, name: str, wanted: Any) -> list[NDArray[np.int32]]:
        """Rows of the items whose attribute `name` is, or contains, one of the `wanted` values; an array per value."""
        found = [self._keys[key] for key in _keys_of(name, wanted) if key in self._keys]
        return [self._rows[self._starts[number] : self._starts[number + 1]] for number in found]

    def counted(self) -> Iterator[tuple[str, Any, int]]:
        """Each name and value, and how many items have it."""
        sizes = np.diff(self._starts).tolist()
        return ((name, value, size) for (name, _, value), size in zip(self._keys, sizes, strict=True))

    def values(self, name: str) -> Iterator[tuple[str | int | float, NDArray[np.int32]]]:
        """The values of the attribute `name`, booleans too, each with the rows of the items that have it."""
        for key, number in self._of_name.get(name, ()):
            yield key[2], self._rows[self._starts[number] : self._starts[number + 1]]

    @cached_property
    def _of_name(self) -> dict[str, list[tuple[Key, int]]]:
        found: dict[str, list[tuple[Key, int]]] = {}
        for key, number in self._keys.items():
            found.setdefault(key[0], []).append((key, number))
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The index as arrays for a file; `read` is the inverse."""
        names = json_array([[name, value] for name, _, value in self._keys])
        return {"attributes": names, "attribute_starts": self._starts, "attribute_rows": self._rows}

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The index of the arrays from `arrays`. Raises ValueError or KeyError if they do not fit together."""
        names = json.loads(arrays["attributes"].tobytes())
        keys: dict[Key, int] = {
            (name, isinstance(value, bool), value): number for number, (name, value) in enumerate(names)
        }
        if len(arrays["attribute_starts"]) != len(names) + 1:
            raise ValueError("attributes and their rows do not belong together")
        return cls(keys, arrays["attribute_starts"], arrays["attribute_rows"])


def _keys_of(name: str, value: Any) -> list[Key]:
    """The keys of a value or a list of values, without repeats, in order: equal items give equal files."""
    values = value if isinstance(value, list) else [value]
    return list(dict.fromkeys((name, isinstance(each, bool), each) for each in values if _is_plain(each)))


def counted(attributes: Mapping[str, Any], number: int) -> Iterator[tuple[str, Any, int]]:
    """As `Postings.counted`, for one item that counts `number` times."""
    return ((name, value, number) for each, values in attributes.items() for name, _, value in _keys_of(each, values))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)
