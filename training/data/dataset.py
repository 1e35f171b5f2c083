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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from model_store.event_types import EventTypes, parse_event_types
from training.data.cleaning import clean_interactions, clean_items, clean_queries, read_events, unify_ids
from training.data.columns import EVENT_ROLES, ITEM_ROLES, QUERY_ROLES, ColumnNames, require_columns, with_roles
from training.data.faults import DataError, Notes
from training.data.ids import read_ids
from training.data.times import SECONDS, TimeFormat

__all__ = [
    "INTERACTIONS",
    "ITEMS",
    "MANIFEST",
    "MAX_DROPPED",
    "QUERIES",
    "DataError",
    "Dataset",
    "Dropped",
    "clean_dataset",
    "dataset_stats",
    "load_dataset",
    "read_tables",
    "save_dataset",
]

INTERACTIONS, ITEMS, MANIFEST = "interactions.parquet", "items.parquet", "dataset.json"
QUERIES = "queries.parquet"
EVENT_TYPES = "event_types.json"
FORMAT_VERSION = 1
MAX_DROPPED = 0.1  # of the interactions; more is a mistake in the data
REQUIRED = {INTERACTIONS: EVENT_ROLES, ITEMS: ITEM_ROLES, QUERIES: QUERY_ROLES}


@dataclass(frozen=True)
class Dataset:
    """Interactions are sorted by user, time and tie key, items by id. Every interaction has its item."""

    name: str
    interactions: pl.DataFrame  # user_id str, item_id str, timestamp int64 s, rating float32 or null; optional type str
    items: pl.DataFrame  # item_id str, title str (clean, not empty); further columns are attributes
    queries: pl.DataFrame | None = None  # user_id, item_id, timestamp, query str (lower case, not empty)
    event_types: EventTypes = field(default_factory=EventTypes)  # read only where interactions have a column `type`


@dataclass(frozen=True)
class Dropped:
    """Number of rows that cleaning removed, by reason. A row counts for the first reason that applies."""

    interactions_incomplete: int
    interactions_without_item: int
    interactions_repeated: int
    items_without_title: int
    items_repeated: int
    queries: int = 0  # incomplete, without item or repeated

    @property
    def lost(self) -> int:
        """Interactions that are gone; of a repeated one, a copy stays."""
        return self.interactions_incomplete + self.interactions_without_item


def load_dataset(path: Path) -> Dataset:
    """Reads and cleans, so that the directory need not be made by `training.prepare`. Raises DataError.

    Cleaning of raw tables removes at most the share `MAX_DROPPED` of the interactions; only `training.prepare` tells
    which.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such directory; a data set is a directory with {INTERACTIONS} and {ITEMS}")
    manifest = _read_manifest(path)
    tables = read_tables(path)
    dataset, dropped = clean_dataset(str(manifest.get("name", path.resolve().name)), *tables)
    if not manifest and dropped.lost > MAX_DROPPED * tables[0].height:
        counted = f"{dropped.lost} of {tables[0].height} interactions would be left out"
        raise DataError(f"{path}: {counted}; training.prepare --format parquet tells which, and can allow it")
    return replace(dataset, event_types=read_table_of_types(path))


def read_table_of_types(path: Path) -> EventTypes:
    """The table in the directory, which may be an answer of GET /settings/events; the defaults without one.

    Raises DataError.
    """
    file = path / EVENT_TYPES
    if not file.exists():
        return EventTypes()
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return parse_event_types({name: facts[name] for name in ("types", "other") if name in facts})
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: not a table of event types: {str(error)[:300]}") from None


def read_tables(
    path: Path, columns: ColumnNames = MappingProxyType({})
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame | None]:
    """Interactions, items, and queries if there are any, with the names of their roles. Raises DataError.

    Without a file of interactions, the choices after queries are the interactions.
    """
    queries, interactions = None, None
    if (path / QUERIES).exists():
        queries = with_roles(read_parquet(path / QUERIES), QUERIES, QUERY_ROLES, columns)
    if queries is None or (path / INTERACTIONS).exists():
        interactions = with_roles(read_parquet(path / INTERACTIONS), INTERACTIONS, EVENT_ROLES, columns)
    items = with_roles(read_parquet(path / ITEMS), ITEMS, ITEM_ROLES, columns)
    if queries is not None and interactions is None:
        interactions = queries.select(EVENT_ROLES)
    assert interactions is not None
    return interactions, items, queries


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
        if dataset.event_types != EventTypes():
            table = dataset.event_types.model_dump_json(indent=2)
            (path / EVENT_TYPES).write_text(table + "\n", encoding="utf-8")
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        partial[MANIFEST].write_text(text + "\n", encoding="utf-8")
        for name in (*frames, MANIFEST):
            os.replace(partial[name], path / name)
    return manifest


def clean_dataset(
    name: str,
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    queries: pl.DataFrame | None = None,
    *,
    notes: Notes | None = None,
    times: TimeFormat = SECONDS,
) -> tuple[Dataset, Dropped]:
    """Cleans frames with the required columns, and counts the removed rows. Raises DataError.

    `notes` takes the first example of everything that is removed or changed. `times` says how times are written.
    """
    notes = Notes() if notes is None else notes
    tables = {INTERACTIONS: interactions} | ({} if queries is None else {QUERIES: queries})
    for place, frame in (tables | {ITEMS: items}).items():
        require_columns(place, frame.columns, {role: role for role in frame.columns}, REQUIRED[place])
    events = [read_events(place.removesuffix(".parquet"), frame, notes, times) for place, frame in tables.items()]
    item_ids, events = unify_ids(read_ids(items["item_id"], "items: item_id", notes), "items", events, notes)
    known = clean_items(items, item_ids, "items", notes)
    cleaned = clean_interactions(events[0], known.items["item_id"], notes)
    asked = None if queries is None else clean_queries(events[1], known.items["item_id"], notes)
    dropped = Dropped(
        interactions_incomplete=cleaned.num_incomplete,
        interactions_without_item=cleaned.num_without_item,
        interactions_repeated=cleaned.num_repeated,
        items_without_title=known.num_without_title,
        items_repeated=known.num_repeated,
        queries=0 if queries is None or asked is None else queries.height - asked.height,
    )
    if interactions.is_empty():
        raise DataError(f"{name}: there is no interaction, only names of columns")
    if cleaned.events.is_empty():
        raise DataError(f"{name}: none of {interactions.height} interactions is left: {'; '.join(map(str, notes))}")
    return Dataset(name, cleaned.events, known.items, asked), dropped


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
