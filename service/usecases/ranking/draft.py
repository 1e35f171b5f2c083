"""From what the model answered to the pages of an answer, by the rules of the request. Pure.

In: candidates, `Rules`, and what the rules must know: masks of conditions, vectors of items. Out: the items of one or
more pages. Of several users with `is_distinct`, each takes the best item that is left in turn: in the order of the
request, then backwards, and so on, so that nobody is always last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_store.answers import POPULAR, Ranked, Reason
from model_store.catalogue.catalogue import Catalogue
from service.usecases.ranking.candidates import Candidate, scores_of
from service.usecases.ranking.exploration import by_chance, dice_of, places_of
from service.usecases.ranking.moves import Move
from service.usecases.ranking.order import Ordering
from service.usecases.ranking.rules import Rules
from service.usecases.ranking.selection import Chosen, MaskOf, Placed, Selection


@dataclass(frozen=True)
class Listed:
    """Items of an answer, with what is known of each. `explored`: whether exploration put it there."""

    ranked: list[Ranked]
    reasons: list[Reason | None]
    moves: list[list[Move]]
    explored: list[bool]


def silent(page: Listed) -> Listed:
    """The page without a word of what moved its items."""
    return replace(page, moves=[[] for _ in page.ranked])


def ordered(
    candidates: Sequence[Candidate],
    rules: Rules,
    catalogue: Catalogue,
    mask_of: MaskOf,
    vectors: NDArray[np.float32] | None,
) -> Ordering:
    """`vectors` (n, D) of the candidates; None: the order is not diversified."""
    ordering, rows = Ordering(scores_of(candidates)), [each.ranked.row for each in candidates]
    if rules.boosts:
        masks = [(boost.add, mask_of(catalogue, boost.condition)) for boost in rules.boosts]
        ordering.boost(np.sum([add * mask[rows] for add, mask in masks], axis=0))
    if rules.rotation is not None and rules.shown_at:
        names = [item.item_id for item in catalogue.items.at(rows)]
        shown_at = np.array([rules.shown_at.get(name, np.nan) for name in names], dtype=np.float64)
        ordering.rotate(shown_at, rules.rotation.rate)
    if rules.diversity and vectors is not None:
        ordering.diversify(vectors, rules.diversity)
    return ordering


class Draft:
    """The list of one user, of which items are taken.

    `little_known`: the items that exploration draws from, the best fit first; `name`: what its draws follow from.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        rules: Rules,
        catalogue: Catalogue,
        mask_of: MaskOf,
        *,
        allowed: NDArray[np.bool_],
        vectors: NDArray[np.float32] | None = None,
        little_known: Sequence[Candidate] = (),
        name: str = "",
    ) -> None:
        self._candidates, self._rules, self._catalogue = candidates, rules, catalogue
        self._little_known, self._name = {each.ranked.row: each for each in little_known}, name
        rows = [each.ranked.row for each in candidates]
        self.selection = Selection(
            catalogue,
            ordered(candidates, rules, catalogue, mask_of, vectors),
            rows,
            allowed=allowed,
            caps=rules.caps,
            mask_of=mask_of,
        )

    def pages(self, size: int) -> list[Listed]:
        """The first page, and with `is_paged` those after it, until no candidate is left."""
        pages: list[Listed] = []
        first_rank = 1
        while not pages or (self._rules.is_paged and not self.selection.is_empty):
            placed = self.begin_page(size, len(pages))
            found = self.selection.page(size, first_rank=first_rank, placed=placed, fills=not pages)
            first_rank += len(found) - len(placed)
            pages.append(self.listed(found))
        return pages

    def begin_page(self, size: int, number: int = 0, *, taken: set[int] | frozenset[int] = frozenset()) -> Placed:
        """What stands at fixed places of this page: pins on the first, and explored items, none of them `taken`."""
        wanted, may_show = [] if number else self._rules.pins, self.selection.may_show
        pins = {pin.position: self._catalogue.rows[pin.item_id] for pin in wanted if may_show(pin.item_id)}
        exploration = self._rules.exploration
        if exploration is None:
            return self.selection.begin_page(size, pins)
        dice = dice_of(self._name, number)
        places = places_of(dice, exploration.share, size, set(range(1, size + 1)) - pins.keys())
        fitting = by_chance(dice, list(self._little_known))
        return self.selection.begin_page(size, pins, places, fitting, taken=taken)

    def listed(self, page: Sequence[Chosen]) -> Listed:
        known = [
            self._little_known.get(each.row) if each.place is None else self._candidates[each.place] for each in page
        ]
        return Listed(
            ranked=[
                found.ranked if found else Ranked(each.row, POPULAR, None, None)
                for each, found in zip(page, known, strict=True)
            ],
            reasons=[found.reason if found else None for found in known],
            moves=[each.moves for each in page],
            explored=[each.is_explored for each in page],
        )


def distinct_pages(drafts: Sequence[Draft], size: int) -> list[Listed]:
    """A page of each draft; no item is on two of them."""
    taken: set[int] = set()
    pages: list[list[Chosen]] = [[] for _ in drafts]
    placed: list[Placed] = []
    for draft in drafts:
        placed.append(draft.begin_page(size, taken=taken))
        taken |= {row for row, _ in placed[-1].values()}
    for rank in range(1, size + 1):
        turns = [(number, draft) for number, draft in enumerate(drafts) if rank <= size - len(placed[number])]
        for number, draft in turns if rank % 2 else turns[::-1]:
            chosen = draft.selection.next(rank, taken=taken)
            if chosen is not None:
                taken.add(chosen.row)
                pages[number].append(chosen)
    return [
        draft.listed(draft.selection.with_placed(page, own))
        for draft, page, own in zip(drafts, pages, placed, strict=True)
    ]
