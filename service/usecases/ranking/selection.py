"""Takes items from a sorted list, page by page: caps, pins, and popular items where caps leave a page short.

Items that are placed from outside, pins and explored ones, are taken out first. In: an `Ordering`, the rows behind its
places, and what may be shown. Out: pages of `Chosen`. Pure.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.conditions import Condition, Typed, equal_to, values_of
from service.usecases.ranking.moves import Move, Rule
from service.usecases.ranking.order import Ordering
from service.usecases.ranking.rules import Cap

MaskOf = Callable[[Catalogue, Condition], NDArray[np.bool_]]
Placed = dict[int, tuple[int, Rule]]  # position on the page → row, and the rule that puts it there


class Chosen(NamedTuple):
    """`place`: of a candidate in the ordering; None for an item that was none."""

    row: int
    place: int | None
    moves: list[Move]
    is_explored: bool = False


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
        self._places = {row: place for place, row in enumerate(rows)}
        self._others = allowed.copy()  # what is left besides the candidates
        self._others[list(rows)] = False
        self._allowed, self._caps = allowed, Caps(catalogue, caps)

    @property
    def is_empty(self) -> bool:
        """Whether no candidate is left."""
        return not self._left

    def begin_page(
        self,
        size: int,
        pins: Mapping[int, int] | None = None,
        explored: Sequence[int] = (),
        fitting: Sequence[int] = (),
        *,
        taken: set[int] | frozenset[int] = frozenset(),
    ) -> Placed:
        """Forgets the counts of the page before. What is placed from outside is taken out, and counts in the new page.

        `pins`: position → row. `explored`: positions for the rows `fitting`, which are tried in their order: one is
        left out that was on a page, is among `taken`, has no room in a cap, or would be on a page of `size` anyway.
        """
        self._caps.reset()
        placed: Placed = {position: (row, "pins") for position, row in (pins or {}).items()}
        self._take(pins.values() if pins else ())
        if not explored:
            return placed
        left = {self._rows[place] for place in self._left}
        near = {self._rows[place] for place in self._left[:size]} | taken
        free = (row for row in fitting if row not in near and (row in left or self._others[row]))
        rows = (row for row in free if self._caps.allow(row))  # asked when the row before it is taken
        for position, row in zip(explored, rows, strict=False):
            self._take([row])
            placed[position] = row, "exploration"
        return placed

    def _take(self, rows: Collection[int]) -> None:
        if not rows:
            return
        for row in rows:
            self._caps.count(row)
        taken = set(rows)
        self._left = [place for place in self._left if self._rows[place] not in taken]
        self._ranks = {place: rank for rank, place in enumerate(self._left, start=1)}
        self._others[list(rows)] = False

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

    def page(self, size: int, *, first_rank: int = 1, placed: Placed, fills: bool = True) -> list[Chosen]:
        """Up to `size` items, those of `begin_page` among them."""
        found: list[Chosen] = []
        while len(found) < size - len(placed):
            chosen = self.next(first_rank + len(found), fills=fills)
            if chosen is None:
                break
            found.append(chosen)
        return self.with_placed(found, placed)

    def with_placed(self, found: Sequence[Chosen], placed: Placed) -> list[Chosen]:
        """The list with the items of `placed` at their positions; at its end where it is shorter."""
        return _with_placed(found, placed, self._place_of) if placed else list(found)

    def may_show(self, item_id: str) -> bool:
        row = self._catalogue.rows.get(item_id)
        return row is not None and row < len(self._allowed) and bool(self._allowed[row])

    def _place_of(self, row: int) -> int | None:
        return self._places.get(row)

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


def _with_placed(found: Sequence[Chosen], placed: Placed, place_of: Callable[[int], int | None]) -> list[Chosen]:
    merged = list(found)
    for position in sorted(placed):
        row, rule = placed[position]
        merged.insert(position - 1, Chosen(row, place_of(row), [], rule == "exploration"))
    rules = dict(placed.values())
    usual: Rule = "pins" if "pins" in rules.values() else "exploration"  # what moved the others
    before = {each.row: rank for rank, each in enumerate(found, start=1)}
    return [
        each
        if before.get(each.row) == rank
        else each._replace(moves=[*each.moves, Move(rules.get(each.row, usual), before.get(each.row), rank)])
        for rank, each in enumerate(merged, start=1)
    ]
