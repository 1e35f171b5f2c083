"""The list that the rules of a request work on: what the model answered, with a score for every item.

An item that the model did not score gets the logarithm of its share of all events, at most the score of the item before
it. So the list is sorted as it was answered, a boost means the same for every item, and the order of popular items
follows their numbers. An item that has a place because it trends or is new counts as much as the item before it, the
first one as much as the most popular item: its own events are no measure of it. Pure.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.answers import LATEST, TRENDING, Ranked, Reason
from model_store.catalogue.catalogue import Catalogue

MOST, LEAST = 500, 200  # candidates that are asked for: of pages and of several users; for other rules


class Candidate(NamedTuple):
    ranked: Ranked
    reason: Reason | None
    score: float


def candidates_of(
    catalogue: Catalogue, ranked: Sequence[Ranked], reasons: Sequence[Reason | None] = ()
) -> list[Candidate]:
    """`reasons`: of the first items of `ranked`; those of the others are not known."""
    total = log(float(catalogue.popularity_of(np.arange(len(catalogue))).sum()) + len(catalogue) + 1)
    found: list[Candidate] = []
    least = log(float(catalogue.popularity_of(catalogue.by_popularity[:1].astype(np.int64)).sum()) + 1) - total
    for place, item in enumerate(ranked):
        score = least if item.source in (TRENDING, LATEST) else item.score
        if score is None:
            score = log(float(catalogue.popularity_of(np.array([item.row]))[0]) + 1) - total
        least = min(least, score) if place else score
        found.append(Candidate(item, reasons[place] if place < len(reasons) else None, least))
    return found


def merged(candidates: Sequence[Candidate], promoted: Sequence[Candidate]) -> list[Candidate]:
    """Both lists in one, by score; an item of both lists has the better of its scores."""
    best: dict[int, Candidate] = {}
    for each in (*candidates, *promoted):
        known = best.get(each.ranked.row)
        if known is None or each.score > known.score:
            best[each.ranked.row] = each
    return sorted(best.values(), key=lambda each: -each.score)


def lifted(allowed: NDArray[np.bool_], boosts: Sequence[tuple[float, NDArray[np.bool_]]]) -> NDArray[np.bool_]:
    """(N,) the items of `allowed` (N,) that gain more than others do; none if all gain the same.

    `boosts`: what each adds, and the mask of the items to which it does.
    """
    additions = np.sum([add * mask[: len(allowed)] for add, mask in boosts], axis=0)
    found: NDArray[np.bool_] = allowed & (additions > additions[allowed].min(initial=np.inf))
    return found


def scores_of(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    return np.array([each.score for each in candidates], dtype=np.float64)
