"""The rules that sort candidates: boosts, rotation, diversity.

In: scores of candidates, best first, and for each rule one number or vector for each candidate. Out: the candidates in
another order, and what each rule moved. Equal scores keep their order. Pure.
"""

import numpy as np
from numpy.typing import NDArray

from service.usecases.ranking.moves import Move, Rule

Floats = NDArray[np.floating]


class Ordering:
    """`places` (n,): the candidates by their first place, best first. `scores` (n,) by first place."""

    def __init__(self, scores: Floats) -> None:
        """`scores` do not rise."""
        self.scores = scores.astype(np.float64)
        self.places = np.arange(len(scores))
        self.moves: list[list[Move]] = [[] for _ in range(len(scores))]

    def boost(self, additions: Floats) -> None:
        """Adds to the scores (n,)."""
        self.scores = self.scores + additions
        self._reorder("boosts", self.places[np.argsort(-self.scores[self.places], kind="stable")])

    def rotate(self, shown_at: Floats, rate: float) -> None:
        """`shown_at` (n,): when an item was shown, NaN if it was not. With a `rate` of 1 such items come last.

        A score loses `rate` of what it is above the lowest score. Of equal scores the items that were not shown come
        first, then those that were shown longest ago.
        """
        is_shown = ~np.isnan(shown_at)
        if is_shown.any():
            lowest = self.scores.min()
            self.scores = np.where(is_shown, lowest + (1 - rate) * (self.scores - lowest), self.scores)
            keys = np.where(is_shown, shown_at, -1.0)[self.places], -self.scores[self.places]
            self._reorder("rotation", self.places[np.lexsort(keys)])

    def diversify(self, vectors: Floats, weight: float) -> None:
        """Maximal marginal relevance by `vectors` (n, D): one by one the item with the largest

            (1 − weight) · relevance − weight · largest likeness to the items before it

        The relevance is the score, scaled to 0…1; the likeness is 1 − the distance, as a share of the largest distance.
        """
        if len(self.places):
            self._reorder("diversity", self.places[marginal_order(self._relevance(), vectors[self.places], weight)])

    def _relevance(self) -> Floats:
        """(n,) in the current order."""
        scores = self.scores[self.places]
        span = scores.max() - scores.min()
        found: Floats = (scores - scores.min()) / span if span > 0 else np.ones(len(scores))
        return found

    def _reorder(self, rule: Rule, places: NDArray[np.intp]) -> None:
        for rank in np.flatnonzero(places != self.places).tolist():
            before = int(np.flatnonzero(self.places == places[rank])[0])
            self.moves[places[rank]].append(Move(rule, before + 1, rank + 1))
        self.places = places


def marginal_order(relevance: Floats, vectors: Floats, weight: float) -> NDArray[np.intp]:
    """The order of maximal marginal relevance; of equal items the first."""
    likeness = _likeness(vectors.astype(np.float64))
    order = np.zeros(len(relevance), dtype=np.intp)
    values, nearest = (1 - weight) * relevance, np.zeros(len(relevance))
    is_left = np.ones(len(relevance), dtype=bool)
    for rank in range(len(relevance)):
        order[rank] = best = np.where(is_left, values - weight * nearest, -np.inf).argmax()
        is_left[best] = False
        np.maximum(nearest, likeness[best], out=nearest)
    return order


def _likeness(vectors: Floats) -> Floats:
    """(n, n) in 0…1."""
    sizes = (vectors**2).sum(axis=1)
    squared = np.maximum(sizes[:, None] + sizes[None, :] - 2 * vectors @ vectors.T, 0)
    np.fill_diagonal(squared, 0)
    distances = np.sqrt(squared)
    largest = distances.max(initial=0)
    found: Floats = 1 - distances / largest if largest > 0 else np.ones_like(distances)
    return found
