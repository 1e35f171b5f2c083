"""Which items may be recommended, and how a catalogue changes without disturbing rows."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.bundle import Bundle
from model_store.catalogue import Catalogue, Item, clean, read_items, write_items
from model_store.manifest import PromptSpec
from model_store.prompt import Prompt
from tests.conftest import TITLES, make_tokenizer

PROMPT = Prompt(make_tokenizer(TITLES), PromptSpec())


def test_availability_windows_include_their_start_and_not_their_end() -> None:
    items = [
        Item("always", "a"),
        Item("hidden", "b", hidden=True),
        Item("from", "c", available_from=10),
        Item("until", "d", available_until=20),
        Item("between", "e", available_from=10, available_until=20),
        Item("never", "f", available_from=20, available_until=10),
        Item("hidden between", "g", hidden=True, available_from=0),
    ]
    catalogue = Catalogue(items, PROMPT)
    names = {now: [items[row].item_id for row in catalogue.available(now).nonzero()[0]] for now in (9.9, 10, 19.9, 20)}
    assert names == {
        9.9: ["always", "until"],
        10: ["always", "from", "until", "between"],
        19.9: ["always", "from", "until", "between"],
        20: ["always", "from"],
    }


def test_the_mask_is_the_callers_own() -> None:
    catalogue = Catalogue([Item("a", "a"), Item("b", "b")], PROMPT)
    catalogue.available(0)[:] = False
    assert catalogue.available(0).all(), "a caller changed the catalogue"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [True, True, True, True]),
        ({"genre": "drama"}, [True, False, True, False]),
        ({"genre": ["war", "drama"]}, [True, True, True, False]),
        ({"genre": "drama", "year": 1999}, [True, False, False, False]),
        ({"year": 2000}, [False, False, True, False]),
        ({"genre": []}, [False] * 4),
        ({"unknown": "x"}, [False] * 4),
        ({"genre": None}, [False] * 4),
    ],
)
def test_items_match_all_attributes_with_any_value(wanted: dict[str, Any], expected: list[bool]) -> None:
    rows: list[dict[str, Any]] = [
        {"genre": "drama", "year": 1999},
        {"genre": ["war", "action"]},
        {"genre": ["drama", "action"], "year": 2000},
        {"genre": None},
    ]
    catalogue = Catalogue([Item(str(row), "t", attributes=attributes) for row, attributes in enumerate(rows)], PROMPT)
    assert catalogue.matching(wanted).tolist() == expected


def test_a_change_makes_a_new_snapshot_and_keeps_rows(bundle: Bundle) -> None:
    old = bundle.catalogue
    new = old.with_items(
        [Item("new", "Green Tea", popularity=3), Item("i2", "Renamed", popularity=99), Item("new", "Green")]
    )
    assert len(old) == 20 and "new" not in old.rows and old.items[2].title != "Renamed", "the old snapshot changed"
    assert {item_id: new.rows[item_id] for item_id in old.rows} == old.rows, "rows of known items moved"
    assert new.rows["new"] == 20 and len(new) == 21
    assert new.items[2] == Item("i2", "Renamed", popularity=old.items[2].popularity), "training's popularity was lost"
    assert new.items[20] == Item("new", "Green", popularity=3), "the last of two changes must win"


def test_the_most_popular_come_first_and_ties_keep_the_order() -> None:
    catalogue = Catalogue([Item(str(row), "t", popularity=count) for row, count in enumerate([1, 5, 1, 9])], PROMPT)
    assert catalogue.by_popularity.tolist() == [3, 1, 0, 2]


attributes = st.dictionaries(
    st.text(), st.one_of(st.text(), st.integers(), st.booleans(), st.lists(st.text())), max_size=3
)
some_items = st.builds(
    Item,
    item_id=st.text(st.characters(exclude_categories=["Cs"])),
    title=st.text(st.characters(exclude_categories=["Cs"])),
    popularity=st.integers(0, 10),
    attributes=attributes,
    hidden=st.booleans(),
    available_from=st.none() | st.integers(),
)


@given(st.lists(some_items, max_size=4))
def test_items_read_back_as_written(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> None:
    path: Path = tmp_path_factory.mktemp("items") / "items.jsonl"
    write_items(items, path)
    assert read_items(path) == items


def test_an_item_is_cleaned_or_refused() -> None:
    assert clean(Item("a", " Red\nMoon ")).title == "Red Moon"
    with pytest.raises(ValueError, match="'a' has no visible title"):
        clean(Item("a", "\u200b\n"))


def test_a_filter_compares_as_json_does_and_survives_nested_attributes() -> None:
    attributes: list[dict[str, Any]] = [
        {"x": True},
        {"x": 1},
        {"x": [1, "a"]},
        {"x": {"deep": 1}},
        {"x": [["a"]]},
        {"x": None},
        {},
    ]
    items = [Item(f"i{row}", f"Title {row}", attributes=found) for row, found in enumerate(attributes)]
    catalogue = Catalogue(items, PROMPT)
    assert catalogue.matching({"x": True}).nonzero()[0].tolist() == [0], "true is not 1"
    assert catalogue.matching({"x": 1}).nonzero()[0].tolist() == [1, 2]
    assert catalogue.matching({"x": ["a", True]}).nonzero()[0].tolist() == [0, 2]
