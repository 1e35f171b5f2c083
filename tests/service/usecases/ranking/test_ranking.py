"""The rules of a list, each against a plain version of what it says."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.answers import GENERATED, POPULAR, Ranked
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.conditions import equal_to
from model_store.catalogue.filters import Filters
from model_store.catalogue.items import Item
from service.usecases.ranking.candidates import candidates_of, merged
from service.usecases.ranking.draft import Draft, Listed, distinct_pages
from service.usecases.ranking.moves import Move
from service.usecases.ranking.order import Ordering, marginal_order
from service.usecases.ranking.rules import Boost, Cap, Pin, Rotation, Rules

NUM_ITEMS = 24
ITEMS = [
    Item(
        f"i{row}", f"Title {row}", popularity=row % 7, attributes={"series": row % 4, "tags": [row % 3, f"t{row % 5}"]}
    )
    for row in range(NUM_ITEMS - 4)
] + [Item(f"i{row}", f"Title {row}") for row in range(NUM_ITEMS - 4, NUM_ITEMS)]
CATALOGUE = Catalogue(ITEMS)
SCORES = st.lists(st.sampled_from([0.0, -0.5, -1.0, -3.0, -8.0]), min_size=1, max_size=10).map(sorted)


def draft(rules: Rules, rows: list[int], allowed: set[int] | None = None) -> Draft:
    """The candidates `rows`, each worse than the one before by one half."""
    ranked = [Ranked(row, GENERATED, -place / 2, 0.0) for place, row in enumerate(rows)]
    mask = np.array([allowed is None or row in allowed for row in range(NUM_ITEMS)])
    return Draft(candidates_of(CATALOGUE, ranked), rules, CATALOGUE, Filters().mask, allowed=mask)


def rows_of(page: Listed) -> list[int]:
    return [found.row for found in page.ranked]


def values(row: int, attribute: str) -> set[Any]:
    found = ITEMS[row].attributes.get(attribute, [])
    return set(found if isinstance(found, list) else [found])


# ---- boosts


@given(SCORES, st.data())
def test_boosts_order_by_the_sum_and_equal_sums_keep_their_order(scores: list[float], data: st.DataObject) -> None:
    scores = scores[::-1]
    added = data.draw(st.lists(st.sampled_from([0.0, 0.5, 3.0, -1.0]), min_size=len(scores), max_size=len(scores)))
    ordering = Ordering(np.array(scores))
    ordering.boost(np.array(added))
    places = sorted(range(len(scores)), key=lambda place: (-(scores[place] + added[place]), place))
    assert ordering.places.tolist() == places
    for rank, place in enumerate(places, start=1):
        expected = [Move("boosts", place + 1, rank)] if place + 1 != rank else []
        assert ordering.moves[place] == expected


def test_several_boosts_of_an_item_add_up() -> None:
    odd, last = equal_to("series", [1, 3]), equal_to("item_id", ["i3"])
    rules = Rules(boosts=[Boost(odd, 1.2), Boost(last, 1.5)])
    assert rows_of(draft(rules, [0, 1, 2, 3]).pages(4)[0]) == [3, 1, 0, 2]


def test_what_is_boosted_far_behind_comes_from_the_second_list_with_its_better_score() -> None:
    first = candidates_of(CATALOGUE, [Ranked(0, GENERATED, -1.0, 0.0), Ranked(1, GENERATED, -2.0, 0.0)])
    second = candidates_of(CATALOGUE, [Ranked(1, GENERATED, -0.5, 0.0), Ranked(9, GENERATED, -1.5, 0.0)])
    assert [(each.ranked.row, each.score) for each in merged(first, second)] == [(1, -0.5), (0, -1.0), (9, -1.5)]


def test_items_without_a_score_are_worth_their_popularity_and_keep_their_places() -> None:
    popular = [Ranked(row, POPULAR, None, None) for row in (6, 5, 0)]
    alone = candidates_of(CATALOGUE, popular)
    shares = [np.exp(each.score) for each in alone]
    assert shares[0] / shares[2] == pytest.approx(7) and shares[1] / shares[2] == pytest.approx(6)
    after = candidates_of(CATALOGUE, [Ranked(3, GENERATED, -9.0, 0.0), *popular])
    assert [each.score for each in after] == [-9.0] * 4


# ---- rotation


@given(SCORES, st.data(), st.sampled_from([0.0, 0.3, 1.0]))
def test_what_was_shown_sinks_and_nothing_else_does(scores: list[float], data: st.DataObject, rate: float) -> None:
    scores = scores[::-1]
    times = st.sampled_from([np.nan, np.nan, 100.0, 200.0])
    shown_at = data.draw(st.lists(times, min_size=len(scores), max_size=len(scores)))
    ordering = Ordering(np.array(scores))
    ordering.rotate(np.array(shown_at), rate)
    ranks = {place: rank for rank, place in enumerate(ordering.places.tolist())}
    fresh = [place for place, time in enumerate(shown_at) if np.isnan(time)]
    assert sorted(fresh, key=ranks.__getitem__) == fresh, "items that were not shown keep their order"
    if rate == 1:
        shown = sorted(set(range(len(scores))) - set(fresh), key=lambda place: (shown_at[place], place))
        assert ordering.places.tolist() == [*fresh, *shown], "shown ones last, the longest ago first"
    if rate < 1:
        floor = min(scores)
        left = [s if np.isnan(t) else s - rate * (s - floor) for s, t in zip(scores, shown_at, strict=True)]
        assert [left[place] for place in ordering.places] == sorted(left, reverse=True)


# ---- diversity


@settings(max_examples=50)
@given(st.integers(1, 8), st.sampled_from([0.0, 0.4, 1.0]), st.integers(0, 10**6))
def test_diversity_is_marginal_relevance(count: int, weight: float, seed: int) -> None:
    dice = np.random.default_rng(seed)
    relevance, vectors = np.sort(dice.random(count))[::-1], dice.normal(size=(count, 3))
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    likeness = 1 - distances / max(distances.max(), 1e-12) if count > 1 else np.ones((1, 1))
    chosen: list[int] = []
    while len(chosen) < count:
        left = [place for place in range(count) if place not in chosen]
        gains = [
            (1 - weight) * relevance[place] - weight * max((likeness[place, other] for other in chosen), default=0.0)
            for place in left
        ]
        chosen.append(left[int(np.argmax(gains))])
    assert marginal_order(relevance, vectors, weight).tolist() == chosen
    if weight == 0:
        assert chosen == list(range(count))


def test_equal_vectors_or_equal_scores_keep_the_order() -> None:
    ordering = Ordering(np.zeros(4))
    ordering.diversify(np.ones((4, 2)), 0.7)
    assert ordering.places.tolist() == [0, 1, 2, 3]
    Ordering(np.zeros(0)).diversify(np.zeros((0, 1)), 0.5)


# ---- caps and pins


CAPS = st.lists(st.builds(Cap, st.sampled_from(["series", "tags", "none"]), st.integers(1, 3)), max_size=2)


@settings(max_examples=100)
@given(
    st.permutations(range(NUM_ITEMS)).map(lambda rows: rows[:12]),
    CAPS,
    st.lists(st.integers(0, NUM_ITEMS - 1), max_size=3, unique=True),
    st.integers(3, 12),
    st.sets(st.integers(0, NUM_ITEMS - 1), min_size=4),
)
def test_caps_hold_and_pins_stand_and_no_item_that_fits_is_missing(
    rows: list[int], caps: list[Cap], pinned: list[int], size: int, allowed: set[int]
) -> None:
    rules = Rules(
        caps=caps, pins=[Pin(f"i{row}", 2 * place + 1) for place, row in enumerate(pinned) if 2 * place < size]
    )
    page = draft(rules, [row for row in rows if row in allowed], allowed).pages(size)[0]
    found = rows_of(page)
    assert len(set(found)) == len(found) <= size and set(found) <= allowed
    pins = {pin.position: int(pin.item_id[1:]) for pin in rules.pins if int(pin.item_id[1:]) in allowed}
    for position, row in pins.items():
        assert row in found and (found.index(row) + 1 == position or len(found) < max(pins))
    counts = {cap: Counter(value for row in found for value in values(row, cap.attribute)) for cap in caps}
    own = {cap: Counter(value for row in pins.values() for value in values(row, cap.attribute)) for cap in caps}
    for cap in caps:
        assert all(count <= max(cap.at_most, own[cap][value]) for value, count in counts[cap].items())
    if len(found) < size:
        for row in allowed - set(found):
            assert any(counts[cap][value] >= cap.at_most for cap in caps for value in values(row, cap.attribute)), (
                f"{row} would fit"
            )
    kept = [row for row in found if row in rows and row not in pins.values()]
    assert kept == sorted(kept, key=rows.index), "the others keep their order"


@given(st.permutations(range(NUM_ITEMS)), CAPS, st.integers(1, 7), st.booleans())
def test_pages_neither_repeat_nor_lose_a_candidate(rows: list[int], caps: list[Cap], size: int, pins: bool) -> None:
    rules = Rules(caps=caps, pins=[Pin("i5", 1)] if pins else [], is_paged=True)
    pages = [rows_of(page) for page in draft(rules, rows).pages(size)]
    together = [row for page in pages for row in page]
    assert sorted(together) == list(range(NUM_ITEMS)) and all(len(page) <= size for page in pages)
    if not caps and not pins:
        assert together == rows and all(len(page) == size for page in pages[:-1])
    assert pages[0] == rows_of(draft(Rules(caps=caps, pins=rules.pins), rows).pages(size)[0])


def test_a_move_is_told_with_the_rule_and_both_ranks() -> None:
    rules = Rules(caps=[Cap("series", 1)], pins=[Pin("i8", 1)], boosts=[Boost(equal_to("item_id", ["i2"]), 9.0)])
    page = draft(rules, [0, 4, 1, 2]).pages(4)[0]
    assert rows_of(page) == [8, 2, 1, 19], "i8 is of the series of i0 and i4; i19 is the most popular that fits"
    assert [list(moves) for moves in page.moves] == [
        [Move("pins", None, 1)],
        [Move("boosts", 4, 1), Move("pins", 1, 2)],
        [Move("boosts", 3, 4), Move("caps", 4, 2), Move("pins", 2, 3)],
        [Move("caps", None, 3), Move("pins", 3, 4)],
    ]


# ---- several users


@settings(max_examples=50)
@given(
    st.lists(st.permutations(range(NUM_ITEMS)).map(lambda rows: rows[:8]), min_size=1, max_size=5),
    CAPS,
    st.integers(1, 8),
)
def test_distinct_lists_share_no_item_and_each_turn_takes_the_best(
    lists: list[list[int]], caps: list[Cap], size: int
) -> None:
    pages = distinct_pages([draft(Rules(caps=caps, is_distinct=True), rows) for rows in lists], size)
    found = [rows_of(page) for page in pages]
    together = [row for rows in found for row in rows]
    assert len(set(together)) == len(together)
    if not caps:
        assert len(together) == min(NUM_ITEMS, size * len(lists))
    assert found[0][0] == lists[0][0], "the first turn is free"
    if not caps and size == 1:
        taken: set[int] = set()
        for rows, own in zip(found, lists, strict=True):
            assert rows[0] == next((row for row in own if row not in taken), rows[0])
            taken |= set(rows)


def test_turns_go_back_and_forth() -> None:
    same = [draft(Rules(is_distinct=True), list(range(6))) for _ in range(3)]
    assert [rows_of(page) for page in distinct_pages(same, 2)] == [[0, 5], [1, 4], [2, 3]]


def test_rules_without_a_wish_need_no_candidates() -> None:
    assert not Rules().need_candidates and not Rules(rotation=Rotation(1.0, 60)).need_candidates
    assert (
        Rules(rotation=Rotation(1.0, 60), shown_at={"i1": 5}).need_candidates and Rules(is_paged=True).need_candidates
    )
