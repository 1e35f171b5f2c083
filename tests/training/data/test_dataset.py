"""Cleaning sorts and completes any two frames, and counts the rows that it removes."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_store.text.history import clean_title, tie_key
from training.data import cleaning
from training.data.dataset import (
    INTERACTIONS,
    ITEMS,
    MANIFEST,
    QUERIES,
    DataError,
    clean_dataset,
    dataset_stats,
    load_dataset,
    save_dataset,
)

TITLES = {"item_id": ["i1", "i2", "i3"], "title": ["One", "Two", "Three"]}
Event = tuple[str, str, int, float | None]

events_strategy = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "ü 3"]),
        st.sampled_from(["i1", "i2", "i3", "i4"]),
        st.integers(0, 4),
        st.one_of(st.none(), st.sampled_from([1.0, 2.5])),
    ),
    min_size=1,
    max_size=30,
)


def frame(events: list[Event]) -> pl.DataFrame:
    return pl.DataFrame(events, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")


def four_items() -> pl.DataFrame:
    return pl.DataFrame({"item_id": ["i1", "i2", "i3", "i4"], "title": ["A", "B", "C", "D"]})


@given(events_strategy, st.integers(1, 9))
@example([("u1", item, time, None) for time in (1, 2) for item in ("i1", "i2", "i3", "i4")], 3)
def test_histories_are_ordered_by_time_and_tie_key(events: list[Event], at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning, "_TIED_AT_ONCE", at_once)
        cleaned = clean_dataset("x", frame(events), four_items())[0].interactions
    keys = [(user, time, tie_key(user, item)) for user, item, time, _ in cleaned.rows()]
    assert keys == sorted(keys)
    assert {row[:3] for row in cleaned.rows()} == {event[:3] for event in events}, "rows were lost or added"


@given(events_strategy, st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_matter(events: list[Event], random: Any) -> None:
    shuffled = random.sample(events, len(events))
    ours, theirs = (clean_dataset("x", frame(rows), four_items())[0] for rows in (events, shuffled))
    assert ours.interactions.equals(theirs.interactions)


@given(events_strategy)
def test_cleaning_twice_changes_nothing(events: list[Event]) -> None:
    once, _ = clean_dataset("x", frame(events), four_items())
    twice, dropped = clean_dataset("x", once.interactions, once.items)
    assert once.interactions.equals(twice.interactions) and once.items.equals(twice.items)
    assert set(vars(dropped).values()) == {0}


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
def test_titles_are_clean_and_never_empty(titles: list[str]) -> None:
    ids = [f"i{n}" for n in range(len(titles))] + ["kept"]
    items = pl.DataFrame({"item_id": ids, "title": [*titles, "Kept"]})
    dataset, dropped = clean_dataset("x", frame([("u", "kept", 1, None)]), items)
    expected = [clean_title(title) for title in titles if clean_title(title)]
    assert sorted(dataset.items["title"]) == sorted([*expected, "Kept"])
    assert dropped.items_without_title == len(titles) - len(expected)


def test_every_removed_row_is_counted_once() -> None:
    events = frame(
        [
            ("u1", "i1", 5, 3.0),
            ("u1", "i1", 5, 4.0),  # repeated
            ("u1", "i1", 6, None),  # a later interaction, not a repeated row
            ("", "i1", 5, None),  # no user
            ("u1", "i9", 5, None),  # not in items
            ("u1", "i3", 5, None),  # an item with a blank title
        ]
    )
    items = pl.DataFrame({"item_id": ["i1", "i1", "i3"], "title": ["One", "Uno", " \n"]})
    dataset, dropped = clean_dataset("x", events, items)
    assert dataset.interactions.rows() == [("u1", "i1", 5, 4.0), ("u1", "i1", 6, None)]
    assert dataset.items.rows() == [("i1", "One")]
    assert vars(dropped) == {
        "interactions_incomplete": 1,
        "interactions_without_item": 2,
        "interactions_repeated": 1,
        "items_without_title": 1,
        "items_repeated": 1,
        "queries": 0,
    }


def test_ids_of_other_types_become_text() -> None:
    events = pl.DataFrame({"user_id": [1, 1], "item_id": [17.0, 18.0], "timestamp": [2.9, 1.0]})
    items = pl.DataFrame({"item_id": [17, 18], "title": ["A", "B"]})
    dataset, _ = clean_dataset("x", events, items)
    assert dataset.interactions.rows() == [("1", "18", 1, None), ("1", "17", 2, None)]
    assert dataset.interactions.schema == {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "rating": pl.Float32,
    }


def test_dates_become_seconds_and_attributes_become_plain_values() -> None:
    when = datetime(2020, 1, 1)
    events = pl.DataFrame({"user_id": ["u"], "item_id": ["i1"], "timestamp": [when]})
    items = pl.DataFrame({"item_id": ["i1"], "title": ["One"], "out": [when], "price": [float("nan")]})
    dataset, _ = clean_dataset("x", events, items)
    assert dataset.interactions["timestamp"].to_list() == [1577836800]
    assert json.loads(json.dumps(dataset.items.to_dicts()))[0]["price"] is None


def test_milliseconds_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 1 timestamps.*divide by 1000"):
        clean_dataset("x", frame([("u", "i1", 1_700_000_000_000, None)]), four_items())


def test_an_empty_result_is_an_error_that_says_why() -> None:
    with pytest.raises(DataError, match=r"none of 1 interactions is left: .*interactions without item: 1"):
        clean_dataset("x", frame([("u", "i9", 1, None)]), four_items())


def test_a_missing_column_is_named_with_the_found_ones() -> None:
    with pytest.raises(DataError, match=r"items.parquet: column title is missing \(found: item_id, name\)"):
        clean_dataset("x", frame([]), pl.DataFrame({"item_id": ["i1"], "name": ["One"]}))


def test_a_data_set_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    dataset, dropped = clean_dataset("books", frame([("u", "i1", 1, 2.0)]), pl.DataFrame(TITLES))
    manifest = save_dataset(dataset, tmp_path / "new" / "data", source={"format": "test"}, dropped=dropped)
    loaded = load_dataset(tmp_path / "new" / "data")
    assert loaded.name == "books"
    assert loaded.interactions.equals(dataset.interactions) and loaded.items.equals(dataset.items)
    assert manifest["stats"] == dataset_stats(dataset)
    assert sorted(f.name for f in (tmp_path / "new" / "data").iterdir()) == [MANIFEST, INTERACTIONS, ITEMS]


def test_saving_again_replaces_the_files(tmp_path: Path) -> None:
    for item in ("i1", "i2"):
        save_dataset(clean_dataset("x", frame([("u", item, 1, None)]), pl.DataFrame(TITLES))[0], tmp_path)
    assert load_dataset(tmp_path).interactions["item_id"].to_list() == ["i2"]


def write_raw(path: Path) -> None:
    frame([("u", "i1", 1, 2.0)]).write_parquet(path / INTERACTIONS)
    pl.DataFrame(TITLES).write_parquet(path / ITEMS)


def test_raw_data_has_the_name_of_its_directory(tmp_path: Path) -> None:
    write_raw(tmp_path)
    assert load_dataset(tmp_path).name == tmp_path.name


def test_raw_data_is_never_overwritten(tmp_path: Path) -> None:
    write_raw(tmp_path)
    with pytest.raises(DataError, match="raw data"):
        save_dataset(load_dataset(tmp_path), tmp_path)


def test_raw_data_that_would_lose_much_is_refused(tmp_path: Path) -> None:
    frame([("u", "i1", 1, 2.0), ("u", "i9", 1, 2.0)]).write_parquet(tmp_path / INTERACTIONS)
    pl.DataFrame(TITLES).write_parquet(tmp_path / ITEMS)
    with pytest.raises(DataError, match=r"1 of 2 interactions would be left out"):
        load_dataset(tmp_path)


def test_a_prepared_file_that_changed_is_noticed(tmp_path: Path) -> None:
    save_dataset(clean_dataset("x", frame([("u", "i1", 1, None)]), pl.DataFrame(TITLES))[0], tmp_path)
    pl.DataFrame(TITLES).write_parquet(tmp_path / ITEMS, compression="gzip")
    with pytest.raises(DataError, match=r"items.parquet: changed since prepared"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet PAR1", b"\x00" * 100])
def test_unreadable_files_are_named(tmp_path: Path, content: bytes) -> None:
    write_raw(tmp_path)
    (tmp_path / ITEMS).write_bytes(content)
    with pytest.raises(DataError, match=r"items.parquet: not a readable parquet file"):
        load_dataset(tmp_path)


def test_missing_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such directory"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"interactions.parquet: no such file"):
        load_dataset(tmp_path)


def test_a_broken_manifest_is_an_error(tmp_path: Path) -> None:
    write_raw(tmp_path)
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(DataError, match=r"dataset.json: not a data set's manifest"):
        load_dataset(tmp_path)


QUERY_COLUMNS = ["user_id", "item_id", "timestamp", "query"]


def queries_frame(rows: list[tuple[str, str, int, str | None]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=QUERY_COLUMNS, orient="row")


def test_queries_are_cleaned_and_survive_a_round_trip(tmp_path: Path) -> None:
    rows: list[tuple[str, str, int, str | None]] = [
        ("u", "i1", 2, "  Dark\nJazz "),
        ("u", "i1", 2, "dark jazz"),  # repeated
        ("u", "gone", 2, "x"),
        ("u", "i2", 1, None),
        ("u", "i2", 1, " "),
        ("a", "i2", 1, "y" * 600),
    ]
    dataset, dropped = clean_dataset("x", frame([("u", "i1", 1, None)]), pl.DataFrame(TITLES), queries_frame(rows))
    assert dataset.queries is not None
    assert dataset.queries.select(QUERY_COLUMNS).rows() == [("a", "i2", 1, "y" * 500), ("u", "i1", 2, "dark jazz")]
    assert dropped.queries == 4
    save_dataset(dataset, tmp_path / "data", dropped=dropped)
    loaded = load_dataset(tmp_path / "data")
    assert loaded.queries is not None and loaded.queries.equals(dataset.queries)
    assert loaded.interactions.equals(dataset.interactions)


def test_without_interactions_the_choices_after_queries_are_the_interactions(tmp_path: Path) -> None:
    queries_frame([("u", "i1", 1, "jazz"), ("u", "i1", 1, "folk"), ("u", "i2", 2, "jazz")]).write_parquet(
        tmp_path / QUERIES
    )
    pl.DataFrame(TITLES).write_parquet(tmp_path / ITEMS)
    dataset = load_dataset(tmp_path)
    assert dataset.interactions.select("user_id", "item_id", "timestamp").rows() == [("u", "i1", 1), ("u", "i2", 2)]
    with pytest.raises(DataError, match="holds raw data"):
        save_dataset(dataset, tmp_path)


def test_changed_queries_are_noticed(tmp_path: Path) -> None:
    made = clean_dataset(
        "x", frame([("u", "i1", 1, None)]), pl.DataFrame(TITLES), queries_frame([("u", "i1", 1, "jazz")])
    )[0]
    save_dataset(made, tmp_path / "data")
    queries_frame([("u", "i1", 1, "folk")]).write_parquet(tmp_path / "data" / QUERIES)
    with pytest.raises(DataError, match="changed since prepared"):
        load_dataset(tmp_path / "data")
