"""Files of events and of items whose first line, or whose keys, name the columns."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from training.data.columns import EVENT_ROLES, ITEM_ROLES, QUERY_ROLES, find_columns, rename, require_columns
from training.data.faults import DataError, Notes
from training.data.raw.found import RawFile, ReadOptions, compact, note_broken
from training.data.raw.json_lines import file_facts, read_event_lines, read_item_lines
from training.data.raw.tables import Quoting, Shape, TableFile
from training.data.raw.text_files import TextFile

_OPTIONAL = ("rating", "type", "title", "query")
_NUMBER = re.compile(r"-?\d+([.,]\d+)?")


def read_event_file(file: Path, options: ReadOptions, notes: Notes) -> RawFile:
    text = TextFile.open(file, options.encoding, notes)
    if _is_json(text):
        return read_event_lines(text, EVENT_ROLES, _OPTIONAL, options.columns, notes)
    return read_named(TableFile.open(text), EVENT_ROLES, _OPTIONAL, options, notes)


def read_query_file(file: Path, options: ReadOptions, notes: Notes) -> RawFile:
    text = TextFile.open(file, options.encoding, notes)
    if _is_json(text):
        return read_event_lines(text, QUERY_ROLES, (), options.columns, notes)
    return read_named(TableFile.open(text), QUERY_ROLES, (), options, notes)


def read_item_file(file: Path, options: ReadOptions, notes: Notes) -> RawFile:
    """Every column beside those of `ITEM_ROLES` is an attribute."""
    text = TextFile.open(file, options.encoding, notes)
    if _is_json(text):
        return read_item_lines(text, ITEM_ROLES, options.columns, notes)
    return read_named(TableFile.open(text), ITEM_ROLES, None, options, notes)


def read_named(
    table: TableFile, roles: Sequence[str], optional: Sequence[str] | None, options: ReadOptions, notes: Notes
) -> RawFile:
    """By the names in the first line. `optional` are further roles; None: all other columns are kept as they are."""
    place = f"{table.text.path} line {1 + table.skipped_lines}"
    found = find_columns(place, table.first, (*roles, *(optional or ())), options.columns)
    if is_headerless(table, found):
        first = ", ".join(table.first)
        raise DataError(
            f"{place}: names of columns are missing, the first line is data ({first}); add a line with names"
        )
    require_columns(place, table.first, found, roles)
    names = list(found.values()) if optional is not None else [name for name in table.first if name]

    def shape(frame: pl.DataFrame) -> pl.DataFrame:
        kept = rename(frame.select(names), found)
        return compact(kept) if "user_id" in found else kept

    file = read_columns(table, table.first, shape, notes, has_header=True)
    unused = {"unused": [name for name in table.first if name not in names]} if len(names) < len(table.first) else {}
    return replace(file, facts={**file.facts, "columns": found, **unused})


def read_columns(
    table: TableFile,
    names: Sequence[str],
    shape: Shape,
    notes: Notes,
    *,
    has_header: bool,
    quoting: Quoting = "doubled",
) -> RawFile:
    """`names` are those of all columns; see `TableFile.read`."""
    distinct = [name or f"column {place}" for place, name in enumerate(names, 1)]
    found = table.read(distinct, shape, notes, has_header=has_header, quoting=quoting)
    note_broken(notes, found.broken_lines, found.first_broken)
    return RawFile(found.frame, file_facts(table.text) | {"separator": table.separator}, found.broken_lines)


def is_headerless(table: TableFile, found: dict[str, str]) -> bool:
    """Whether the first line is data: it has none of the names, but numbers."""
    return not found and any(_NUMBER.fullmatch(field) for field in table.first)


def _is_json(text: TextFile) -> bool:
    """Raises DataError for one JSON array, which cannot be read line by line."""
    start = text.first_line().lstrip()[:1]
    if start == "[":
        raise DataError(f"{text.path} line 1: starts with [; one JSON object per line is expected")
    return start == "{"
