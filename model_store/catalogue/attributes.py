"""The attributes of a catalogue: for each name, how many values of each type its items have. Immutable.

In: the keys of `postings.py` and how many items have each. Out: answers to "is there such an attribute, of which type".
"""

import difflib
from collections import Counter
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
    """`counts`: (name, type) → how many values of items are of this type. A list counts each of its values."""

    def __init__(self, counts: Map[str, Map[Kind, int]] | None = None) -> None:
        """`counts`: name → type → number. Zero and less are as none: they stand for items that were taken away."""
        self._counts: Map[str, Map[Kind, int]] = Map() if counts is None else counts

    def plus(self, counted: Iterable[tuple[str, Any, int]]) -> Self:
        """A copy to which triples of a name, a value and a number of items are added; a number may be negative."""
        sums: Counter[tuple[str, Kind]] = Counter()
        for name, value, number in counted:
            kind = kind_of(value)
            if kind is not None:
                sums[name, kind] += number
        return self._with(sums)

    def joined(self, other: "Attributes") -> Self:
        """The sum of both."""
        return self._with({(name, kind): n for name, kinds in other._counts.items() for kind, n in kinds.items()})

    def _with(self, sums: Mapping[tuple[str, Kind], int]) -> Self:
        changed: dict[str, Map[Kind, int]] = {}
        for (name, kind), number in sums.items():
            kinds = changed[name] if name in changed else self._counts.get(name, Map[Kind, int]())
            changed[name] = kinds.set(kind, kinds.get(kind, 0) + number)
        return type(self)(self._counts.update(changed))

    def __contains__(self, name: str) -> bool:
        return bool(self.kinds(name))

    def kinds(self, name: str) -> Mapping[Kind, int]:
        """Type → how many values have it, the most frequent type first; empty for an unknown attribute."""
        found = self._counts.get(name, Map[Kind, int]())
        return dict(sorted(((kind, n) for kind, n in found.items() if n > 0), key=lambda pair: (-pair[1], pair[0])))

    def names(self) -> list[str]:
        return sorted(name for name in self._counts if name in self)

    def nearest(self, name: str) -> str | None:
        """The known name that is spelt most like `name`, None if none is like it."""
        found = difflib.get_close_matches(name, self.names(), n=1)
        return found[0] if found else None
