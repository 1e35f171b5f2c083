"""Files of interactions: JSON lines, as `GET /users/{user_id}/export` writes them, or CSV; plain or compressed by gzip.

In: a path. Out: for each interaction its line number and the fields of an `Interaction`, not yet checked. Of the fields
of an export, `title` is left out, because it belongs to the item.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import structlog

from service.errors import SettingsError

log = structlog.get_logger("service.event_files")

_FIELDS = {
    "userid": "user_id",
    "itemid": "item_id",
    "timestamp": "timestamp",
    "type": "type",
    "value": "value",
    "rating": "value",
    "eventid": "event_id",
    "query": "query",
    "sessionid": "session_id",
    "recommendationid": "recommendation_id",
}
_NEEDED = {"user_id", "item_id", "timestamp"}
_SEPARATORS = (",", "\t", ";")
_GZIP = b"\x1f\x8b"
_MISSING = ("", "na", "nan", "none", "null", r"\n")  # in lower case


class Unreadable(NamedTuple):
    """Stands for the fields of a line that cannot be read; the lines after it can."""

    reason: str
    line: str


def read_interactions(path: Path) -> Generator[tuple[int, Any], None, None]:
    """Line numbers, and fields or `Unreadable`. A file whose first line has the names of columns is CSV.

    Raises SettingsError with the line number where the rest of the file cannot be read either.
    """
    with path.open("rb") as raw:
        is_compressed = raw.read(2) == _GZIP
        raw.seek(0)
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_compressed else raw
        try:
            first = file.readline()
            file.seek(0)
            separator = _separator(first)
            yield from _json_lines(file) if separator is None else _table(path, file, separator)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise SettingsError([f"{path}: cut short or damaged ({error})"]) from error


def _separator(first: bytes) -> str | None:
    """None if the line has no names of columns."""
    try:
        names = first.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return next((each for each in _SEPARATORS if set(_field_names(names.split(each))) >= _NEEDED), None)


def _field_names(names: Sequence[str]) -> list[str | None]:
    return [_FIELDS.get(re.sub(r"[\W_]+", "", name.casefold())) for name in names]


def _json_lines(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError) as error:
                event = Unreadable(f"not JSON: {error}", line.decode("utf-8", "replace").rstrip())
            if isinstance(event, dict):
                event.pop("title", None)
            yield number, event


def _table(path: Path, file: BinaryIO, separator: str) -> Iterator[tuple[int, Any]]:
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=separator, skipinitialspace=True, strict=True)
        try:
            header = next(reader)
            names = _field_names(header)
            repeated = sorted({name for name in names if name and names.count(name) > 1})
            if repeated:
                raise SettingsError([f"{path}:1: two columns are {repeated[0]}"])
            left_out = [name for name, known in zip(header, names, strict=True) if known is None]
            log.info("reading a table", columns_left_out=left_out)
            for fields in reader:
                if len(fields) not in (0, len(header)):
                    counts = f"{len(fields)} fields instead of {len(header)}"
                    yield reader.line_num, Unreadable(counts, separator.join(fields))
                elif fields:
                    named = list(zip(names, map(str.strip, fields), strict=True))
                    yield reader.line_num, {name: _value(name, field) for name, field in named if _is_told(name, field)}
        except csv.Error as error:
            raise SettingsError([f"{path}:{reader.line_num}: {error}"]) from error
        except UnicodeDecodeError as error:
            raise SettingsError([f"{path}: not UTF-8 after line {reader.line_num}; save it as UTF-8"]) from error


def _is_told(name: str | None, field: str) -> bool:
    """An empty field is one that a JSON object does not have; ids keep words such as NA."""
    return name is not None and field.lower() not in (_MISSING if name in ("value", "timestamp") else ("",))


def _value(name: str | None, field: str) -> Any:
    """Times as seconds, rounded down. What cannot be read stays text, which is then refused with its line."""
    try:
        if name == "timestamp":
            return _seconds(field)
        return float(field) if name == "value" else field
    except (ValueError, OverflowError):
        return field


def _seconds(field: str) -> int:
    """Raises ValueError. A date without a zone is in UTC."""
    if re.fullmatch(r"-?\d+", field):
        return int(field)
    if re.fullmatch(r"-?\d+\.\d*", field):
        return int(float(field) // 1)
    moment = datetime.fromisoformat(field)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() // 1)
