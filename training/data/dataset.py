"""A data set on disk and in memory: interactions of users with items, the items' titles and attributes, and queries.

In: a directory with `interactions.parquet` and `items.parquet`, raw or prepared; or polars frames. `queries.parquet` is
optional: a row is what a user wrote and the item that the user then chose. Without `interactions.parquet`, the choices
after queries are the interactions. Out: a `Dataset` whose frames are clean, complete and sorted. Knows neither splits
nor raw formats.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs

from model_store.text.history import clean_title, tie_key

INTERACTIONS, ITEMS, MANIFEST = "interactions.parquet", "items.parquet", "dataset.json"
QUERIES = "queries.parquet"
MAX_QUERY_LENGTH = 500  # characters; the rest is cut off
FORMAT_VERSION = 1
MAX_TIMESTAMP_S = 100_000_000_000  # the year 5138; anything later is milliseconds instead of seconds
ORDER = ["user_id", "timestamp", "tie", "item_id"]
REQUIRED = {
    INTERACTIONS: ("user_id", "item_id", "timestamp"),
    ITEMS: ("item_id", "title"),
    QUERIES: ("user_id", "item_id", "timestamp", "query"),
}


class DataError(Exception):
    """The user's data is wrong. The message says where, what, how many rows, and what to do."""


@dataclass(frozen=True)
class Dataset:
    """Interactions are sorted by user, time and tie key, items by id. Every interaction has its item."""

    name: str
    interactions: pl.DataFrame  # user_id str, item_id str, timestamp int64 s, rating float32 or null
    items: pl.DataFrame  # item_id str, title str (clean, not empty); further columns are attributes
    queries: pl.DataFrame | None = None  # user_id, item_id, timestamp, query str (lower case, not empty)


@dataclass(frozen=True)
class Dropped:
    """Number of rows that cleaning removed, by reason. A row counts for the first reason that applies."""

    interactions_incomplete: int
    interactions_without_item: int
    interactions_repeated: int
    items_without_title: int
    items_repeated: int
    queries: int = 0  # incomplete, without item or repeated


def load_dataset(path: Path) -> Dataset:
    """Reads and cleans, so that the directory need not be made by `training.prepare`. Raises DataError."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such directory; a data set is a directory with {INTERACTIONS} and {ITEMS}")
    manifest = _read_manifest(path)
    interactions, queries = read_events(path)
    name = str(manifest.get("name", path.resolve().name))
    return clean_dataset(name, interactions, read_parquet(path / ITEMS), queries)[0]


def read_events(path: Path) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """The interactions in a directory, and its queries if it has any. Raises DataError."""
    queries = read_parquet(path / QUERIES) if (path / QUERIES).exists() else None
    if queries is None or (path / INTERACTIONS).exists():
        return read_parquet(path / INTERACTIONS), queries
    _require_columns(queries, QUERIES)
    return queries.select(REQUIRED[INTERACTIONS]), queries


def save_dataset(
    dataset: Dataset, path: Path, *, source: Mapping[str, Any] | None = None, dropped: Dropped | None = None
) -> dict[str, Any]:
    """Writes the data set and returns its manifest. `dataset.json` is written last and holds checksums of the others.

    Raises DataError if `path` holds raw data, which would be overwritten.
    """
    path = Path(path)
    is_raw = (path / INTERACTIONS).exists() or (path / QUERIES).exists()
    if is_raw and not (path / MANIFEST).exists():
        raise DataError(f"{path}: holds raw data, which would be overwritten; choose another directory")
    path.mkdir(parents=True, exist_ok=True)
    frames = {INTERACTIONS: dataset.interactions, ITEMS: dataset.items}
    frames |= {} if dataset.queries is None else {QUERIES: dataset.queries}
    with _partial_files(path, [*frames, MANIFEST]) as partial:
        for name, frame in frames.items():
            frame.write_parquet(partial[name], compression="zstd")
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": dataset.name,
            "source": dict(source or {}),
            "stats": dataset_stats(dataset),
            "dropped": asdict(dropped) if dropped else {},
            "sha256": {name: _sha256(partial[name]) for name in frames},
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        partial[MANIFEST].write_text(text + "\n", encoding="utf-8")
        for name in (*frames, MANIFEST):
            os.replace(partial[name], path / name)
    return manifest


def clean_dataset(
    name: str, interactions: pl.DataFrame, items: pl.DataFrame, queries: pl.DataFrame | None = None
) -> tuple[Dataset, Dropped]:
    """Cleans frames with the required columns, and counts the removed rows. Raises DataError."""
    _require_columns(interactions, INTERACTIONS)
    _require_columns(items, ITEMS)
    known = _clean_items(items)
    typed = _typed_interactions(interactions)
    complete = typed.filter(pl.all_horizontal(pl.col(*REQUIRED[INTERACTIONS]).is_not_null()))
    titled = complete.join(known.select("item_id"), on="item_id", how="semi")
    ordered = _in_history_order(titled)
    _refuse_milliseconds(ordered, INTERACTIONS)
    asked = None if queries is None else _clean_queries(queries, known)
    distinct_items = items["item_id"].n_unique()
    dropped = Dropped(
        interactions_incomplete=typed.height - complete.height,
        interactions_without_item=complete.height - titled.height,
        interactions_repeated=titled.height - ordered.height,
        items_without_title=distinct_items - known.height,
        items_repeated=items.height - distinct_items,
        queries=0 if queries is None or asked is None else queries.height - asked.height,
    )
    if ordered.is_empty():
        raise DataError(f"{name}: none of {interactions.height} interactions is left; removed: {asdict(dropped)}")
    return Dataset(name, ordered, known, asked), dropped


def dataset_stats(dataset: Dataset) -> dict[str, int]:
    events = dataset.interactions
    first, last = events.select(first=pl.col("timestamp").min(), last=pl.col("timestamp").max()).row(0)
    return {
        "users": events["user_id"].n_unique(),
        "items": dataset.items.height,
        "interactions": events.height,
        "first_timestamp": first,
        "last_timestamp": last,
        **({} if dataset.queries is None else {"queries": dataset.queries.height}),
    }


def _clean_items(items: pl.DataFrame) -> pl.DataFrame:
    """Keeps the first row of each id. Attributes become values that JSON can hold."""
    return (
        items.with_columns(
            _text(items, "item_id"),
            pl.col("title").cast(pl.String).map_elements(clean_title, return_dtype=pl.String),
            cs.temporal().cast(pl.String),
            (cs.float() - cs.by_name("title", "item_id")).fill_nan(None),
        )
        .filter(pl.col("item_id").is_not_null() & pl.col("title").is_not_null() & (pl.col("title") != ""))
        .unique("item_id", keep="first", maintain_order=True)
        .sort("item_id")
        .select("item_id", "title", pl.exclude("item_id", "title"))
    )


def _clean_queries(frame: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Sorted by user, time, query and item. Text is lower case, one line, and at most `MAX_QUERY_LENGTH` long."""
    _require_columns(frame, QUERIES)
    text = pl.col("query").cast(pl.String).map_elements(_clean_query, return_dtype=pl.String)
    columns = [_text(frame, "user_id"), _text(frame, "item_id"), _seconds(frame).alias("timestamp"), text]
    asked = (
        frame.select(*columns)
        .filter(pl.all_horizontal(pl.all().is_not_null()) & (pl.col("query") != ""))
        .join(items.select("item_id"), on="item_id", how="semi")
        .unique()
        .sort("user_id", "timestamp", "query", "item_id")
    )
    _refuse_milliseconds(asked, QUERIES)
    return asked


def _clean_query(text: str) -> str:
    return clean_title(text)[:MAX_QUERY_LENGTH].strip().lower()


def _typed_interactions(frame: pl.DataFrame) -> pl.DataFrame:
    has_rating = "rating" in frame.columns
    rating = pl.col("rating").cast(pl.Float32, strict=False).fill_nan(None) if has_rating else pl.lit(None)
    return frame.select(
        _text(frame, "user_id"),
        _text(frame, "item_id"),
        _seconds(frame).alias("timestamp"),
        rating.cast(pl.Float32).alias("rating"),
    )


def _text(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Ids as text. A float column loses its ".0", so that 17.0 matches the "17" of the other file. "" becomes null."""
    whole = pl.col(column).cast(pl.Int64, strict=False) if frame.schema[column].is_float() else pl.col(column)
    text = whole.cast(pl.String)
    return pl.when(text != "").then(text).alias(column)


def _seconds(frame: pl.DataFrame) -> pl.Expr:
    if frame.schema["timestamp"].is_temporal():
        return pl.col("timestamp").cast(pl.Datetime("us")).dt.epoch("s")
    number = pl.col("timestamp").cast(pl.Float64, strict=False).fill_nan(None)
    return number.floor().cast(pl.Int64, strict=False)


def _in_history_order(frame: pl.DataFrame) -> pl.DataFrame:
    """Sorted by user, time, tie key. Of rows with equal (user, item, time) the one with the best rating stays."""
    distinct = frame.sort("rating", descending=True, nulls_last=True).unique(
        ["user_id", "item_id", "timestamp"], keep="first", maintain_order=True
    )
    tied = distinct.select(pl.struct("user_id", "timestamp").is_duplicated()).to_series()
    keys = [
        tie_key(user, item) if is_tied else ""
        for user, item, is_tied in zip(distinct["user_id"], distinct["item_id"], tied, strict=True)
    ]
    return distinct.with_columns(pl.Series("tie", keys, dtype=pl.String)).sort(ORDER).drop("tie")


def _refuse_milliseconds(events: pl.DataFrame, file: str) -> None:
    late = events.filter(pl.col("timestamp") >= MAX_TIMESTAMP_S).height
    if late:
        raise DataError(
            f"{file}: {late} of {events.height} timestamps are after the year 5138; "
            "they look like milliseconds, but seconds are expected: divide by 1000"
        )


def _require_columns(frame: pl.DataFrame, file: str) -> None:
    missing = [column for column in REQUIRED[file] if column not in frame.columns]
    if missing:
        found = ", ".join(frame.columns) or "none"
        raise DataError(f"{file}: column {', '.join(missing)} is missing (found: {found}); rename or add it")


def read_parquet(file: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(file)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; a data set needs {INTERACTIONS} and {ITEMS}") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file}: not a readable parquet file ({str(error).splitlines()[0]})") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    """{} for raw data. Raises DataError if the files of a prepared data set have changed."""
    file = path / MANIFEST
    if not file.exists():
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        sums = dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not a data set's manifest; prepare again or remove the file") from error
    for name in (INTERACTIONS, ITEMS, QUERIES):
        if (path / name).exists() and _sha256(path / name) != sums.get(name):
            raise DataError(f"{path / name}: changed since prepared; prepare again, or remove {MANIFEST} to accept")
    return manifest


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _partial_files(path: Path, names: Iterable[str]) -> Iterator[dict[str, Path]]:
    partial = {name: path / f".{name}.{os.getpid()}.partial" for name in names}
    try:
        yield partial
    finally:
        for file in partial.values():
            file.unlink(missing_ok=True)
