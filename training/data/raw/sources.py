"""Readers of four raw formats.

In: a directory of raw files. Out: a `RawData`, two frames for `clean_dataset`. Text files are streamed: each line is
parsed and only the fields in use are kept. A line that cannot be parsed is counted and skipped. A file with many such
lines probably has another format: that is a DataError which names the first one. No other cleaning is done here.
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

from training.data.dataset import INTERACTIONS, ITEMS, REQUIRED, DataError, read_events, read_parquet

TOLERATED_LINES, TOLERATED_SHARE = 10, 0.1
CHUNK_ROWS = 500_000
PROGRESS_LINES = 4096
MAX_WHOLE = 2**62
INTERACTION_SCHEMA = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float32}
ITEM_SCHEMA = {"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String)}

Schema = dict[str, Any]
Record = TypeVar("Record")
Numbered = Iterator[tuple[int, Record]]  # (line number from 1, content)


@dataclass(frozen=True)
class RawData:
    """What a reader found. `first_broken` names the first line that could not be parsed, and why; "" if none."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    broken_lines: int
    first_broken: str
    queries: pl.DataFrame | None = None


class _ParsedFile(NamedTuple):
    frame: pl.DataFrame
    broken_lines: int = 0
    first_broken: str = ""


def read_source(format: str, source: Path) -> RawData:
    """`format` is one of `READERS`. Raises DataError."""
    if not source.is_dir():
        raise DataError(f"{source}: no such directory; --source is the directory that holds the raw files")
    try:
        return READERS[format](source)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{source}: a compressed file is cut short or damaged ({error}); download it again") from error


def _read_parquet_source(source: Path) -> RawData:
    interactions, queries = read_events(source)
    return RawData(interactions, read_parquet(source / ITEMS), 0, "", queries)


def _read_csv_source(source: Path) -> RawData:
    file = source / "interactions.csv"
    header, rows = _open_csv(file, REQUIRED[INTERACTIONS])
    events = _parse(file, rows, _named(header, _csv_interaction), INTERACTION_SCHEMA)
    file = source / "items.csv"
    header, rows = _open_csv(file, REQUIRED[ITEMS])
    items = _parse(file, rows, _named(header, _csv_item), dict.fromkeys(header, pl.String))
    return _raw([events], [items])


def _read_movielens(source: Path) -> RawData:
    """ML-1M/10M (.dat), ML-latest/20M/25M (.csv) and ML-100K (u.data), which have the same columns."""
    for ratings, movies, split in MOVIELENS_FILES:
        if (source / ratings).exists() and (source / movies).exists():
            events = _parse(source / ratings, split(source / ratings), _movielens_rating, INTERACTION_SCHEMA)
            items = _parse(source / movies, split(source / movies), _movielens_movie, ITEM_SCHEMA)
            return _raw([events], [items])
    wanted = ", or ".join(f"{ratings} and {movies}" for ratings, movies, _ in MOVIELENS_FILES)
    raise DataError(f"{source}: no MovieLens files; needed: {wanted}")


def _read_amazon(source: Path) -> RawData:
    """Review files and their meta files, released in 2018 or 2023, of one or several categories."""
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


READERS: dict[str, Callable[[Path], RawData]] = {
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
    """The third field holds genres, except in u.item, which has 24 fields."""
    item, title, *rest = fields
    genres = rest[0].split("|") if len(rest) == 1 and rest[0] != "(no genres listed)" else []
    return [item, html.unescape(title), genres]


def _amazon_review(line: str) -> list[Any]:
    review = json.loads(line)
    if "unixReviewTime" in review:
        user, item, seconds = review["reviewerID"], review["asin"], _whole(review["unixReviewTime"])
    else:  # 2023: milliseconds; parent_asin names all variants of a product, as in the meta file
        user, item, seconds = review["user_id"], review["parent_asin"], _whole(review["timestamp"]) // 1000
    rating = review.get("overall", review.get("rating"))
    return [_storable(user), _storable(item), seconds, None if rating is None else float(rating)]


def _amazon_meta(meta: dict[str, Any], reviewed: set[str]) -> list[Any] | None:
    item = _storable(meta["parent_asin"] if "parent_asin" in meta else meta["asin"])
    if item not in reviewed:
        return None
    title = html.unescape(str(meta.get("title") or ""))
    if "getTime" in title:  # some rows of 2018 hold JavaScript of the page instead of a title
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
    """Text that UTF-8 can encode: JSON may hold lone surrogates. Raises ValueError for null."""
    if text is None:
        raise ValueError("an id is null")
    return str(text).encode(errors="replace").decode()


def _raw(events: Sequence[_ParsedFile], items: Sequence[_ParsedFile]) -> RawData:
    parts = [*events, *items]
    return RawData(
        interactions=pl.concat([part.frame for part in events]),
        items=pl.concat([part.frame for part in items]),
        broken_lines=sum(part.broken_lines for part in parts),
        first_broken=next((part.first_broken for part in parts if part.first_broken), ""),
    )


def _parse(
    file: Path, records: Numbered[Record], parse: Callable[[Record], list[Any] | None], schema: Schema
) -> _ParsedFile:
    """`parse` returns one row, or None to leave the line out; it raises if the line cannot be parsed."""
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
    return _ParsedFile(pl.concat(chunks), broken, first_broken)


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
    """The header and the lines after it. Raises DataError unless the header has the `required` columns."""
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
    """Yields lines with their line ends. Progress, on a terminal only, counts bytes of the (compressed) file."""
    try:
        compressed = file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror})") from error
    plain_file = gzip.GzipFile(fileobj=compressed) if file.suffix == ".gz" else compressed
    size = file.stat().st_size
    with (
        compressed,
        tqdm(total=size, desc=file.name, unit="B", unit_scale=True, disable=None) as progress,
        io.TextIOWrapper(cast(BinaryIO, plain_file), encoding, errors="replace", newline="") as stream,
    ):
        for number, line in enumerate(stream):
            if number % PROGRESS_LINES == 0:
                progress.update(compressed.tell() - progress.n)
            yield line
        progress.update(size - progress.n)
