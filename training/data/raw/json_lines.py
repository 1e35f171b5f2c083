"""JSON lines: one object per line.

In: a `TextFile`. Out: rows, one for each line that could be read. Python's parser reads them and not that of polars,
because such files contain what JSON forbids (NaN, lone surrogates), and values of several types under one key.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import polars as pl

from training.data.columns import ColumnNames, find_columns, require_columns
from training.data.faults import Notes
from training.data.raw.found import RawFile, note_broken
from training.data.raw.text_files import TextFile

CHUNK_ROWS = 500_000
_LINES_FOR_NAMES = 1000
_WRONG = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)

Schema = dict[str, Any]
T = TypeVar("T")


class Rows(NamedTuple):
    frame: pl.DataFrame
    broken_lines: int


def read_rows(
    text: TextFile, parse: Callable[[dict[str, Any]], list[Any] | None], schema: Schema, notes: Notes
) -> Rows:
    """`parse` gives one row, or None to leave the object out; it raises if the object is not what is expected."""
    chunks, broken = [pl.DataFrame(schema=schema)], Counter[str]()
    rows = (row for row in _parsed(text, parse, broken, notes) if row is not None)
    while chunk := list(islice(rows, CHUNK_ROWS)):
        chunks.append(pl.DataFrame(chunk, schema=schema, orient="row"))
    return Rows(pl.concat(chunks), broken.total())


def _parsed(text: TextFile, parse: Callable[[dict[str, Any]], T], broken: Counter[str], notes: Notes) -> Iterator[T]:
    for number, line in text.lines():
        try:
            found = parse(parse_object(line))
        except _WRONG as error:
            broken[text.path.name] += 1
            note_broken(notes, 1, f"{text.path.name} line {number}: {reason(error)}")
            continue
        yield found


def read_event_lines(
    text: TextFile, roles: tuple[str, ...], optional: tuple[str, ...], columns: ColumnNames, notes: Notes
) -> RawFile:
    """Events with the keys of `roles`, and of `optional` roles if there are any. Other keys are left out."""
    names = _names(text)
    found = find_columns(text.path.name, names, (*roles, *optional), columns)
    require_columns(text.path.name, names, found, roles)

    def parse(event: dict[str, Any]) -> list[Any]:
        return [plain_text(event.get(name), name) for name in found.values()]

    rows = read_rows(text, parse, dict.fromkeys(found, pl.String), notes)
    facts = file_facts(text) | {"columns": found, "unused": [name for name in names if name not in found.values()]}
    return RawFile(rows.frame, facts, rows.broken_lines)


def read_item_lines(text: TextFile, roles: tuple[str, ...], columns: ColumnNames, notes: Notes) -> RawFile:
    """Items with the keys of `roles`; every other key is an attribute."""
    names = _names(text)
    found = find_columns(text.path.name, names, roles, columns)
    require_columns(text.path.name, names, found, roles)
    role_of = {name: role for role, name in found.items()}

    def parse(item: dict[str, Any]) -> dict[str, Any]:
        json.dumps(item, ensure_ascii=False).encode()  # raises for lone surrogates, which no file can hold
        texts = {role: plain_text(item.get(name), name) for role, name in found.items()}
        return texts | {name: value for name, value in item.items() if name not in role_of and name not in texts}

    broken = Counter[str]()
    items = [dict.fromkeys(found), *_parsed(text, parse, broken, notes)]  # the first gives the order of columns
    frame = pl.from_dicts(items, infer_schema_length=None, strict=False).slice(1)
    typed = frame.with_columns(pl.col(*found).cast(pl.String))
    return RawFile(typed, file_facts(text) | {"columns": found}, broken.total())


def file_facts(text: TextFile) -> dict[str, Any]:
    return {"file": text.path.name, "encoding": text.encoding, "compression": text.compression}


def parse_object(line: bytes) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def plain_text(value: Any, name: str) -> str | None:
    """Text or number as text; None for null and NaN. Raises ValueError for anything else, and for lone surrogates."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} is neither text nor a number")
    text = str(value)
    text.encode()
    return text


def reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error})"
    if isinstance(error, UnicodeEncodeError):
        return "half of a character (a lone surrogate)"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _names(text: TextFile) -> list[str]:
    """The keys of the first objects, in the order of their first appearance."""
    return list(dict.fromkeys(chain.from_iterable(islice(_objects(text), _LINES_FOR_NAMES))))


def _objects(text: TextFile) -> Iterator[dict[str, Any]]:
    for _, line in text.lines():
        try:
            yield parse_object(line)
        except _WRONG:
            continue
