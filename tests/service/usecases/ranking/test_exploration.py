"""Exploration, each law against a plain version of what it says: places, draws, caps, pages, several users."""

from collections import Counter
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_store.answers import GENERATED, Ranked
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.filters import Filters
from model_store.catalogue.items import Item
from service.usecases.ranking.candidates import candidates_of
from service.usecases.ranking.draft import Draft, Listed, distinct_pages
from service.usecases.ranking.exploration import by_chance, dice_of, little_known, places_of, some_of, without_idle
from service.usecases.ranking.moves import Move
from service.usecases.ranking.rules import Cap, Exploration, Pin, Rules

NUM_ITEMS, FIRST_UNKNOWN = 40, 25
CATALOGUE = Catalogue(
    Item(f"i{row}", f"Title {row}", popularity=100 - row if row < FIRST_UNKNOWN else 0, attributes={"series": row % 4})
    for row in range(NUM_ITEMS)
)
KNOWN, UNKNOWN = list(range(FIRST_UNKNOWN)), list(range(FIRST_UNKNOWN, NUM_ITEMS))
HALF = Exploration(0.5)


def draft(rules: Rules, name: str, rows: list[int] = KNOWN, unknown: list[int] = UNKNOWN) -> Draft:
    def ranked(rows: list[int]) -> list[Ranked]:
        return [Ranked(row, GENERATED, -place / 2, 0.0) for place, row in enumerate(rows)]

    return Draft(
        candidates_of(CATALOGUE, ranked(rows)),
        rules,
        CATALOGUE,
        Filters().mask,
        allowed=np.ones(NUM_ITEMS, dtype=bool),
        little_known=candidates_of(CATALOGUE, ranked(unknown)),
        name=name,
    )


def rows_of(page: Listed) -> list[int]:
    return [found.row for found in page.ranked]


def explored(page: Listed) -> list[int]:
    return [found.row for found, is_explored in zip(page.ranked, page.explored, strict=True) if is_explored]


@pytest.mark.parametrize(("share", "size"), [(0.05, 10), (0.1, 10), (0.25, 7), (0.5, 3), (0.3, 1)])
def test_the_share_is_met_and_every_place_is_as_likely(share: float, size: int) -> None:
    number = 4000
    found = [places_of(dice_of(f"answer {each}"), share, size, range(1, size + 1)) for each in range(number)]
    assert {len(places) for places in found} <= {floor(share * size), floor(share * size) + 1}
    mean = sum(map(len, found)) / number
    assert abs(mean - share * size) < 4 * 0.5 / number**0.5, "more than four standard deviations away"
    counts = Counter(place for places in found for place in places)
    expected = share * number
    assert all(abs(counts[place] - expected) < 5 * expected**0.5 for place in range(1, size + 1)), counts


def test_the_best_fit_is_drawn_most_and_none_is_left_out() -> None:
    first = Counter(by_chance(dice_of(f"answer {each}"), range(50))[0] for each in range(4000))
    assert first[0] > first[1] > first[4] > first[20] > 0
    harmonic = sum(1 / rank for rank in range(1, 51))
    assert abs(first[0] / 4000 - 1 / harmonic) < 0.03
    assert sorted(by_chance(dice_of("x"), range(50))) == list(range(50))


@settings(max_examples=60)
@given(
    st.text(max_size=4),
    st.floats(0.01, 0.5),
    st.integers(1, 12),
    st.lists(st.sampled_from(["series"]).map(lambda name: Cap(name, 2)), max_size=1),
    st.booleans(),
)
def test_pages_with_explored_items_neither_repeat_nor_lose_a_candidate(
    name: str, share: float, size: int, caps: list[Cap], has_pin: bool
) -> None:
    pins = [Pin("i3", 1)] if has_pin else []
    rules = Rules(caps=caps, pins=pins, exploration=Exploration(share), is_paged=True)
    pages = draft(rules, name).pages(size)
    together = [row for page in pages for row in rows_of(page)]
    assert len(set(together)) == len(together) and set(KNOWN) <= set(together)
    for page in pages:
        assert len(page.ranked) <= size and set(explored(page)) <= set(UNKNOWN)
        assert len(explored(page)) <= floor(share * size) + 1
        counts = Counter(row % 4 for row in rows_of(page))
        assert not caps or all(count <= 2 for count in counts.values()), "an explored item exceeds a cap"
    assert not has_pin or rows_of(pages[0])[0] == 3
    if not caps:
        others = [row for page in pages for row in rows_of(page) if row not in explored(page) and row != 3]
        assert [row for row in others if row in KNOWN] == [row for row in KNOWN if row != 3], "the order changed"
    again = draft(rules, name).pages(size)
    assert [rows_of(page) for page in again] == [rows_of(page) for page in pages], "the draws follow from the id"


def test_what_would_be_shown_anyway_is_not_explored() -> None:
    page = draft(Rules(exploration=HALF), "a", rows=UNKNOWN[:4], unknown=UNKNOWN[:4]).pages(4)[0]
    assert rows_of(page) == UNKNOWN[:4] and not any(page.explored)
    deeper = draft(Rules(exploration=HALF), "a", rows=KNOWN + UNKNOWN, unknown=UNKNOWN).pages(4)[0]
    assert len(explored(deeper)) == 2, "a candidate that is far behind may be explored"


def test_a_move_names_exploration() -> None:
    page = draft(Rules(exploration=HALF), "a").pages(4)[0]
    places = [rank for rank, is_explored in enumerate(page.explored, start=1) if is_explored]
    assert len(places) == 2
    for rank, (row, moves) in enumerate(zip(rows_of(page), page.moves, strict=True), start=1):
        before = None if rank in places else row + 1
        assert moves == ([] if before == rank else [Move("exploration", before, rank)])


def test_distinct_lists_share_no_explored_item() -> None:
    drafts = [draft(Rules(exploration=HALF, is_distinct=True), f"{number}", unknown=UNKNOWN[:6]) for number in range(4)]
    pages = distinct_pages(drafts, 4)
    together = [row for page in pages for row in rows_of(page)]
    assert len(set(together)) == len(together) == 16
    assert sum(len(explored(page)) for page in pages) == 6, "all that there are, and no more"


def test_little_known_is_what_has_few_events_and_is_young_enough() -> None:
    allowed = np.ones(NUM_ITEMS, dtype=bool)
    allowed[UNKNOWN[0]] = False
    found = np.flatnonzero(little_known(CATALOGUE, Exploration(0.1, max_events=0), allowed, now=100))
    assert found.tolist() == UNKNOWN[1:]
    ended = np.array([UNKNOWN[2], NUM_ITEMS + 5])  # also of an item that came after the mask was made
    left = little_known(CATALOGUE, Exploration(0.1, max_events=0), allowed, now=100, without=ended)
    assert np.flatnonzero(left).tolist() == [row for row in UNKNOWN[1:] if row != UNKNOWN[2]]
    counted = CATALOGUE.with_live(np.bincount([UNKNOWN[1]] * 11, minlength=NUM_ITEMS).astype(float))
    assert np.flatnonzero(little_known(counted, Exploration(0.1), allowed, now=100)).tolist() == UNKNOWN[2:]
    later = CATALOGUE.with_items([Item("old", "Old", added_at=100), Item("new", "New", added_at=900)])
    everything = np.ones(len(later), dtype=bool)
    young = little_known(later, Exploration(0.1, max_age_s=200), everything, now=1000)
    assert np.flatnonzero(young).tolist() == [later.rows["new"]]


def test_without_a_place_to_explore_the_rules_are_those_without_exploration() -> None:
    rules = Rules(exploration=Exploration(0.01))
    found = [without_idle(rules, 10, f"{number}").exploration for number in range(300)]
    assert 10 < sum(each is not None for each in found) < 60
    assert without_idle(Rules(exploration=Exploration(0.01), is_paged=True), 10, "1").exploration is not None


def test_some_of_are_different_allowed_rows() -> None:
    allowed = np.zeros(1000, dtype=bool)
    allowed[100:900] = True

    def drawn(name: str, allowed: NDArray[np.bool_] = allowed) -> list[int]:
        return [each.row for each in some_of(dice_of(name), allowed)]

    rows = drawn("a")
    assert 40 < len(set(rows)) == len(rows) <= 50 and all(allowed[row] for row in rows)
    assert rows != drawn("b") and rows == drawn("a")
    assert sorted(drawn("a", allowed & (np.arange(1000) < 103))) == [100, 101, 102]
