"""The list of a user of whom nothing is known: shares of its places, and what stands on them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model_store.answers import LATEST, POPULAR, TRENDING, Ranked, Source
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from service.usecases.ranking.candidates import candidates_of
from service.usecases.ranking.cold_start import NEW_S, ColdStart, places_of

SOURCES: Sequence[Source] = (POPULAR, TRENDING, LATEST)
NOW, NUM_OLD, NUM_NEW = 1_700_000_000, 30, 12
OLD = [Item(f"i{row}", f"Title {row}", popularity=100 - row) for row in range(NUM_OLD)]
NEW = [Item(f"n{row}", f"New {row}", added_at=NOW - 60 + row) for row in range(NUM_NEW)]
CATALOGUE = Catalogue([*OLD, *NEW])  # rows 0, 1, … are popular in this order; 41, 40, … are new in this order
TRENDS = [35, 7, 29, 28, 27, 26, 25, 24, 23, 22, 0]
shares_of_places = st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
masks = st.lists(st.booleans(), min_size=len(CATALOGUE), max_size=len(CATALOGUE))
ALL = [True] * len(CATALOGUE)


def items(
    shares: tuple[int, int, int] = (7, 2, 1),
    *,
    k: int = 10,
    trends: Sequence[int] = TRENDS,
    allowed: Sequence[bool] = ALL,
    now: float = NOW,
) -> list[Ranked]:
    start = ColdStart(dict(zip(SOURCES, shares, strict=True)), lambda: np.array(trends, dtype=np.int64))
    return start.items(CATALOGUE, np.array(allowed), k, now)


def plainly(shares: tuple[int, int, int], trends: Sequence[int], allowed: Sequence[bool], k: int) -> list[Ranked]:
    """Place by place: the best item of its ranking that is left, or the most popular one."""
    rankings = {POPULAR: list(range(len(CATALOGUE))), TRENDING: list(trends), LATEST: list(range(41, 29, -1))}
    places, found = places_of(dict(zip(SOURCES, shares, strict=True))), dict[int, Ranked]()
    for place in range(k):
        for source in (places[place % len(places)], POPULAR):
            left = [row for row in rankings[source] if allowed[row] and row not in found]
            if left:
                found[left[0]] = Ranked(left[0], source, None, None)
                break
    return list(found.values())


@given(shares_of_places)
def test_every_ranking_has_its_share_exactly_and_never_more_than_one_place_too_many(
    shares: tuple[int, int, int],
) -> None:
    places, total = places_of(dict(zip(SOURCES, shares, strict=True))), sum(shares)
    assert Counter(places) == Counter(dict(zip(SOURCES, shares, strict=True)))
    for source, share in zip(SOURCES, shares, strict=True):
        for number in range(1, total + 1):
            assert abs(total * places[:number].count(source) - share * number) < total, f"{source} at {number}"


def test_what_trends_and_what_is_new_stand_beside_what_is_popular() -> None:
    assert [(each.row, each.source) for each in items()] == [
        (0, POPULAR), (1, POPULAR), (35, TRENDING), (2, POPULAR), (3, POPULAR),
        (41, LATEST), (4, POPULAR), (5, POPULAR), (7, TRENDING), (6, POPULAR),
    ]  # fmt: skip
    assert [each.source for each in items((1, 0, 0))] == [POPULAR] * 10, "popularity alone is possible"
    assert [each.row for each in items((1, 0, 0))] == list(range(10))


@given(shares_of_places, masks, st.lists(st.sampled_from(range(len(CATALOGUE))), unique=True), st.integers(1, 50))
def test_a_list_is_full_names_an_item_once_and_begins_every_longer_list(
    shares: tuple[int, int, int], allowed: list[bool], trends: list[int], k: int
) -> None:
    found = items(shares, k=k, trends=trends, allowed=allowed)
    assert found == plainly(shares, trends, allowed, k)
    rows = [each.row for each in found]
    assert len(rows) == len(set(rows)) == min(k, sum(allowed)), "places of a ranking that is empty are popular items"
    assert all(allowed[row] for row in rows)
    assert items(shares, k=100, trends=trends, allowed=allowed)[:k] == found


def test_where_a_ranking_has_nothing_its_places_are_popular() -> None:
    without_new = [True] * NUM_OLD + [False] * NUM_NEW
    assert Counter(each.source for each in items(trends=[])) == {POPULAR: 9, LATEST: 1}
    assert Counter(each.source for each in items(allowed=without_new)) == {POPULAR: 8, TRENDING: 2}
    assert [each.row for each in items(trends=[], allowed=without_new)] == list(range(10))


def test_an_item_is_new_for_thirty_days() -> None:
    assert LATEST in {each.source for each in items(now=NOW + NEW_S - 60)}
    assert LATEST not in {each.source for each in items(now=NOW + NEW_S + 60)}


def test_an_item_that_trends_or_is_new_is_worth_as_much_as_the_item_before_it() -> None:
    found = candidates_of(CATALOGUE, items())
    alone = {each.ranked.row: each.score for each in candidates_of(CATALOGUE, items((1, 0, 0)))}
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    assert [scores[place] == scores[place - 1] for place in (2, 5, 8)] == [True] * 3
    assert all(scores[place] == alone[found[place].ranked.row] for place in (0, 1, 3, 4, 6, 7, 9))
    first, *_ = candidates_of(CATALOGUE, [Ranked(41, LATEST, None, None), *items((1, 0, 0))])
    assert first.score == alone[0], "nothing is before the first one, which counts as the most popular item does"
