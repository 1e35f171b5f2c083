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
from service.usecases.ranking.moves import Move
from service.usecases.ranking.order import Ordering
from service.usecases.ranking.rules import Rules
from service.usecases.ranking.selection import Chosen, MaskOf, Selection


@dataclass(frozen=True)
class Listed:
    """Items of an answer, with what is known of each."""

    ranked: list[Ranked]
    reasons: list[Reason | None]
    moves: list[list[Move]]


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
    """The list of one user, of which items are taken."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        rules: Rules,
        catalogue: Catalogue,
        mask_of: MaskOf,
        *,
        allowed: NDArray[np.bool_],
        vectors: NDArray[np.float32] | None = None,
    ) -> None:
        self._candidates, self._rules = candidates, rules
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
        pins = [pin for pin in self._rules.pins if self.selection.may_show(pin.item_id)]
        pages = [self.selection.page(size, pins=pins)]
        first_rank = 1 + len(pages[0]) - len(pins)
        while self._rules.is_paged and not self.selection.is_empty:
            pages.append(self.selection.page(size, first_rank=first_rank, fills=False))
            first_rank += len(pages[-1])
        return [self.listed(page) for page in pages]

    def listed(self, page: Sequence[Chosen]) -> Listed:
        known = [None if each.place is None else self._candidates[each.place] for each in page]
        return Listed(
            ranked=[
                found.ranked if found else Ranked(each.row, POPULAR, None, None)
                for each, found in zip(page, known, strict=True)
            ],
            reasons=[found.reason if found else None for found in known],
            moves=[each.moves for each in page],
        )


def distinct_pages(drafts: Sequence[Draft], size: int) -> list[Listed]:
    """A page of each draft; no item is on two of them."""
    taken: set[int] = set()
    pages: list[list[Chosen]] = [[] for _ in drafts]
    for draft in drafts:
        draft.selection.begin_page()
    for rank in range(1, size + 1):
        turns = list(enumerate(drafts))
        for number, draft in turns if rank % 2 else turns[::-1]:
            chosen = draft.selection.next(rank, taken=taken)
            if chosen is not None:
                taken.add(chosen.row)
                pages[number].append(chosen)
    return [draft.listed(page) for draft, page in zip(drafts, pages, strict=True)]
