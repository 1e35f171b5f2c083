"""Readers of four raw formats: a directory in, a `Raw` out, two frames that `clean_dataset` can clean.

Text files are streamed: a line is parsed, its few fields kept in compact columns, the rest forgotten. A line
that cannot be parsed is counted and passed over; a file with many of them is of another format and is an
error that names the first. Knows no more about cleaning than that.
"""

import csv
import gzip
import html
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import polars as pl
from tqdm import tqdm

from training.data.dataset import INTERACTIONS, ITEMS, REQUIRED, DataError, read_parquet

TOLERATED_LINES, TOLERATED_SHARE = 10, 0.1
CHUNK_ROWS = 500_000
PROGRESS_LINES = 4096
MAX_WHOLE = 2**62
INTERACTION_SCHEMA = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float32}
ITEM_SCHEMA = {"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String)}

Schema = dict[str, Any]
Record = TypeVar("Record")
Numbered = Iterator[tuple[int, Record]]  # line number from 1, and what stands there


@dataclass(frozen=True)
class Raw:
    interactions: pl.DataFrame
    items: pl.DataFrame
    broken_lines: int
    first_broken: str  # where and what, "" if none


class _Parsed(NamedTuple):
    frame: pl.DataFrame
    broken_lines: int = 0
    first_broken: str = ""


def read_source(format: str, source: Path) -> Raw:
    """`format` is one of `READERS`. Raises `DataError`."""
    if not source.is_dir():
        raise DataError(f"{source}: no such directory; --source is the directory that holds the raw files")
    try:
        return READERS[format](source)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{source}: a compressed file is cut short or damaged ({error}); fetch it again") from error


def _read_parquet_source(source: Path) -> Raw:
    return Raw(read_parquet(source / INTERACTIONS), read_parquet(source / ITEMS), 0, "")


def _read_csv_source(source: Path) -> Raw:
    file = source / "interactions.csv"
    header, rows = _open_csv(file, REQUIRED[INTERACTIONS])
    events = _parse(file, rows, _named(header, _csv_interaction), INTERACTION_SCHEMA)
    file = source / "items.csv"
    header, rows = _open_csv(file, REQUIRED[ITEMS])
    items = _parse(file, rows, _named(header, _csv_item), dict.fromkeys(header, pl.String))
    return _raw([events], [items])


def _read_movielens(source: Path) -> Raw:
    """ML-1M/10M (.dat), ML-latest/20M/25M (.csv), ML-100K (u.data): the same columns in the same order."""
    for ratings, movies, split in MOVIELENS_FILES:
        if (source / ratings).exists() and (source / movies).exists():
            events = _parse(source / ratings, split(source / ratings), _movielens_rating, INTERACTION_SCHEMA)
            items = _parse(source / movies, split(source / movies), _movielens_movie, ITEM_SCHEMA)
            return _raw([events], [items])
    wanted = ", or ".join(f"{ratings} and {movies}" for ratings, movies, _ in MOVIELENS_FILES)
    raise DataError(f"{source}: no MovieLens files; needed: {wanted}")


def _read_amazon(source: Path) -> Raw:
    """Review files with their meta files, of 2018 or 2023, one category or several."""
    files = sorted(f for f in source.iterdir() if f.name.removesuffix(".gz").endswith((".json", ".jsonl")))
    metas = [file for file in files if file.name.lower().startswith("meta")]
    reviews = [file for file in files if file not in metas]
    if not reviews or not metas:
        found = ", ".join(file.name for file in files) or "no .json or .jsonl file"
        raise DataError(f"{source}: needs a review file and a file meta*.json[l][.gz] with the titles; found: {found}")
    events = [_parse(file, _lines(file), _amazon_review, INTERACTION_SCHEMA) for file in reviews]
    reviewed = set(pl.concat([part.frame["item_id"] for part in events]).unique().to_list())

    def meta(line: str) -> list[Any] | None:
        return _amazon_meta(json.loads(line), reviewed)

    return _raw(events, [_parse(file, _lines(file), meta, ITEM_SCHEMA) for file in metas])


READERS: dict[str, Callable[[Path], Raw]] = {
    "parquet": _read_parquet_source,
    "csv": _read_csv_source,
    "movielens": _read_movielens,
    "amazon": _read_amazon,
}


def _csv_interaction(row: dict[str, str]) -> list[Any]:
    rating = row.get("rating", "").strip()
    return [row["user_id"], row["item_id"], _whole(row["timestamp"]), float(rating) if rating else None]


def _csv_item(row: dict[str, str]) -> list[Any]:
    return [html.unescape(text) if name == "title" else text or None for name, text in row.items()]


def _movielens_rating(fields: Sequence[str]) -> list[Any]:
    user, item, rating, timestamp = fields
    return [user, item, _whole(timestamp), float(rating)]


def _movielens_movie(fields: Sequence[str]) -> list[Any]:
    """u.item has 24 fields, with a date where the others have genres."""
    item, title, *rest = fields
    genres = rest[0].split("|") if len(rest) == 1 and rest[0] != "(no genres listed)" else []
    return [item, html.unescape(title), genres]


def _amazon_review(line: str) -> list[Any]:
    review = json.loads(line)
    if "unixReviewTime" in review:
        user, item, seconds = review["reviewerID"], review["asin"], _whole(review["unixReviewTime"])
    else:  # 2023: milliseconds, and the parent stands for all variants of a product, as in the meta file
        user, item, seconds = review["user_id"], review["parent_asin"], _whole(review["timestamp"]) // 1000
    rating = review.get("overall", review.get("rating"))
    return [_storable(user), _storable(item), seconds, None if rating is None else float(rating)]


def _amazon_meta(meta: dict[str, Any], reviewed: set[str]) -> list[Any] | None:
    item = _storable(meta["parent_asin"] if "parent_asin" in meta else meta["asin"])
    if item not in reviewed:
        return None
    title = html.unescape(str(meta.get("title") or ""))
    if "getTime" in title:  # some 2018 rows carry the page's script where the title should be
        title = ""
    categories = meta.get("categories") or meta.get("category") or []
    names = categories if isinstance(categories, list) else [categories]
    return [item, _storable(title), [_storable(html.unescape(str(name))) for name in names]]


def _whole(number: str | float) -> int:
    try:
        whole = int(number)
    except ValueError:
        whole = int(float(number))
    if abs(whole) > MAX_WHOLE:
        raise ValueError(f"{number} is not a time")
    return whole


def _storable(text: Any) -> str:
    """JSON can hold halves of characters, which no file can. Ids must not be null."""
    if text is None:
        raise ValueError("an id is null")
    return str(text).encode(errors="replace").decode()


def _raw(events: Sequence[_Parsed], items: Sequence[_Parsed]) -> Raw:
    parts = [*events, *items]
    return Raw(
        interactions=pl.concat([part.frame for part in events]),
        items=pl.concat([part.frame for part in items]),
        broken_lines=sum(part.broken_lines for part in parts),
        first_broken=next((part.first_broken for part in parts if part.first_broken), ""),
    )


def _parse(
    file: Path, records: Numbered[Record], parse: Callable[[Record], list[Any] | None], schema: Schema
) -> _Parsed:
    """`parse` answers one row, None to leave it out, or raises when the line is broken."""
    chunks, rows = [pl.DataFrame(schema=schema)], []
    num_lines, broken, first_broken = 0, 0, ""
    for number, record in records:
        num_lines += 1
        try:
            row = parse(record)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            broken += 1
            first_broken = first_broken or f"{file.name} line {number}: {_reason(error)}"
            continue
        if row is not None:
            rows.append(row)
        if len(rows) >= CHUNK_ROWS:
            chunks.append(pl.DataFrame(rows, schema=schema, orient="row"))
            rows = []
    if broken > max(TOLERATED_LINES, TOLERATED_SHARE * num_lines):
        raise DataError(f"{file}: {broken} of {num_lines} lines cannot be read, the first is {first_broken}")
    chunks.append(pl.DataFrame(rows, schema=schema, orient="row"))
    return _Parsed(pl.concat(chunks), broken, first_broken)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error})"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _named(header: list[str], parse: Callable[[dict[str, str]], list[Any]]) -> Callable[[list[str]], list[Any]]:
    def parse_fields(fields: list[str]) -> list[Any]:
        if len(fields) != len(header):
            raise ValueError(f"{len(fields)} fields instead of {len(header)}")
        return parse(dict(zip(header, fields, strict=True)))

    return parse_fields


def _open_csv(file: Path, required: Sequence[str] = ()) -> tuple[list[str], Numbered[list[str]]]:
    """The header, which must name the `required` columns, and the lines after it."""
    rows = _csv_rows(file)
    header = next(rows, (1, []))[1]
    missing = [name for name in required if name not in header]
    if missing or len(set(header)) < len(header):
        wrong = f"column {', '.join(missing)} is missing" if missing else "two columns have one name"
        raise DataError(f"{file} line 1: {wrong} (found: {', '.join(header) or 'nothing'}); rename or add it")
    return header, rows


def _csv_rows(file: Path) -> Numbered[list[str]]:
    reader = csv.reader(_text_lines(file, "utf-8-sig"))
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"{file} line {reader.line_num}: {error}") from error


def _separated_by(separator: str) -> Callable[[Path], Numbered[Sequence[str]]]:
    def fields(file: Path) -> Numbered[Sequence[str]]:
        for number, line in _lines(file, "latin-1"):
            yield number, line.split(separator)

    return fields


def _movielens_100k(file: Path) -> Numbered[Sequence[str]]:
    return _separated_by("|" if file.name == "u.item" else "\t")(file)


MOVIELENS_FILES: tuple[tuple[str, str, Callable[[Path], Numbered[Sequence[str]]]], ...] = (
    ("ratings.dat", "movies.dat", _separated_by("::")),
    ("ratings.csv", "movies.csv", lambda file: _open_csv(file)[1]),
    ("u.data", "u.item", _movielens_100k),
)


def _lines(file: Path, encoding: str = "utf-8-sig") -> Numbered[str]:
    for number, line in enumerate(_text_lines(file, encoding), start=1):
        if text := line.rstrip("\r\n"):
            yield number, text


def _text_lines(file: Path, encoding: str) -> Iterator[str]:
    """With their ends. Progress, on a terminal only, is in bytes of the file as it lies on disk."""
    try:
        packed = file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror})") from error
    unpacked = gzip.GzipFile(fileobj=packed) if file.suffix == ".gz" else packed
    size = file.stat().st_size
    with (
        packed,
        tqdm(total=size, desc=file.name, unit="B", unit_scale=True, disable=None) as progress,
        io.TextIOWrapper(cast(BinaryIO, unpacked), encoding, errors="replace", newline="") as stream,
    ):
        for number, line in enumerate(stream):
            if number % PROGRESS_LINES == 0:
                progress.update(packed.tell() - progress.n)
            yield line
        progress.update(size - progress.n)
