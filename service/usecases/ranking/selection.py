"""Takes items from a sorted list, page by page: caps, pins, and popular items where caps leave a page short.

In: an `Ordering`, the rows behind its places, and what may be shown. Out: pages of `Chosen`. Pure.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.conditions import Condition, Typed, equal_to, values_of
from service.usecases.ranking.moves import Move, Rule
from service.usecases.ranking.order import Ordering
from service.usecases.ranking.rules import Cap, Pin

MaskOf = Callable[[Catalogue, Condition], NDArray[np.bool_]]


class Chosen(NamedTuple):
    """`place`: of a candidate in the ordering; None for an item that was none."""

    row: int
    place: int | None
    moves: list[Move]


class Caps:
    """Counts the values of the items of a page."""

    def __init__(self, catalogue: Catalogue, caps: Sequence[Cap]) -> None:
        """Of several caps on one attribute the strictest counts."""
        self._catalogue = catalogue
        self._limits = {cap.attribute: cap.at_most for cap in sorted(caps, key=lambda cap: -cap.at_most)}
        self._counts: Counter[tuple[str, Typed]] = Counter()
        self._values: dict[int, list[tuple[str, Typed]]] = {}

    def __bool__(self) -> bool:
        return bool(self._limits)

    def allow(self, row: int) -> bool:
        return all(self._counts[name, value] < self._limits[name] for name, value in self._values_of(row))

    def count(self, row: int) -> None:
        self._counts.update(self._values_of(row))

    def reset(self) -> None:
        self._counts.clear()

    def full(self) -> list[Condition]:
        """What an item that is allowed must not be."""
        full = [key for key, count in self._counts.items() if count >= self._limits[key[0]]]
        return [equal_to(name, [value.value]) for name, value in full]

    def _values_of(self, row: int) -> list[tuple[str, Typed]]:
        if row not in self._values:
            item = self._catalogue.items[row]
            self._values[row] = [(name, value) for name in self._limits for value in set(values_of(item, name))]
        return self._values[row]


class Selection:
    """`rows` (n,): of the places of the ordering. `allowed` (N,): what may be shown. Items are taken once."""

    def __init__(
        self,
        catalogue: Catalogue,
        ordering: Ordering,
        rows: Sequence[int],
        *,
        allowed: NDArray[np.bool_],
        caps: Sequence[Cap] = (),
        mask_of: MaskOf,
    ) -> None:
        self._catalogue, self._ordering, self._rows, self._mask_of = catalogue, ordering, rows, mask_of
        self._left = ordering.places.tolist()
        self._ranks = {place: rank for rank, place in enumerate(self._left, start=1)}
        self._others = allowed.copy()  # what is left besides the candidates
        self._others[list(rows)] = False
        self._allowed, self._caps = allowed, Caps(catalogue, caps)

    @property
    def is_empty(self) -> bool:
        """Whether no candidate is left."""
        return not self._left

    def begin_page(self, pins: Sequence[int] = ()) -> None:
        """Forgets the counts of the page before. The rows `pins` are taken out, and count in the new page."""
        self._caps.reset()
        for row in pins:
            self._caps.count(row)
        pinned = set(pins)
        self._left = [place for place in self._left if self._rows[place] not in pinned]
        self._ranks = {place: rank for rank, place in enumerate(self._left, start=1)} if pins else self._ranks
        self._others[list(pins)] = False

    def next(self, rank: int, *, taken: set[int] | frozenset[int] = frozenset(), fills: bool = True) -> Chosen | None:
        """The best item that is left, for the place `rank` of the list; none of the rows `taken`.

        When no candidate may be taken, the most popular other item (`fills`). None when there is none.
        """
        rule: Rule | None = "distinct" if taken else "caps" if self._caps else None
        for number, place in enumerate(self._left):
            row = self._rows[place]
            if row not in taken and self._caps.allow(row):
                del self._left[number]
                self._caps.count(row)
                before = self._ranks[place]
                moved = [Move(rule, before, rank)] if rule is not None and before != rank else []
                return Chosen(row, place, self._ordering.moves[place] + moved)
        return self._popular(rank, rule, taken) if fills else None

    def page(self, size: int, *, first_rank: int = 1, pins: Sequence[Pin] = (), fills: bool = True) -> list[Chosen]:
        """Up to `size` items. `pins` name items that may be shown, by place in the page."""
        pinned = {pin.position: self._catalogue.rows[pin.item_id] for pin in pins}
        self.begin_page(list(pinned.values()))
        found: list[Chosen] = []
        while len(found) < size - len(pinned):
            chosen = self.next(first_rank + len(found), fills=fills)
            if chosen is None:
                break
            found.append(chosen)
        return _with_pins(found, pinned, self._place_of) if pinned else found

    def may_show(self, item_id: str) -> bool:
        row = self._catalogue.rows.get(item_id)
        return row is not None and row < len(self._allowed) and bool(self._allowed[row])

    def _place_of(self, row: int) -> int | None:
        return self._rows.index(row) if row in self._rows else None

    def _popular(self, rank: int, rule: Rule | None, taken: set[int] | frozenset[int]) -> Chosen | None:
        self._others[list(taken)] = False
        fitting = self._others
        for condition in self._caps.full():
            fitting = fitting & ~self._mask_of(self._catalogue, condition)[: len(fitting)]
        rows = self._catalogue.most_popular(fitting, 1)
        if not rows:
            return None
        self._others[rows[0]] = False
        self._caps.count(rows[0])
        return Chosen(rows[0], None, [] if rule is None else [Move(rule, None, rank)])


def _with_pins(found: Sequence[Chosen], pinned: dict[int, int], place_of: Callable[[int], int | None]) -> list[Chosen]:
    """The list with the rows `pinned` at their positions; at its end where it is shorter."""
    merged = list(found)
    for position in sorted(pinned):
        merged.insert(position - 1, Chosen(pinned[position], place_of(pinned[position]), []))
    before = {each.row: rank for rank, each in enumerate(found, start=1)}
    return [
        each
        if before.get(each.row) == rank
        else each._replace(moves=[*each.moves, Move("pins", before.get(each.row), rank)])
        for rank, each in enumerate(merged, start=1)
    ]
