"""Readers of raw formats.

In: a directory of raw files. Out: a `RawData`, two frames for `clean_dataset`. Encodings, separators, quotes and the
order of columns are found by looking. A line that is no record is counted and left out; no other cleaning is done here.
"""

import html
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from training.data.columns import EVENT_ROLES, ITEM_ROLES, QUERY_ROLES, find_columns
from training.data.dataset import INTERACTIONS, ITEMS, QUERIES, read_tables
from training.data.faults import DataError, Notes
from training.data.raw.amazon import read_amazon
from training.data.raw.found import RawData, RawFile, ReadOptions, files_named, the_only
from training.data.raw.movielens import read_movielens
from training.data.raw.recbole import read_recbole
from training.data.raw.text_tables import read_event_file, read_item_file, read_query_file

EVENT_FILES, ITEM_FILES, QUERY_FILES = ("interactions", "events", "export"), ("items",), ("queries",)
_PARQUET = {INTERACTIONS: (*EVENT_ROLES, "rating", "type"), ITEMS: ITEM_ROLES, QUERIES: QUERY_ROLES}
ENDINGS = ("csv", "tsv", "txt", "jsonl", "ndjson", "json")


def read_source(format: str, source: Path, options: ReadOptions, notes: Notes) -> RawData:
    """`format` is one of `READERS`. Raises DataError."""
    if not source.is_dir():
        raise DataError(f"{source}: no such directory; --source is the directory that holds the raw files")
    raw = READERS[format](source, options, notes)
    if format != "parquet":
        raw = replace(raw, items=_without_entities(raw.items, notes))
    _refuse_unused_names(raw, options)
    return raw


def _read_parquet(source: Path, options: ReadOptions, notes: Notes) -> RawData:
    interactions, items, queries = read_tables(source, options.columns)
    files = [_parquet_facts(source / name, roles, options) for name, roles in _PARQUET.items()]
    return RawData(interactions, items, queries, options.times, files=[facts for facts in files if facts])


def _parquet_facts(file: Path, roles: tuple[str, ...], options: ReadOptions) -> dict[str, Any]:
    if not file.exists():
        return {}
    return {
        "file": file.name,
        "columns": find_columns(file.name, list(pl.read_parquet_schema(file)), roles, options.columns),
    }


def _read_csv(source: Path, options: ReadOptions, notes: Notes) -> RawData:
    """Tables or JSON lines. Where no file tells titles or queries, those of the events count, as the service exports
    them. Without a file of events, the choices after queries are the events.
    """
    query_files = files_named(source, QUERY_FILES, ENDINGS)
    asked = [read_query_file(file, options, notes) for file in query_files[:1]]
    event_files = files_named(source, EVENT_FILES, ENDINGS)
    if event_files or not asked:
        events = read_event_file(the_only(event_files, source, "interactions.csv"), options, notes)
    else:
        events = RawFile(asked[0].frame.drop("query"), facts={})
    titles, queries = (_with(events.frame, name) for name in ("title", "query"))
    item_files = files_named(source, ITEM_FILES, ENDINGS)
    if titles is None or item_files:
        items = read_item_file(the_only(item_files, source, "items.csv"), options, notes)
    else:
        items = RawFile(titles.select(ITEM_ROLES).unique("item_id", keep="first", maintain_order=True), facts={})
    raw = RawData.of([replace(events, frame=events.frame.select(pl.exclude("title", "query")))], [items], options.times)
    if asked:
        return replace(raw, queries=asked[0].frame, files=[*raw.files, asked[0].facts])
    return raw if queries is None or queries.is_empty() else replace(raw, queries=queries.select(QUERY_ROLES))


def _with(events: pl.DataFrame, name: str) -> pl.DataFrame | None:
    """The events that have a `name`, if there is such a column."""
    return events.drop_nulls(name) if name in events.columns else None


READERS: Mapping[str, Callable[[Path, ReadOptions, Notes], RawData]] = {
    "parquet": _read_parquet,
    "csv": _read_csv,
    "movielens": read_movielens,
    "amazon": read_amazon,
    "recbole": read_recbole,
}


def _without_entities(items: pl.DataFrame, notes: Notes) -> pl.DataFrame:
    """Titles with "&" instead of "&amp;"."""
    titles = items["title"]
    places = titles.str.contains("&", literal=True).fill_null(False).arg_true()
    if not len(places):
        return items
    raw = titles.gather(places)
    plain = raw.map_elements(html.unescape, return_dtype=pl.String)
    changed = raw.filter(raw != plain)
    notes.add("titles_with_html_entities", len(changed), changed[0] if len(changed) else "")
    return items.with_columns(titles.scatter(places, plain))


def _refuse_unused_names(raw: RawData, options: ReadOptions) -> None:
    """A name in --columns that no file has is a mistake."""
    used = {name for facts in raw.files for name in facts.get("columns", {}).values()}
    unused = [name for names in options.columns.values() for name in names if name not in used]
    if unused:
        raise DataError(f"--columns: no file has a column {unused[0]}, or another one was taken")
