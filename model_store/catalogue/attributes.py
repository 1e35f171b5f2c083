"""The attributes of a catalogue: for each name, how many values of each type its items have. Immutable.

In: the keys of `postings.py` and how many items have each. Out: answers to "is there such an attribute, of which type".
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from immutables import Map

Kind = Literal["boolean", "number", "text"]


def kind_of(value: Any) -> Kind | None:
    """The type of a value that a filter can compare; None for others, such as null and objects."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else None


class Attributes:
    """`counts`: name → type → how many values of items are of this type. A list counts each of its values."""

    def __init__(self, counts: Map[str, Map[Kind, int]]) -> None:
        self._counts = counts

    @classmethod
    def of(cls, counted: Iterable[tuple[str, Any, int]]) -> Self:
        """From triples of a name, a value and the number of items that have it."""
        return cls(Map()).changed(counted)

    def changed(self, counted: Iterable[tuple[str, Any, int]]) -> Self:
        """A copy to which the numbers are added; they may be negative. What falls to zero is left out."""
        counts = self._counts
        for name, value, number in counted:
            kind = kind_of(value)
            if kind is None:
                continue
            kinds: Map[Kind, int] = counts.get(name, Map())
            total = kinds.get(kind, 0) + number
            kinds = kinds.set(kind, total) if total > 0 else kinds.delete(kind) if kind in kinds else kinds
            counts = counts.set(name, kinds) if kinds else counts.delete(name) if name in counts else counts
        return type(self)(counts)

    def __contains__(self, name: str) -> bool:
        return name in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def kinds(self, name: str) -> Mapping[Kind, int]:
        """Type → how many values have it; empty for an unknown attribute. The most frequent type comes first."""
        return dict(sorted(self._counts.get(name, Map()).items(), key=lambda pair: (-pair[1], pair[0])))

    def names(self) -> list[str]:
        return sorted(self._counts)

    def nearest(self, name: str) -> str | None:
        """The known name that is spelt most like `name`, None if none is like it."""
        found = difflib.get_close_matches(name, self._counts, n=1)
        return found[0] if found else None
