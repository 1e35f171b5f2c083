"""Readers of raw formats.

In: a directory of raw files. Out: a `RawData`, two frames for `clean_dataset`. Encodings, separators, quotes and the
order of columns are found by looking. A line that is no record is counted and left out; no other cleaning is done here.
"""

import html
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from training.data.columns import ITEM_ROLES
from training.data.dataset import read_tables
from training.data.faults import DataError, Notes
from training.data.raw.amazon import read_amazon
from training.data.raw.found import RawData, ReadOptions, files_named, the_only
from training.data.raw.movielens import read_movielens
from training.data.raw.recbole import read_recbole
from training.data.raw.text_tables import read_event_file, read_item_file

EVENT_FILES, ITEM_FILES = ("interactions", "events", "export"), ("items",)
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
    return RawData(interactions, items, queries, options.times, files=[])


def _read_csv(source: Path, options: ReadOptions, notes: Notes) -> RawData:
    """Tables or JSON lines. Where no file tells titles, those of the events count, as the service exports them."""
    file = the_only(files_named(source, EVENT_FILES, ENDINGS), source, "interactions.csv")
    events = read_event_file(file, options, notes)
    item_files = files_named(source, ITEM_FILES, ENDINGS)
    if not item_files and "title" in events.frame.columns:
        titled = events.frame.select(ITEM_ROLES).drop_nulls()
        items = replace(
            events, frame=titled.unique("item_id", keep="first", maintain_order=True), facts={}, broken_lines=0
        )
    else:
        items = read_item_file(the_only(item_files, source, "items.csv"), options, notes)
    events = replace(events, frame=events.frame.select(pl.exclude("title")))
    return RawData.of([events], [items], options.times)


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
    if not raw.files:
        return
    used = {name for facts in raw.files for name in facts.get("columns", {}).values()}
    unused = [name for names in options.columns.values() for name in names if name not in used]
    if unused:
        raise DataError(f"--columns: no file has a column {unused[0]}, or another one was taken")
