"""Exploration: some places of a list show items of which little is known, drawn among those that fit the user best.

In: the id of the answer, the share of places, and such items in the order in which they fit. Out: places, and the items
in the order in which they are tried. All draws follow from the id of the answer and the number of the page, so the
draws of an answer can be made again. Pure.

Every place of a page is as likely as any other, and a page of k places has ⌊share · k⌋ or one more, so that the mean is
share · k. Of the items, the one at rank r is drawn with a probability that is proportional to 1/r among those left: the
best fit is drawn most often, and none is left out for ever.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import floor, log
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.answers import POPULAR, Ranked
from model_store.catalogue.catalogue import Catalogue
from service.usecases.ranking.rules import Exploration, Rules

MOST_EXPLORED = 50  # items that are drawn from, the best fits
_NO_ROWS = np.zeros(0, dtype=np.int64)

T = TypeVar("T")


def dice_of(recommendation_id: str, page: int = 0) -> random.Random:
    """Of the page of an answer; the same numbers in every process."""
    return random.Random(f"exploration {recommendation_id} {page}")


def without_idle(rules: Rules, size: int, recommendation_id: str) -> Rules:
    """The rules without exploration if it explores no place of the only page: then it costs nothing."""
    if rules.exploration is None or rules.is_paged:
        return rules
    is_idle = not places_of(dice_of(recommendation_id), rules.exploration.share, size, range(1, size + 1))
    return replace(rules, exploration=None) if is_idle else rules


def places_of(dice: random.Random, share: float, size: int, free: Iterable[int]) -> list[int]:
    """The positions of a page of `size` places that are explored, of those that are `free`, in random order."""
    number = floor(share * size + dice.random())
    return shuffled(dice, sorted(free))[:number]


def by_chance(dice: random.Random, fitting: Sequence[T]) -> list[T]:
    """`fitting`, the best first, in random order: each time the item at rank r comes with a weight of 1/r."""
    keys = [-log(1 - dice.random()) * rank for rank in range(1, len(fitting) + 1)]  # the smallest key comes first
    return [fitting[place] for place in sorted(range(len(fitting)), key=keys.__getitem__)]


def shuffled(dice: random.Random, values: Sequence[T]) -> list[T]:
    """`random.Random.shuffle` may differ between versions of Python; `random` does not."""
    keys = [dice.random() for _ in values]
    return [values[place] for place in sorted(range(len(values)), key=keys.__getitem__)]


def some_of(dice: random.Random, allowed: NDArray[np.bool_]) -> list[Ranked]:
    """At most `MOST_EXPLORED` items of `allowed` (N,): where nothing is known of the user, all fit alike."""
    rows = np.flatnonzero(allowed)
    drawn: Iterable[int] = range(len(rows))
    if len(rows) > MOST_EXPLORED:
        drawn = dict.fromkeys(int(dice.random() * len(rows)) for _ in range(MOST_EXPLORED))
    return [Ranked(int(rows[place]), POPULAR, None, None) for place in shuffled(dice, list(drawn))]


def little_known(
    catalogue: Catalogue,
    exploration: Exploration,
    allowed: NDArray[np.bool_],
    now: int,
    *,
    without: NDArray[np.int64] = _NO_ROWS,
) -> NDArray[np.bool_]:
    """(N,) the items of `allowed` (N,) that may be explored, not those of the rows `without` (n,).

    Costs the items with few events, not all items.
    """
    rows = catalogue.with_at_most(exploration.max_events)
    rows = rows[allowed[rows]]
    if exploration.max_age_s is not None:
        rows = rows[catalogue.added_at[rows] >= max(now - exploration.max_age_s, 1)]
    found = np.zeros(len(allowed), dtype=bool)
    found[rows] = True
    found[without[without < len(found)]] = False
    return found
