"""Which items may be recommended, and changes of a catalogue that keep the rows of items."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from model_store.beams import paths
from model_store.bundle import Bundle
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item, clean, read_items, write_items
from model_store.errors import BundleCorrupt
from model_store.manifest import PromptSpec
from model_store.text.prompt import ItemPrompt, Prompt
from model_store.text.vocabulary import ItemVocabulary
from tests.conftest import TITLES, make_tokenizer

PROMPT = Prompt(make_tokenizer(TITLES), PromptSpec())


def test_availability_includes_its_start_and_excludes_its_end() -> None:
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


def test_the_caller_may_change_the_mask() -> None:
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
    assert {item_id: new.rows[item_id] for item_id in old.rows} == old.rows, "known items have other rows"
    assert new.rows["new"] == 20 and len(new) == 21
    assert new.items[2] == Item("i2", "Renamed", popularity=old.items[2].popularity), (
        "the popularity from training was lost"
    )
    assert new.items[20] == Item("new", "Green", popularity=3), "the last of two changes must win"


def test_items_are_sorted_by_popularity_and_then_by_row() -> None:
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
def test_saved_items_read_back_unchanged(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> None:
    path: Path = tmp_path_factory.mktemp("items") / "items.jsonl"
    write_items(items, path)
    assert read_items(path) == items


words = st.lists(st.sampled_from(["Red", "Moon", "Tea", "River"]), min_size=1, max_size=3).map(" ".join)
shelves = st.none() | st.sampled_from(["drama", 1, 1.0, True, 0]) | st.lists(st.sampled_from(["drama", 1]), max_size=2)
shop_items = st.builds(
    Item,
    item_id=st.sampled_from("abcdefgh"),
    title=words,
    popularity=st.integers(0, 3),
    attributes=st.fixed_dictionaries({"shelf": shelves}),
    hidden=st.booleans(),
    available_from=st.none() | st.integers(0, 5),
    available_until=st.none() | st.integers(0, 5),
    added_at=st.none() | st.integers(1, 5),
)
shops = st.lists(shop_items, max_size=8, unique_by=lambda item: item.item_id)


def plainly_with(items: list[Item], changes: list[Item]) -> list[Item]:
    """A simple version of `with_items`: known items keep row and popularity, new items come last."""
    known = {item.item_id: item for item in items}
    for item in changes:
        old = known.get(item.item_id)
        known[item.item_id] = item if old is None else replace(item, popularity=old.popularity)
    return list(known.values())


def answers(catalogue: Catalogue) -> list[object]:
    """The results of all methods of a catalogue."""
    leaves = [catalogue.trie.paths.sequence(place) for place in range(len(catalogue))]
    rows = [sorted(catalogue.trie.allow(catalogue.available(now)).rows(catalogue.trie.root)) for now in range(7)]
    wanted: list[Any] = ["drama", 1, True, ["drama", 0], [], None, {"deep": 1}]
    filters = [catalogue.matching({"shelf": value}).tolist() for value in wanted]
    return [
        list(catalogue.items),
        catalogue.rows,
        catalogue.popularity.tolist(),
        catalogue.added_at.tolist(),
        catalogue.by_popularity.tolist(),
        [catalogue.latest(np.ones(len(catalogue), dtype=bool), 9, since=since) for since in (1, 3, 6)],
        leaves,
        sorted(zip(catalogue.trie.order.tolist(), leaves, strict=True)),
        rows,
        [*filters, catalogue.matching({"shelf": 1, "other": 2}).tolist()],
    ]


@pytest.mark.parametrize("many", [0, 16], ids=["spliced", "sorted again"])
@settings(deadline=None)
@given(items=shops, batches=st.lists(st.lists(shop_items, max_size=3), max_size=3))
def test_changes_in_steps_give_the_same_as_a_new_catalogue(
    many: int, items: list[Item], batches: list[list[Item]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "_SORT_SHARE", many)
        patch.setattr(paths, "_BLOCK", 2)
        catalogue = Catalogue(items, PROMPT)
        for changes in batches:
            before = answers(catalogue)
            changed = catalogue.with_items(changes)
            assert answers(catalogue) == before, "an old snapshot changed"
            catalogue, items = changed, plainly_with(items, changes)
        assert answers(catalogue) == answers(Catalogue(items, PROMPT))


@settings(deadline=None)
@given(shops, st.lists(shop_items, max_size=3))
def test_a_saved_and_opened_catalogue_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, items: list[Item], changes: list[Item]
) -> None:
    vocabulary = ItemVocabulary(["Red", "Moon Tea"], PROMPT.tokenizer)
    folder = tmp_path_factory.mktemp("catalogue")
    for prompt in (PROMPT, ItemPrompt(vocabulary, PromptSpec(head=""))):
        catalogue = Catalogue(items, prompt).with_items(changes)
        catalogue.save(folder / "items.jsonl", folder / "items.safetensors")
        opened = Catalogue.open(folder / "items.jsonl", folder / "items.safetensors", prompt)
        assert answers(opened) == answers(catalogue)
        added = [Item("added", "Added Tea"), *changes]
        assert answers(opened.with_items(added)) == answers(catalogue.with_items(added)), (
            "changes of an opened one differ"
        )


@pytest.mark.parametrize(
    "flaw", ["other titles", "other ids", "fewer items", "another tokenizer", "no columns", "bytes"]
)
def test_columns_of_other_items_are_refused(tmp_path: Path, flaw: str) -> None:
    items, columns = tmp_path / "items.jsonl", tmp_path / "items.safetensors"
    good = [Item(f"i{row}", title) for row, title in enumerate(TITLES)]
    Catalogue(good, PROMPT).save(items, columns)
    prompt = PROMPT
    if flaw == "other titles":
        write_items([replace(item, title=item.title[::-1]) for item in good], items)
    elif flaw == "other ids":
        write_items([replace(item, item_id="j" + item.item_id[1:]) for item in good], items)
    elif flaw == "fewer items":
        write_items(good[:-1], items)
    elif flaw == "another tokenizer":
        prompt = Prompt(make_tokenizer(["Moon"]), PromptSpec())
    elif flaw == "no columns":
        save_file({"starts": load_file(columns)["starts"]}, columns)
    else:
        columns.write_bytes(b"not safetensors")
    with pytest.raises(BundleCorrupt, match=r"items\.safetensors"):
        Catalogue.open(items, columns, prompt)


def test_hiding_an_item_does_not_copy_the_trie(bundle: Bundle) -> None:
    """A million titles must be neither sorted again nor copied because one item is hidden."""
    old = bundle.catalogue
    assert old.with_items([replace(old.items[3], hidden=True)]).trie is old.trie
    assert old.with_items([replace(old.items[3], title="Renamed")]).trie is not old.trie


def test_items_support_negative_rows_and_slices() -> None:
    items = [Item(f"i{row}", title) for row, title in enumerate(TITLES)]
    listed = Catalogue(items, PROMPT).with_items([Item("i3", "x"), Item("new", "y")]).items
    plain = list(listed)
    assert listed[-1] == plain[-1] and listed[-18] == plain[-18] and listed[2:21:3] == plain[2:21:3]
    with pytest.raises(IndexError):
        listed[21]


def test_a_batch_of_titles_has_the_tokens_of_the_titles_alone() -> None:
    titles = ["Red Moon", " Red\nMoon ", "<s>", "</s> x", "", "Ünder\u200b a", "w " * 60]
    flat, counts = PROMPT.tokens_of_titles(titles)
    found = np.split(flat, counts.cumsum()[:-1])
    assert [tuple(tokens.tolist()) for tokens in found] == [PROMPT.title_tokens(title) for title in titles]


def test_clean_tidies_a_title_or_refuses_the_item() -> None:
    assert clean(Item("a", " Red\nMoon ")).title == "Red Moon"
    with pytest.raises(ValueError, match="'a' has no visible title"):
        clean(Item("a", "\u200b\n"))


def test_a_filter_compares_values_as_json_does() -> None:
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


def test_a_replaced_catalogue_is_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    """What the collector was told not to look at would stay for ever: the counts of each trie, 4 bytes an item."""
    Catalogue([Item(f"i{row}", title) for row, title in enumerate(TITLES)], PROMPT).save(
        tmp_path / "items", tmp_path / "columns"
    )
    catalogue = Catalogue.open(tmp_path / "items", tmp_path / "columns", PROMPT)
    gc.collect()
    gc.disable()
    try:
        replaced: list[tuple[str, weakref.ref[Any]]] = []
        for number in range(4):
            trie, paths = catalogue.trie, catalogue.trie.paths
            trie.edge(trie.children(trie.root), 0, 0)
            parts = {"catalogue": catalogue, "trie": trie, "paths": paths, "items": catalogue.items}
            replaced += [(name, weakref.ref(part)) for name, part in parts.items()]
            del trie, paths, parts
            catalogue = catalogue.with_items([Item(f"new-{number}", f"A wholly new title {number}")])
        assert [name for name, part in replaced if part() is not None] == []
        base = weakref.ref(catalogue.items.base)
        del catalogue
        assert base() is None, "the file of a closed bundle stays mapped"
    finally:
        gc.enable()
