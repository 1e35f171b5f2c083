"""Raw formats are converted to data sets; broken lines are counted, other errors write nothing."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.training.raw_files import RawFiles, rows, titles
from training.data.dataset import load_dataset
from training.prepare import main

ADVICE = " (--time-format names their format)"


@pytest.fixture
def raw_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RawFiles:
    return RawFiles(tmp_path, capsys)


def test_parquet(raw_files: RawFiles) -> None:
    pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [5]}).write_parquet(
        raw_files.source / "interactions.parquet"
    )
    pl.DataFrame({"item_id": ["i"], "title": ["One"], "year": [1999]}).write_parquet(raw_files.source / "items.parquet")
    dataset, summary = raw_files.prepare("parquet")
    assert rows(dataset) == [("u", "i", 5, None)]
    assert dataset.items.to_dicts() == [{"item_id": "i", "title": "One", "year": 1999}]
    assert (summary["name"], summary["users"], summary["items"], summary["interactions"]) == (
        "books",
        1,
        1,
        1,
    )


def test_csv(raw_files: RawFiles) -> None:
    raw_files.put("interactions.csv", "timestamp,user_id,item_id,rating,note", "7,u1,i1,4.5,x", "8.0,u1,i2,,y")
    raw_files.put("items.csv", "item_id,title,shelf", 'i1,"Salt, Pepper &amp; ""Me""",A', 'i2,"Two\nLines",')
    dataset, _ = raw_files.prepare("csv")
    assert rows(dataset) == [("u1", "i1", 7, 4.5), ("u1", "i2", 8, None)]
    assert titles(dataset) == {"i1": 'Salt, Pepper & "Me"', "i2": "Two Lines"}
    assert dataset.items["shelf"].to_list() == ["A", None]


def test_csv_written_by_a_spreadsheet(raw_files: RawFiles) -> None:
    raw_files.put("interactions.csv", "user_id,item_id,timestamp\r", "u1,i1,7\r", encoding="utf-8-sig")
    raw_files.put("items.csv", "item_id,title\r", "i1,Ünïcödé\r", encoding="utf-8-sig")
    dataset, _ = raw_files.prepare("csv")
    assert (rows(dataset), titles(dataset)) == ([("u1", "i1", 7, None)], {"i1": "Ünïcödé"})


def test_broken_lines_are_counted_and_the_first_is_shown(raw_files: RawFiles) -> None:
    lines = ["u1,i1,7", "u1,i1", "", "u1,i1,8,9", "u1,i1,soon", "u1,i1,1e400"]
    raw_files.put("interactions.csv", "user_id,item_id,timestamp", *lines)
    raw_files.put("items.csv", "item_id,title", "i1,One")
    dataset, summary = raw_files.prepare("csv", "--max-dropped", "1")
    assert len(rows(dataset)) == 1
    assert (summary["dropped"]["broken_lines"], summary["dropped"]["interactions_incomplete"]) == (2, 2)
    assert raw_files.notes["broken_lines"] == (2, "interactions.csv line 3: 2 fields instead of 3")
    assert raw_files.notes["times_that_cannot_be_read"] == (2, f"interactions: timestamp: soon{ADVICE}")
    assert "broken lines: 2, the first: interactions.csv line 3" in raw_files.errors


def test_a_file_of_broken_lines_is_refused(raw_files: RawFiles) -> None:
    raw_files.put("interactions.csv", "user_id,item_id,timestamp", "u,i1,1", *["u,i1,soon"] * 11)
    raw_files.put("items.csv", "item_id,title", "i1,One")
    error = raw_files.refuse("csv")
    assert "11 of 12 interactions (91.7%) are left out" in error and "times that cannot be read: 11" in error


def test_a_missing_csv_column_is_named(raw_files: RawFiles) -> None:
    raw_files.put("interactions.csv", "customer,item_id,timestamp", "u1,i1,7")
    raw_files.put("items.csv", "item_id,title", "i1,One")
    assert "interactions.csv line 1: column user_id is missing (found: customer, item_id" in raw_files.refuse("csv")


@pytest.mark.parametrize(
    ("ratings", "movies", "files"),
    [
        (
            "ratings.dat",
            "movies.dat",
            (["1::17::4::978300760", "1::17::4::978300760"], ["17::Amélie &amp; Co (2001)::Comedy|Romance"]),
        ),
        (
            "ratings.csv",
            "movies.csv",
            (
                ["userId,movieId,rating,timestamp", "1,17,4.0,978300760"],
                ["movieId,title,genres", '17,"Amélie & Co (2001)",Comedy|Romance'],
            ),
        ),
        (
            "u.data",
            "u.item",
            (["1\t17\t4\t978300760"], ["17|Amélie & Co (2001)|01-Jan-2001||url" + "|0" * 19]),
        ),
    ],
)
def test_movielens(raw_files: RawFiles, ratings: str, movies: str, files: tuple[list[str], list[str]]) -> None:
    encoding = "utf-8" if ratings.endswith("csv") else "latin-1"
    raw_files.put(ratings, *files[0], encoding=encoding)
    raw_files.put(movies, *files[1], encoding=encoding)
    dataset, summary = raw_files.prepare("movielens")
    assert rows(dataset) == [("1", "17", 978300760, 4.0)]
    assert titles(dataset) == {"17": "Amélie & Co (2001)"}
    genres = [] if movies == "u.item" else ["Comedy", "Romance"]
    assert dataset.items["categories"].to_list() == [genres]
    assert summary["dropped"]["interactions_repeated"] == len(files[0]) - 1 - (ratings == "ratings.csv")


def test_movielens_without_its_files_says_which_are_needed(raw_files: RawFiles) -> None:
    raw_files.put("ratings.dat", "1::2::3::4")
    assert "ratings.dat and movies.dat, or ratings.csv and movies.csv" in raw_files.refuse("movielens")


def review_2018(item: str, **changes: Any) -> str:
    fields = {
        "reviewerID": "A1",
        "asin": item,
        "overall": 5.0,
        "unixReviewTime": 1500000000,
        "reviewText": "…",
    }
    return json.dumps(fields | changes)


def review_2023(item: str, **changes: Any) -> str:
    return json.dumps(
        {"user_id": "A1", "asin": "x", "parent_asin": item, "rating": 4, "timestamp": 1500000000123} | changes
    )


@pytest.mark.parametrize("ending", ["json", "json.gz", "jsonl", "jsonl.gz"])
def test_amazon_2018(raw_files: RawFiles, ending: str) -> None:
    raw_files.put(f"Books_5.{ending}", review_2018("B1"), review_2018("B2"), review_2018("B3"), review_2018("B4"))
    meta = [
        {"asin": "B1", "title": "Pride &amp; Prejudice", "category": ["Books", "Arts &amp; Photography"]},
        {"asin": "B2", "title": "  "},
        {"asin": "B4", "title": "var aPageStart = (new Date()).getTime();"},
        {"asin": "B9", "title": "Nobody reviewed this"},
    ]
    raw_files.put(f"meta_Books.{ending}", *map(json.dumps, meta))
    dataset, summary = raw_files.prepare("amazon", "--max-dropped", "1")
    assert rows(dataset) == [("A1", "B1", 1500000000, 5.0)]
    assert dataset.items.to_dicts() == [
        {"item_id": "B1", "title": "Pride & Prejudice", "categories": ["Books", "Arts & Photography"]}
    ]
    assert summary["dropped"]["interactions_without_item"] == 3
    assert summary["dropped"]["items_without_title"] == 2
    assert raw_files.notes["items_without_review"] == (1, f"meta_Books.{ending}: B9")
    assert raw_files.notes["titles_that_are_javascript"][0] == 1


def test_amazon_2023_has_milliseconds_and_parent_asins(raw_files: RawFiles) -> None:
    raw_files.put("Books.jsonl", review_2023("P1"), review_2023("P1", timestamp=1500000000999))
    raw_files.put("meta_Books.jsonl", json.dumps({"parent_asin": "P1", "title": "One", "categories": ["Books"]}))
    dataset, summary = raw_files.prepare("amazon")
    assert rows(dataset) == [("A1", "P1", 1500000000, 4.0)]
    assert summary["dropped"]["interactions_repeated"] == 1, "the two times fall into one second"


def test_amazon_of_several_categories(raw_files: RawFiles) -> None:
    for category in ("Books", "Games"):
        raw_files.put(f"{category}.jsonl", review_2023(category))
        raw_files.put(f"meta_{category}.jsonl", json.dumps({"parent_asin": category, "title": f"The {category}"}))
    assert titles(raw_files.prepare("amazon")[0]) == {"Books": "The Books", "Games": "The Games"}


@pytest.mark.parametrize(
    "line",
    [
        '{"reviewerID": "A1", "asin": ',
        "[1, 2]",
        "7",
        "null",
        '{"user_id": "A1"}',
        review_2018("B1", reviewerID=None),
        review_2018("B1", reviewerID=["A1"]),
        review_2018("B1", reviewerID="\ud800"),
        review_2018("B1", overall=[5]),
    ],
)
def test_a_broken_review_is_one_broken_line(raw_files: RawFiles, line: str) -> None:
    raw_files.put("Books.json", review_2018("B1"), line)
    raw_files.put("meta_Books.json", json.dumps({"asin": "B1", "title": "One"}))
    dataset, summary = raw_files.prepare("amazon", "--max-dropped", "1")
    assert (len(rows(dataset)), summary["dropped"]["broken_lines"]) == (1, 1)
    assert "Books.json line 2: " in raw_files.notes["broken_lines"][1]


@pytest.mark.parametrize("time", ["soon", 10**30])
def test_a_review_without_a_time_is_incomplete(raw_files: RawFiles, time: Any) -> None:
    raw_files.put("Books.json", review_2018("B1"), review_2018("B1", unixReviewTime=time))
    raw_files.put("meta_Books.json", json.dumps({"asin": "B1", "title": "One"}))
    _, summary = raw_files.prepare("amazon", "--max-dropped", "1")
    assert summary["dropped"]["interactions_incomplete"] == 1
    assert raw_files.notes["times_that_cannot_be_read"] == (1, f"interactions: timestamp: {time}{ADVICE}")


def test_lone_surrogates_are_replaced(raw_files: RawFiles) -> None:
    raw_files.put("Books.json", review_2018("B1"))
    raw_files.put("meta_Books.json", json.dumps({"asin": "B1", "title": "One \udc00 Two", "category": "\ud800"}))
    assert titles(raw_files.prepare("amazon")[0]) == {"B1": "One ? Two"}
    assert raw_files.notes["titles_with_half_characters"] == (1, "meta_Books.json: B1: One ? Two")


def test_an_incomplete_download_is_refused(raw_files: RawFiles) -> None:
    raw_files.put("Books.json.gz", *[review_2018(f"B{n}") for n in range(500)])
    file = raw_files.source / "Books.json.gz"
    file.write_bytes(file.read_bytes()[:-50])
    raw_files.put("meta_Books.json", json.dumps({"asin": "B1", "title": "One"}))
    assert "cut short or damaged" in raw_files.refuse("amazon")


def test_reviews_without_titles_are_refused(raw_files: RawFiles) -> None:
    raw_files.put("Books.json", review_2018("B1"))
    assert "needs a review file and a file meta*" in raw_files.refuse("amazon")


def test_titles_of_other_items_only_are_an_error(raw_files: RawFiles) -> None:
    raw_files.put("Books.json", review_2018("B1"))
    raw_files.put("meta_Books.json", json.dumps({"asin": "B2", "title": "Two"}))
    assert "none of 1 interactions is left" in raw_files.refuse("amazon")


@pytest.mark.parametrize("format", ["parquet", "csv", "movielens", "amazon", "recbole"])
def test_an_empty_directory_is_refused(raw_files: RawFiles, format: str) -> None:
    assert "raw" in raw_files.refuse(format)


def test_a_missing_directory_is_refused(raw_files: RawFiles) -> None:
    raw_files.source.rmdir()
    assert "no such directory" in raw_files.refuse("csv")


def test_the_source_is_never_overwritten(raw_files: RawFiles) -> None:
    raw_files.put("interactions.csv", "user_id,item_id,timestamp", "u1,i1,7")
    raw_files.put("items.csv", "item_id,title", "i1,One")
    assert main(["--format", "csv", "--source", str(raw_files.source), "--out", str(raw_files.source)]) == 2
    assert sorted(f.name for f in raw_files.source.iterdir()) == ["interactions.csv", "items.csv"]


def test_a_failed_run_leaves_the_earlier_data_set(raw_files: RawFiles) -> None:
    raw_files.put("interactions.csv", "user_id,item_id,timestamp", "u1,i1,7")
    raw_files.put("items.csv", "item_id,title", "i1,One")
    before, _ = raw_files.prepare("csv")
    raw_files.put("items.csv", "item_id,title")
    assert main(["--format", "csv", "--source", str(raw_files.source), "--out", str(raw_files.out)]) == 2
    assert load_dataset(raw_files.out).interactions.equals(before.interactions)


def test_long_files_are_read_in_pieces(raw_files: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.raw.text_files.BLOCK_BYTES", 7)
    monkeypatch.setattr("training.data.raw.json_lines.CHUNK_ROWS", 7)
    raw_files.put("interactions.csv", "user_id,item_id,timestamp", *[f"u,i1,{n}" for n in range(100)])
    raw_files.put("items.csv", "item_id,title", *[f'i{n},"{n},\n""ü"""' for n in range(1, 50)])
    dataset, _ = raw_files.prepare("csv")
    assert [row[2] for row in rows(dataset)] == list(range(100))
    assert titles(dataset) == {f"i{n}": f'{n}, "ü"' for n in range(1, 50)}
    (raw_files.source / "interactions.csv").unlink()
    raw_files.put("events.jsonl", *[json.dumps({"userId": "u", "item": "i1", "time": n}) for n in range(100)])
    assert [row[2] for row in rows(raw_files.prepare("csv")[0])] == list(range(100))


def test_a_table_without_rows_is_refused(raw_files: RawFiles) -> None:
    raw_files.put("interactions.csv", "user_id,item_id,timestamp")
    raw_files.put("items.csv", "item_id,title", "i1,One")
    assert "there is no interaction, only names of columns" in raw_files.refuse("csv")
