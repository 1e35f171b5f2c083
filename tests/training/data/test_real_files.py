"""Files as people have them: each is read as it is meant, or refused with one line that says what to do.

Nothing is changed or left out without a note that has the count and the first example.
"""

import bz2
import datetime
import gzip
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow
import pytest

from tests.training.raw_files import RawFiles, rows, titles

EVENTS = ("user_id,item_id,timestamp", "u1,i1,1500000000")


@pytest.fixture
def raw_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RawFiles:
    return RawFiles(tmp_path, capsys)


def put_events(raw_files: RawFiles, *lines: str, header: str = EVENTS[0]) -> None:
    raw_files.put("interactions.csv", header, *(lines or EVENTS[1:]))


def put_items(raw_files: RawFiles, *lines: str, encoding: str = "utf-8") -> None:
    raw_files.put("items.csv", "item_id,title", *(lines or ["i1,One"]), encoding=encoding)


def put_parquet(raw_files: RawFiles, events: dict[str, Any], items: dict[str, Any] | None = None) -> None:
    defaults = {"user_id": ["u1"], "item_id": ["i1"], "timestamp": [1_500_000_000]}
    pl.DataFrame(defaults | events, strict=False).write_parquet(raw_files.source / "interactions.parquet")
    frame = pl.DataFrame({"item_id": ["i1"], "title": ["One"]} | (items or {}), strict=False)
    frame.write_parquet(raw_files.source / "items.parquet")


# --- encodings


@pytest.mark.parametrize(("encoding", "found"), [("utf-8", "utf-8"), ("latin-1", "latin-1")])
def test_movielens_is_utf8_or_latin1(raw_files: RawFiles, encoding: str, found: str) -> None:
    raw_files.put("ratings.dat", "1::1::5::978300760")
    raw_files.put("movies.dat", "1::Amélie (2001)::Drama", encoding=encoding)
    dataset, summary = raw_files.prepare("movielens")
    assert titles(dataset) == {"1": "Amélie (2001)"}
    assert summary["files"][1]["encoding"] == found


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("cp1252", "windows-1252"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
    ],
)
def test_an_encoding_is_found_by_looking_and_named(raw_files: RawFiles, encoding: str, found: str) -> None:
    put_events(raw_files)
    put_items(raw_files, "i1,Café – „de“ Flore", encoding=encoding)
    dataset, summary = raw_files.prepare("csv")
    assert titles(dataset) == {"i1": "Café – „de“ Flore"}
    assert summary["files"][1]["encoding"] == found
    if encoding == "cp1252":
        assert raw_files.notes["lines_read_as_windows-1252"] == (1, "items.csv line 2: i1,Café – „de“ Flore")


def test_an_encoding_can_be_named(raw_files: RawFiles) -> None:
    put_events(raw_files)
    put_items(raw_files, "i1,Пример", encoding="cp1251")
    dataset, _ = raw_files.prepare("csv", "--encoding", "cp1251")
    assert titles(dataset) == {"i1": "Пример"}


def test_an_unknown_encoding_is_refused(raw_files: RawFiles) -> None:
    put_events(raw_files)
    put_items(raw_files)
    assert "--encoding: unknown encoding: klingon" in raw_files.refuse("csv", "--encoding", "klingon")


def test_a_damaged_utf8_file_names_the_line(raw_files: RawFiles) -> None:
    put_events(raw_files)
    raw_files.put_bytes(
        "items.csv", "item_id,title\ni1,Café\ni2,Über\n".encode() + b"i3,\xe9t\xe9\n" + "i4,Ödön\n".encode()
    )
    assert "items.csv line 4: i3,été: this line is not UTF-8" in raw_files.refuse("csv")


def test_a_file_in_two_encodings_is_refused_or_its_lines_are_noted(raw_files: RawFiles) -> None:
    put_events(raw_files)
    latin = "i2,Caf\xe9\n".encode("latin-1")
    raw_files.put_bytes("items.csv", "item_id,title\ni1,Café\n".encode() + latin)
    assert "items.csv line 3: i2,Café: this line is not UTF-8" in raw_files.refuse("csv")
    raw_files.put_bytes("items.csv", "item_id,title\ni1,Café\n".encode() + latin + b"i3,\xdcber\n")
    raw_files.prepare("csv")
    assert raw_files.notes["lines_of_utf-8_read_as_latin-1"] == (1, "items.csv line 2: i1,Café")
    assert raw_files.notes["lines_read_as_latin-1"] == (2, "items.csv line 3: i2,Café")


def test_bytes_of_no_known_encoding_ask_for_its_name(raw_files: RawFiles) -> None:
    put_events(raw_files)
    raw_files.put_bytes("items.csv", b"item_id,title\ni1,\x81\x8d\n")
    assert "name its encoding with --encoding" in raw_files.refuse("csv")


def test_replacement_characters_of_the_source_are_noted(raw_files: RawFiles) -> None:
    put_events(raw_files)
    put_items(raw_files, "i1,Caf\ufffd")
    raw_files.prepare("csv")
    assert raw_files.notes["titles_with_replacement_characters"][0] == 1


@pytest.mark.parametrize("magic", [b"PK\x03\x04", b"PAR1", b"\xd0\xcf\x11\xe0"])
def test_a_file_that_is_no_text_is_named(raw_files: RawFiles, magic: bytes) -> None:
    raw_files.put_bytes("interactions.csv", magic + bytes(50))
    put_items(raw_files)
    assert "interactions.csv: not text but" in raw_files.refuse("csv")


# --- separators, compression, JSON lines


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::", ", ", "\x01"])
def test_a_separator_is_found_by_looking(raw_files: RawFiles, separator: str) -> None:
    raw_files.put("interactions.csv", *(line.replace(",", separator) for line in EVENTS))
    raw_files.put(
        "items.csv",
        separator.join(["item_id", "title", "shelf"]),
        separator.join(["i1", "One, Two" * (separator[0] != ","), "A"]),
    )
    if separator[0] == ",":
        raw_files.put(
            "items.csv", separator.join(["item_id", "title", "shelf"]), separator.join(["i1", '"One, Two"', "A"])
        )
    dataset, summary = raw_files.prepare("csv")
    assert rows(dataset) == [("u1", "i1", 1500000000, None)]
    assert dataset.items.rows() == [("i1", "One, Two", "A")]
    assert summary["files"][0]["separator"] == separator.strip(" ")


def test_the_first_line_of_excel_may_name_the_separator(raw_files: RawFiles) -> None:
    put_events(raw_files)
    raw_files.put("items.csv", "sep=;\r", "item_id;title\r", "i1;One\r")
    assert titles(raw_files.prepare("csv")[0]) == {"i1": "One"}


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda content: pyarrow.compress(content, codec="zstd", asbytes=True)),
        ("", gzip.compress),
    ],
)
def test_compressed_files_are_read(raw_files: RawFiles, ending: str, compress: Callable[[bytes], bytes]) -> None:
    raw_files.put_bytes(f"interactions.csv{ending}", compress("\n".join(EVENTS).encode()))
    put_items(raw_files)
    assert rows(raw_files.prepare("csv")[0]) == [("u1", "i1", 1500000000, None)]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_compressed_file_that_is_cut_short_is_refused(raw_files: RawFiles, ending: str) -> None:
    content = "\n".join([EVENTS[0], *(f"u{n},i1,{n * 7919}" for n in range(5000))]).encode()
    packed = gzip.compress(content) if ending == "gz" else pyarrow.compress(content, codec="zstd", asbytes=True)
    raw_files.put_bytes(f"interactions.csv.{ending}", packed[:-100])
    put_items(raw_files)
    assert "cut short or damaged" in raw_files.refuse("csv")


def test_json_lines_are_read(raw_files: RawFiles) -> None:
    raw_files.put(
        "interactions.jsonl",
        *(json.dumps({"userId": 7, "item": "i1", "time": t, "x": []}) for t in (1.5e9, "2020-01-01")),
    )
    items = [{"title": "One", "item_id": "i1", "year": 1999, "tags": ["a"]}, {"item_id": "i2", "title": "Two"}]
    raw_files.put("items.jsonl", *map(json.dumps, items))
    dataset, summary = raw_files.prepare("csv")
    assert rows(dataset) == [("7", "i1", 1500000000, None), ("7", "i1", 1577836800, None)]
    assert dataset.items.to_dicts()[0] == {"item_id": "i1", "title": "One", "year": 1999, "tags": ["a"]}
    assert summary["files"][0]["unused"] == ["x"]


def test_a_json_array_is_refused_clearly(raw_files: RawFiles) -> None:
    raw_files.put("interactions.json", json.dumps([{"user_id": "u"}]))
    put_items(raw_files)
    assert "one JSON object per line is expected" in raw_files.refuse("csv")


# --- names of columns


@pytest.mark.parametrize(
    "names",
    [("userId", "movieId", "Timestamp"), ("User_ID", "ITEM-ID", "time"), ("reviewerID", "asin", "unixReviewTime")],
)
def test_columns_are_known_by_name_in_any_order_and_case(raw_files: RawFiles, names: tuple[str, str, str]) -> None:
    user, item, time = names
    put_events(raw_files, "5,i1,1500000000,u1", header=f"rating,{item},{time},{user}")
    put_items(raw_files)
    assert rows(raw_files.prepare("csv")[0]) == [("u1", "i1", 1500000000, 5.0)]


def test_movielens_columns_in_another_order(raw_files: RawFiles) -> None:
    raw_files.put("ratings.csv", "movieId,userId,rating,timestamp", "17,1,4.0,978300760")
    raw_files.put("movies.csv", "title,movieId,genres", "One,17,Drama")
    dataset, _ = raw_files.prepare("movielens")
    assert rows(dataset) == [("1", "17", 978300760, 4.0)]
    assert dataset.items.to_dicts() == [{"item_id": "17", "title": "One", "categories": ["Drama"]}]


def test_other_names_are_given_by_a_flag_that_the_error_offers(raw_files: RawFiles) -> None:
    put_events(raw_files, "u1,i1,1500000000", header="customer_id,sku,created_at")
    raw_files.put("items.csv", "sku,name", "i1,One")
    error = raw_files.refuse("csv")
    offered = "user_id=customer_id,item_id=sku,timestamp=created_at"
    assert f"did you mean --columns {offered}" in error
    assert "did you mean --columns title=name" in raw_files.refuse("csv", "--columns", offered)
    dataset, summary = raw_files.prepare("csv", "--columns", f"{offered},title=name")
    assert rows(dataset) == [("u1", "i1", 1500000000, None)] and titles(dataset) == {"i1": "One"}
    assert summary["files"][0]["columns"] == {"user_id": "customer_id", "item_id": "sku", "timestamp": "created_at"}


def test_names_of_parquet_columns(raw_files: RawFiles) -> None:
    pl.DataFrame({"userId": [1], "itemId": [2], "ts": [1_500_000_000]}).write_parquet(
        raw_files.source / "interactions.parquet"
    )
    pl.DataFrame({"itemId": [2], "title": ["Two"]}).write_parquet(raw_files.source / "items.parquet")
    assert "did you mean --columns timestamp=ts" in raw_files.refuse("parquet")
    assert rows(raw_files.prepare("parquet", "--columns", "timestamp=ts")[0]) == [("1", "2", 1500000000, None)]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("user_id", "ROLE=NAME is expected"),
        ("person=x", "ROLE is one of user_id"),
        ("rating=stars", "no file has a column stars"),
    ],
)
@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_wrong_columns_flag_is_refused(raw_files: RawFiles, format: str, flag: str, message: str) -> None:
    put_events(raw_files)
    put_items(raw_files)
    put_parquet(raw_files, {})
    assert message in raw_files.refuse(format, "--columns", flag)


def test_two_columns_for_one_role_need_a_choice(raw_files: RawFiles) -> None:
    put_events(raw_files, "a,b,i1,1500000000", header="userId,User_ID,item_id,timestamp")
    put_items(raw_files)
    assert "userId and User_ID could both be user_id" in raw_files.refuse("csv")
    assert rows(raw_files.prepare("csv", "--columns", "user_id=User_ID")[0])[0][0] == "b"


def test_an_index_without_a_name_is_no_attribute(raw_files: RawFiles) -> None:
    """As a data frame writes its index."""
    raw_files.put("interactions.csv", ",user_id,item_id,timestamp", "0,u1,i1,1500000000")
    raw_files.put("items.csv", ",item_id,title", "0,i1,One")
    dataset, _ = raw_files.prepare("csv")
    assert dataset.items.rows() == [("i1", "One")]
    assert rows(dataset) == [("u1", "i1", 1500000000, None)]


def test_a_missing_header_is_an_error_or_has_no_effect(raw_files: RawFiles) -> None:
    raw_files.put("ratings.csv", "7,2,5,978300760", "8,2,4,978300761")
    raw_files.put("movies.csv", "2,Two (1999),Drama", "3,Three (1999),Drama")
    dataset, _ = raw_files.prepare("movielens")
    assert rows(dataset) == [("7", "2", 978300760, 5.0), ("8", "2", 978300761, 4.0)]
    assert titles(dataset) == {"2": "Two (1999)", "3": "Three (1999)"}
    assert raw_files.notes["files_without_names_of_columns"] == (2, "ratings.csv: 7,2,5,978300760")
    (raw_files.source / "interactions.csv").write_text("u1,i1,1500000000\n")
    put_items(raw_files)
    raw_files.out = raw_files.out.parent / "other"
    assert "names of columns are missing, the first line is data (u1, i1, 1500000000)" in raw_files.refuse("csv")


# --- times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2022-06-24 21:20:11", 1656105611),
        ("2022-06-24T21:20:11", 1656105611),
        ("2022-06-24T21:20:11Z", 1656105611),
        ("2022-06-24 21:20:11 UTC", 1656105611),
        ("2022-06-24T21:20:11+02:00", 1656098411),
        ("2022-06-24T21:20:11.987-0230", 1656114611),
        ("2022/06/24 21:20", 1656105600),
        ("2022-06-24", 1656028800),
        ("1656105611", 1656105611),
        ("1656105611.9", 1656105611),
        (" 1.656105611e9", 1656105611),
    ],
)
def test_times_as_text(raw_files: RawFiles, text: str, seconds: int) -> None:
    put_events(raw_files, f"u1,i1,{text}", "u1,i1,2000-01-01")
    put_items(raw_files)
    assert [row[2] for row in rows(raw_files.prepare("csv")[0])] == [946684800, seconds]


def test_other_times_need_their_format(raw_files: RawFiles) -> None:
    put_events(raw_files, "u1,i1,12/1/2010 8:26")
    put_items(raw_files)
    error = raw_files.refuse("csv")
    assert "times that cannot be read: 1, the first: interactions: timestamp: 12/1/2010 8:26 (--time-format" in error
    dataset, _ = raw_files.prepare("csv", "--time-format", "%m/%d/%Y %H:%M")
    assert rows(dataset)[0][2] == 1291191960


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize(("factor", "unit"), [(1000, "ms"), (1_000_000, "us"), (1_000_000_000, "ns")])
def test_other_units_than_seconds_are_told_apart(raw_files: RawFiles, format: str, factor: int, unit: str) -> None:
    time = 1_500_000_000 * factor
    put_events(raw_files, f"u1,i1,{time}")
    put_items(raw_files)
    put_parquet(raw_files, {"timestamp": [time]})
    assert f"divide by {factor}, or --time-unit {unit}" in raw_files.refuse(format)
    assert rows(raw_files.prepare(format, "--time-unit", unit)[0])[0][2] == 1_500_000_000


def test_seconds_where_milliseconds_are_the_rule(raw_files: RawFiles) -> None:
    review = {"user_id": "A", "parent_asin": "P", "rating": 4}
    raw_files.put("Books.jsonl", *(json.dumps(review | {"timestamp": 1500000000 + n}) for n in range(3)))
    raw_files.put("meta_Books.jsonl", json.dumps({"parent_asin": "P", "title": "One"}))
    error = raw_files.refuse("amazon")
    assert "3 of 3 timestamps" in error and "look like seconds, but milliseconds are expected" in error
    assert len(rows(raw_files.prepare("amazon", "--time-unit", "s")[0])) == 3


def test_times_that_hardly_any_log_has_are_noted(raw_files: RawFiles) -> None:
    put_events(raw_files, "u1,i1,20220624")  # a date that was meant as one is a second of August 1970
    put_items(raw_files)
    raw_files.prepare("csv")
    assert raw_files.notes["times_before_1990_or_in_the_future"] == (1, "interactions: 1970-08-23 00:50:24")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("timestamp", [datetime.time(8, 30)]),
        ("timestamp", [datetime.timedelta(days=1)]),
        ("timestamp", [[1]]),
        ("timestamp", [True]),
        ("user_id", [["u1"]]),
        ("user_id", [datetime.date(2020, 1, 1)]),
        ("item_id", [True]),
        ("rating", [["good"]]),
    ],
)
def test_a_parquet_column_of_a_wrong_type_is_one_line(raw_files: RawFiles, column: str, values: list[Any]) -> None:
    put_parquet(raw_files, {column: values})
    assert f"interactions: {column}: holds values of type" in raw_files.refuse("parquet")


@pytest.mark.parametrize("title", [["One"], {"en": "One"}, b"One", True])
def test_titles_that_are_no_text_are_one_line(raw_files: RawFiles, title: Any) -> None:
    put_parquet(raw_files, {}, {"title": [title]})
    assert "items: title: holds values of type" in raw_files.refuse("parquet")


def test_attributes_of_any_type_become_what_json_can_hold(raw_files: RawFiles) -> None:
    values = {
        "length": [datetime.timedelta(minutes=90)],
        "at": [datetime.time(8, 30)],
        "price": [Decimal("1.50")],
        "days": [[datetime.date(2020, 1, 1)]],
    }
    put_parquet(raw_files, {}, values)
    found = raw_files.prepare("parquet")[0].items.to_dicts()[0]
    assert (found["length"], found["at"], found["price"]) == (5400.0, "08:30:00", 1.5)
    json.dumps(found)


# --- ids


@pytest.mark.parametrize("values", [[1.25, 1.75], [Decimal("1.25"), Decimal("1.75")], [2.0**60, 2.0**60 + 4096]])
def test_ids_that_numbers_cannot_tell_apart_are_an_error(raw_files: RawFiles, values: list[Any]) -> None:
    put_parquet(raw_files, {"user_id": values, "item_id": ["i1", "i1"], "timestamp": [1, 2]})
    assert "interactions: user_id: 2 of 2 values" in raw_files.refuse("parquet")


def test_whole_decimals_and_floats_are_that_number(raw_files: RawFiles) -> None:
    ids = pl.Series([5, 6]).cast(pl.Decimal(38, 18))
    put_parquet(
        raw_files,
        {"user_id": ids, "item_id": [1.0, 2.0], "timestamp": [1, 2]},
        {"item_id": [1, 2], "title": ["A", "B"]},
    )
    dataset, _ = raw_files.prepare("parquet")
    assert [row[:2] for row in rows(dataset)] == [("5", "1"), ("6", "2")]
    assert raw_files.notes["ids_that_were_floats"] == (2, "interactions: item_id: 1.0")


@pytest.mark.parametrize(("event_item", "item"), [("10.0", "10.0"), ("10", "10.0"), ("10.0", "10")])
def test_ids_that_a_frame_read_as_floats(raw_files: RawFiles, event_item: str, item: str) -> None:
    put_events(raw_files, f"0.0,{event_item},1500000000")
    put_items(raw_files, f"{item},Title")
    dataset, _ = raw_files.prepare("csv")
    assert rows(dataset) == [("0", "10", 1500000000, None)]
    assert raw_files.notes["ids_that_lost_point_zero"][1] == "interactions: user_id: 0.0"


def test_text_ids_keep_what_looks_like_a_float(raw_files: RawFiles) -> None:
    put_events(raw_files, "007,1.0,1500000000", "1e3,1.0b,1500000000")
    put_items(raw_files, "1.0,One", "1.0b,Two")
    assert [row[:2] for row in rows(raw_files.prepare("csv")[0])] == [("007", "1.0"), ("1e3", "1.0b")]


def test_ids_that_a_spreadsheet_shortened_are_noted(raw_files: RawFiles) -> None:
    put_events(raw_files, "1.23E+11,i1,1500000000")
    put_items(raw_files)
    raw_files.prepare("csv")
    assert raw_files.notes["ids_shortened_by_a_spreadsheet"] == (1, "interactions: user_id: 1.23E+11")


@pytest.mark.parametrize("user", ['"   "', '""', ""])
def test_a_blank_user_is_incomplete(raw_files: RawFiles, user: str) -> None:
    put_events(raw_files, "u1,i1,1500000000", f"{user},i1,1500000000")
    put_items(raw_files)
    dataset, summary = raw_files.prepare("csv", "--max-dropped", "0.5")
    assert len(rows(dataset)) == 1 and summary["dropped"]["interactions_incomplete"] == 1
    count, first = raw_files.notes["interactions_incomplete"]
    assert count == 1 and "item_id 'i1', timestamp 1500000000" in first


def test_a_blank_user_of_parquet_is_incomplete(raw_files: RawFiles) -> None:
    put_parquet(raw_files, {"user_id": ["u1", " \t"], "item_id": ["i1", "i1"], "timestamp": [1, 2]})
    assert raw_files.prepare("parquet", "--max-dropped", "0.5")[1]["dropped"]["interactions_incomplete"] == 1


# --- quotes


@pytest.mark.parametrize("rest", ["i3,Three", 'i3,"Three"', 'i3,Three\ni4,"Four"'])
def test_an_unclosed_quote_names_its_line(raw_files: RawFiles, rest: str) -> None:
    put_events(raw_files)
    put_items(raw_files, "i1,One", 'i2,"Two', rest)
    assert "items.csv line 3: a quote is not closed" in raw_files.refuse("csv")


def test_quotes_of_spark(raw_files: RawFiles) -> None:
    put_events(raw_files, *(f"u1,i{n},1500000000" for n in (1, 2)))
    put_items(raw_files, r'i1,"The \"Big\", Small"', r'i2,"back \\ slash"')
    assert titles(raw_files.prepare("csv")[0]) == {"i1": 'The "Big", Small', "i2": r"back \ slash"}
    assert raw_files.notes["quotes_are_escaped_by_backslashes"][1].endswith("items.csv line 2")


def test_a_backslash_is_a_character_where_quotes_are_doubled(raw_files: RawFiles) -> None:
    put_events(raw_files)
    put_items(raw_files, r'i1,"C:\"', 'i2,"a ""b"" c"')
    assert titles(raw_files.prepare("csv")[0]) == {"i1": "C:\\", "i2": 'a "b" c'}


def test_quotes_inside_plain_fields(raw_files: RawFiles) -> None:
    put_events(raw_files)
    put_items(raw_files, 'i1,12" disk', 'i2, "a, b"', 'i3,7"')
    assert titles(raw_files.prepare("csv")[0]) == {"i1": '12" disk', "i2": "a, b", "i3": '7"'}


def test_line_breaks_in_titles_are_noted(raw_files: RawFiles) -> None:
    put_events(raw_files)
    put_items(raw_files, 'i1,"One\nand a half"')
    assert titles(raw_files.prepare("csv")[0]) == {"i1": "One and a half"}
    assert raw_files.notes["titles_with_line_breaks"] == (1, r"items: 'One\nand a half'")


# --- missing values


@pytest.mark.parametrize("rating", ["NULL", r"\N", "NA", "NaN", "nan", "None", "", "N/A"])
def test_a_null_rating_keeps_the_event(raw_files: RawFiles, rating: str) -> None:
    put_events(raw_files, f"u1,i1,1500000000,{rating}", "u1,i1,1500000001,4", header=f"{EVENTS[0]},rating")
    put_items(raw_files)
    assert [row[3] for row in rows(raw_files.prepare("csv")[0])] == [None, 4.0]
    assert raw_files.notes.get("ratings_that_stand_for_none", (0, ""))[0] == (rating != "")


def test_an_unreadable_rating_keeps_the_event_and_is_noted(raw_files: RawFiles) -> None:
    put_events(raw_files, "u1;i1;1500000000;good", "u1;i1;1500000001;4,5", header="user_id;item_id;timestamp;rating")
    put_items(raw_files)
    assert [row[3] for row in rows(raw_files.prepare("csv")[0])] == [None, 4.5]
    assert raw_files.notes["ratings_that_cannot_be_read"] == (1, "interactions: good")


def test_titles_that_look_like_missing_values_are_kept_and_noted(raw_files: RawFiles) -> None:
    put_events(raw_files)
    put_items(raw_files, "i1,NaN", "i2,null", "i3,None", "i4,Nullarbor")
    assert titles(raw_files.prepare("csv")[0])["i2"] == "null"
    assert raw_files.notes["titles_like_missing_values"] == (3, "items: 'NaN'")


def test_a_title_that_is_no_number_in_json_is_missing(raw_files: RawFiles) -> None:
    review = {"reviewerID": "A", "overall": 5.0, "unixReviewTime": 1500000000}
    raw_files.put("Books.json", *(json.dumps(review | {"asin": item}) for item in ("B1", "B2")))
    raw_files.put("meta_Books.json", '{"asin": "B1", "title": NaN}', '{"asin": "B2", "title": "Two"}')
    dataset, summary = raw_files.prepare("amazon", "--max-dropped", "0.5")
    assert titles(dataset) == {"B2": "Two"}
    assert summary["dropped"]["items_without_title"] == 1 and summary["dropped"]["interactions_without_item"] == 1
    assert raw_files.notes["items_without_title"] == (1, "items: item_id 'B1', title None")


# --- shares, notes, preview


def test_a_share_of_dropped_events_warns_then_refuses(raw_files: RawFiles) -> None:
    put_items(raw_files)
    put_events(raw_files, *(f"u{n},i1,1500000000" for n in range(98)), *["u,i9,1500000000"] * 2)
    raw_files.prepare("csv")
    assert "warning: 2 of 100 interactions (2.0%) are left out" in raw_files.errors
    assert raw_files.notes["interactions_without_item"][0] == 2
    raw_files.out = raw_files.out.parent / "other"
    put_events(raw_files, *(f"u{n},i1,1500000000" for n in range(88)), *["u,i9,1500000000"] * 12)
    error = raw_files.refuse("csv")
    assert (
        "12 of 100 interactions (12.0%) are left out" in error and "item_id 'i9'" in error and "--max-dropped" in error
    )
    raw_files.prepare("csv", "--max-dropped", "0.12")


def test_repeated_rows_are_noted_but_nothing_is_lost(raw_files: RawFiles) -> None:
    put_events(raw_files, *[EVENTS[1]] * 5)
    put_items(raw_files, "i1,One", "i1,Uno")
    raw_files.prepare("csv")
    assert raw_files.notes["interactions_repeated"][0] == 4
    assert raw_files.notes["items_repeated"] == (1, "items: item_id 'i1', title 'Uno'")


def test_a_preview_shows_the_first_rows_and_writes_nothing(
    raw_files: RawFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.prepare import main

    put_events(raw_files, "u2,i1,2020-01-01T00:00:00+01:00", "u1,i1,2020-01-02")
    put_items(raw_files)
    assert main(["--format", "csv", "--source", str(raw_files.source), "--preview"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("u2") < shown.index("u1") and "2019-12-31 23:00:00" in shown
    assert "user_id=user_id" in shown and "One" in shown
    assert sorted(file.name for file in raw_files.source.iterdir()) == ["interactions.csv", "items.csv"]


def test_the_manifest_tells_how_the_files_were_read(raw_files: RawFiles) -> None:
    put_events(raw_files, header="customer,item_id,timestamp")
    put_items(raw_files)
    raw_files.prepare("csv", "--columns", "user_id=customer")
    source = json.loads((raw_files.out / "dataset.json").read_text())["source"]
    assert source["options"] == {"columns": "user_id=customer"}
    assert source["files"][0]["columns"]["user_id"] == "customer"


# --- other programs' files


def test_files_of_recbole(raw_files: RawFiles) -> None:
    raw_files.put("ml.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", "196\t242\t3\t881250949.0")
    raw_files.put(
        "ml.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tscore:float",
        '242\t"Kolya" & Co\t1996\tComedy Drama\t1.5',
        "243\tOther\t\t\tgood",
    )
    raw_files.put("ml.user", "user_id:token", "196")
    dataset, _ = raw_files.prepare("recbole")
    assert rows(dataset) == [("196", "242", 881250949, 3.0)]
    assert dataset.items.to_dicts() == [
        {"item_id": "242", "title": '"Kolya" & Co', "release_year": "1996", "class": ["Comedy", "Drama"], "score": 1.5},
        {"item_id": "243", "title": "Other", "release_year": None, "class": [], "score": None},
    ]
    assert raw_files.notes["numbers_that_cannot_be_read"] == (1, "ml.item: score: good")


def test_a_recbole_file_without_types_is_refused(raw_files: RawFiles) -> None:
    raw_files.put("ml.inter", "user_id\titem_id\ttimestamp", "1\t2\t3")
    raw_files.put("ml.item", "item_id:token\ttitle:token_seq", "2\tTwo")
    assert "user_id is not NAME:TYPE" in raw_files.refuse("recbole")


def test_what_the_service_exports(raw_files: RawFiles) -> None:
    event = {"event_id": "e", "item_id": "i1", "title": "One", "timestamp": 1500000000, "type": "view", "value": None}
    lines = [
        {"user_id": "u1", **event},
        {"user_id": "u2", **event, "value": 4.5},
        {"user_id": "u2", **event, "item_id": "i2", "title": "Two"},
    ]
    raw_files.put("export.jsonl", *map(json.dumps, lines))
    dataset, summary = raw_files.prepare("csv")
    assert sorted(dataset.interactions.rows(), key=lambda row: row[:2]) == [
        ("u1", "i1", 1500000000, None, "view"),
        ("u2", "i1", 1500000000, 4.5, "view"),
        ("u2", "i2", 1500000000, None, "view"),
    ]
    assert titles(dataset) == {"i1": "One", "i2": "Two"}
    assert summary["files"][0]["unused"] == ["event_id"]


def test_queries_of_an_export_and_of_a_file_of_their_own(raw_files: RawFiles) -> None:
    event = {"user_id": "u1", "item_id": "i1", "title": "One", "timestamp": 1500000000}
    raw_files.put(
        "events.jsonl", *map(json.dumps, [event | {"query": "A  Gift"}, event | {"timestamp": 1, "query": None}])
    )
    dataset, summary = raw_files.prepare("csv")
    assert dataset.queries is not None and dataset.queries.rows() == [("u1", "i1", 1500000000, "a gift")]
    assert len(rows(dataset)) == 2 and summary["dropped"]["queries"] == 0
    (raw_files.source / "events.jsonl").unlink()
    raw_files.put("queries.csv", "query,user_id,item_id,timestamp", '"a gift, cheap",u1,i1,2017-07-14')
    put_items(raw_files)
    dataset, _ = raw_files.prepare("csv")
    assert dataset.queries is not None and dataset.queries.rows() == [("u1", "i1", 1499990400, "a gift, cheap")]
    assert rows(dataset) == [("u1", "i1", 1499990400, None)]
