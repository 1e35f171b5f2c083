"""The list of a user of whom nothing is known: popular items, and at fixed places items that trend and new ones.

In: how many of every so many places each ranking has, and the rankings. Out: items, each with the ranking that put it
there as its `source`. Which ranking a place belongs to depends on the place alone, and each ranking gives its best item
that is not in the list yet, so a shorter list is the beginning of a longer one. Pure.
"""

from collections.abc import Callable, Mapping
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from model_store.answers import LATEST, POPULAR, TRENDING, Ranked, Source
from model_store.catalogue.catalogue import Catalogue, first_allowed

NEW_S = 30 * 86_400  # seconds for which an item is new


class ColdStart:
    def __init__(self, shares: Mapping[Source, int], trending: Callable[[], NDArray[np.int64]]) -> None:
        """`shares`: of POPULAR, TRENDING and LATEST. `trending`: gives rows, best first."""
        self._places, self._trending = places_of(shares), trending

    def items(self, catalogue: Catalogue, allowed: NDArray[np.bool_], num_results: int, now: float) -> list[Ranked]:
        """At most `num_results` items of `allowed` (N,), at the time `now`, epoch seconds.

        The places of a ranking that has no item left are those of popularity.
        """
        rankings = {POPULAR: iter(catalogue.most_popular(allowed, num_results))}
        if TRENDING in self._places:
            rankings[TRENDING] = iter(first_allowed(self._trending(), allowed, num_results))
        if LATEST in self._places:
            rankings[LATEST] = iter(catalogue.latest(allowed, num_results, since=max(int(now) - NEW_S, 1)))
        found: dict[int, Source] = {}
        for source in islice(cycle(self._places), num_results):
            for each in (source, POPULAR):
                row = next((row for row in rankings[each] if row not in found), None)
                if row is not None:
                    found[row] = each
                    break
            else:  # popularity ranks every item
                break
        return [Ranked(row, source, None, None) for row, source in found.items()]


def places_of(shares: Mapping[Source, int]) -> list[Source]:
    """Which ranking each place belongs to, in as many places as the sum of `shares`; the places after them repeat it.

    Each place goes to the ranking that has got least of its share so far, the first of several. So the places of a
    ranking are spread evenly, and it has its share exactly.
    """
    total, given = sum(shares.values()), dict.fromkeys(shares, 0)
    places: list[Source] = []
    for number in range(1, total + 1):
        chosen = max(shares, key=lambda source: shares[source] * number - total * given[source])
        given[chosen] += 1
        places.append(chosen)
    return places
