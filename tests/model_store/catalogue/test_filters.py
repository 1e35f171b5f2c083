"""Filters: what they select, whichever way it is computed, and what they cost when items change."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.catalogue.attributes import Kind
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.conditions import (
    Among,
    Between,
    Bound,
    Condition,
    Every,
    Exists,
    Not,
    Some,
    StartsWith,
    Typed,
    comparisons_in,
    equal_to,
)
from model_store.catalogue.filters import Filters
from model_store.catalogue.items import Item

SCALARS = st.sampled_from([True, False, 0, 1, 1.0, 2.5, -3, "", "a", "ab", "b", "2024-05-31", 2**60, 2**60 + 1])
ORDERED = SCALARS.filter(lambda value: not isinstance(value, bool))
NAMES = st.sampled_from(["kind", "year", "item_id", "title", "none"])
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.none() | st.just({"deep": 1})
ITEMS = st.builds(
    Item,
    item_id=st.sampled_from("abcdefgh"),
    title=st.sampled_from(["a", "ab", "b c"]),
    attributes=st.dictionaries(st.sampled_from(["kind", "year", "title"]), VALUES),
)
SHOPS = st.lists(ITEMS, max_size=8, unique_by=lambda item: item.item_id)


@st.composite
def ranges(draw: st.DrawFn) -> Between:
    kind: Kind = draw(st.sampled_from(["number", "text"]))
    wanted = ORDERED.filter(lambda value: isinstance(value, str) == (kind == "text"))
    bounds = st.none() | st.builds(Bound, wanted, st.booleans())
    return Between(draw(NAMES), kind, draw(bounds), draw(bounds))


LEAVES = (
    st.builds(equal_to, NAMES, st.lists(SCALARS, max_size=3))
    | ranges()
    | st.builds(StartsWith, NAMES, st.sampled_from(["a", "ab", "2024"]))
    | st.builds(Exists, NAMES)
)
CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    LEAVES,
    lambda parts: (
        st.builds(Not, parts)
        | st.builds(Every, st.lists(parts, max_size=3).map(tuple))
        | st.builds(Some, st.lists(parts, max_size=3).map(tuple))
    ),
    max_leaves=6,
)


@settings(max_examples=100)
@given(SHOPS, st.lists(CONDITIONS, min_size=1, max_size=3), st.lists(st.lists(ITEMS, max_size=3), max_size=3))
def test_a_mask_says_of_each_item_what_the_condition_says(
    shop: list[Item], conditions: list[Condition], changes: list[list[Item]]
) -> None:
    """By postings and sorted values, for items that changed once or again, and for what was kept from before."""
    filters, catalogue = Filters(), Catalogue(shop)
    for batch in [[], *changes]:
        catalogue = catalogue.with_items(batch)
        for condition in conditions:
            expected = [condition.holds(item) for item in catalogue.items]
            assert filters.mask(catalogue, condition).tolist() == expected, condition
            assert Filters().mask(catalogue, condition).tolist() == expected, f"{condition}, nothing kept"


def held(condition: Condition, **attributes: Any) -> bool:
    return condition.holds(Item("i1", "Uncle Bramble", attributes=attributes))


@pytest.mark.parametrize(
    ("condition", "attributes", "expected"),
    [
        (equal_to("x", [1]), {"x": 1.0}, True),
        (equal_to("x", [1]), {"x": True}, False),
        (equal_to("x", ["a", 2]), {"x": ["b", 2]}, True),
        (Not(equal_to("x", [1])), {}, True),
        (Between("x", "number", Bound(1, is_included=True), None), {"x": 1}, True),
        (Between("x", "number", Bound(1, is_included=False), None), {"x": 1}, False),
        (Between("x", "number", Bound(1, is_included=True), None), {"x": "5"}, False),
        (Between("x", "number", Bound(0, is_included=True), None), {"x": True}, False),
        (Between("x", "text", None, Bound("2024-06", is_included=False)), {"x": "2024-05-31"}, True),
        (Between("x", "number", Bound(2, is_included=True), Bound(4, is_included=True)), {"x": [1, 5]}, False),
        (StartsWith("title", "Uncle"), {}, True),
        (StartsWith("title", "uncle"), {}, False),
        (Exists("x"), {"x": None}, False),
        (Exists("x"), {"x": []}, False),
        (Exists("item_id"), {}, True),
        (equal_to("item_id", ["i1"]), {}, True),
        (Every(()), {}, True),
        (Some(()), {}, False),
    ],
)
def test_what_a_comparison_means(condition: Condition, attributes: dict[str, Any], expected: bool) -> None:
    assert held(condition, **attributes) is expected


def test_values_of_different_types_make_different_conditions() -> None:
    """Masks are kept by condition, and for Python 1 equals True."""
    assert equal_to("x", [1]) != equal_to("x", [True]) and equal_to("x", [1]) == Among("x", (Typed("number", 1.0),))


def test_the_comparisons_of_a_tree_come_in_order() -> None:
    first, second, third = equal_to("a", [1]), Exists("b"), StartsWith("c", "x")
    assert list(comparisons_in(Every((first, Not(Some((second, third))))))) == [first, second, third]


def test_a_change_tests_the_changed_item_only(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item(f"i{row}", f"Title {row}", attributes={"year": row}) for row in range(100)]
    filters, condition = Filters(), Between("year", "number", Bound(50, is_included=True), None)
    catalogue = Catalogue(items).with_items([replace(item, attributes={"year": 7}) for item in items[:40]])
    assert not filters.is_cheap(catalogue, condition)
    filters.mask(catalogue, condition)
    assert filters.is_cheap(catalogue, condition)
    tested: list[str] = []
    holds = Between.holds

    def watched(self: Between, item: Item) -> bool:
        tested.append(item.item_id)
        return holds(self, item)

    monkeypatch.setattr(Between, "holds", watched)
    assert filters.mask(catalogue, condition).sum() == 50 and tested == []
    changed = catalogue.with_items(
        [Item("i3", "x", attributes={"year": 60}), Item("new", "y", attributes={"year": 70})]
    )
    assert filters.mask(changed, condition).sum() == 52 and tested == ["i3", "new"]


def test_masks_that_were_not_used_lately_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_store.catalogue.filters._MASKS_BYTES", 10)
    filters, catalogue = Filters(), Catalogue([Item("a", "A")])
    conditions = [equal_to("x", [number]) for number in range(20)]
    for condition in conditions:
        filters.mask(catalogue, condition)
    assert [filters.is_cheap(catalogue, each) for each in conditions] == [False] * 10 + [True] * 10
