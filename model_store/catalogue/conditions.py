"""Conditions: what an item must be like, as a tree. In: a condition and an item. Out: whether the item satisfies it.

A condition compares the values of one attribute, or joins other conditions. A list attribute has all its values, and a
comparison holds if it holds for one of them. Values are compared as in JSON: true is not 1, but 1 is 1.0, and a value
of another type satisfies nothing. `item_id` and `title` are attributes of every item. Conditions are immutable and
hashable, so masks can be kept by them; see `filters.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from model_store.catalogue.attributes import Kind, kind_of
from model_store.catalogue.items import Item

Scalar = str | int | float | bool
OWN_NAMES = ("item_id", "title")


class Typed(NamedTuple):
    """A value that does not equal a value of another JSON type, as Python's 1 and True do."""

    kind: Kind
    value: Scalar

    @classmethod
    def of(cls, value: Any) -> "Typed | None":
        """None for a value that cannot be compared: null, an object, a list."""
        kind = kind_of(value)
        return None if kind is None else cls(kind, value)


class Bound(NamedTuple):
    """An end of a range; `is_included` says whether the value itself is inside."""

    value: str | int | float
    is_included: bool


@dataclass(frozen=True)
class Among:
    """The attribute has one of the values."""

    name: str
    values: tuple[Typed, ...]

    def holds(self, item: Item) -> bool:
        return not set(self.values).isdisjoint(values_of(item, self.name))


@dataclass(frozen=True)
class Between:
    """The attribute has a value of the type `kind` (text or number) above `low` and below `high`; None: no bound."""

    name: str
    kind: Kind
    low: Bound | None
    high: Bound | None

    def holds(self, item: Item) -> bool:
        return any(each.kind == self.kind and self._is_inside(each.value) for each in values_of(item, self.name))

    def _is_inside(self, value: Any) -> bool:
        low, high = self.low, self.high
        is_above = low is None or value > low.value or (low.is_included and value == low.value)
        return is_above and (high is None or value < high.value or (high.is_included and value == high.value))


@dataclass(frozen=True)
class StartsWith:
    """The attribute has a text that begins with `text`, capital letters included."""

    name: str
    text: str

    def holds(self, item: Item) -> bool:
        return any(
            isinstance(each.value, str) and each.value.startswith(self.text) for each in values_of(item, self.name)
        )


@dataclass(frozen=True)
class Exists:
    """The attribute has a value that can be compared."""

    name: str

    def holds(self, item: Item) -> bool:
        return any(True for _ in values_of(item, self.name))


@dataclass(frozen=True)
class Every:
    parts: tuple["Condition", ...]

    def holds(self, item: Item) -> bool:
        return all(part.holds(item) for part in self.parts)


@dataclass(frozen=True)
class Some:
    parts: tuple["Condition", ...]

    def holds(self, item: Item) -> bool:
        return any(part.holds(item) for part in self.parts)


@dataclass(frozen=True)
class Not:
    part: "Condition"

    def holds(self, item: Item) -> bool:
        return not self.part.holds(item)


Comparison = Among | Between | StartsWith | Exists
Condition = Comparison | Every | Some | Not


def values_of(item: Item, name: str) -> Iterator[Typed]:
    """The values of an attribute that can be compared."""
    if name in OWN_NAMES:
        yield Typed("text", getattr(item, name))
    found = item.attributes.get(name)
    for value in found if isinstance(found, list) else [found]:
        typed = Typed.of(value)
        if typed is not None:
            yield typed


def equal_to(name: str, values: Sequence[Scalar]) -> Among:
    return Among(name, tuple(typed for value in values if (typed := Typed.of(value)) is not None))


def comparisons_in(condition: Condition) -> Iterator[Comparison]:
    """The conditions at the leaves of the tree, in order."""
    if isinstance(condition, Every | Some):
        for part in condition.parts:
            yield from comparisons_in(part)
    elif isinstance(condition, Not):
        yield from comparisons_in(condition.part)
    else:
        yield condition
