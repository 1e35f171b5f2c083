"""Files of interactions: JSON lines, as `GET /users/{user_id}/export` writes them, or CSV, plain or compressed by gzip;
or Parquet, as `python -m service export` writes it.

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
    "context": "context",
}
_NEEDED = {"user_id", "item_id", "timestamp"}
_SEPARATORS = (",", "\t", ";")
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_ROWS_AT_ONCE = 10_000
_MISSING = ("", "na", "nan", "none", "null", r"\n")  # in lower case


class Unreadable(NamedTuple):
    """Stands for the fields of a line that cannot be read; the lines after it can."""

    reason: str
    line: str


def read_interactions(path: Path) -> Generator[tuple[int, Any], None, None]:
    """Line numbers, and fields or `Unreadable`. A file whose first line has the names of columns is CSV. Of a Parquet
    file, the numbers of rows from 1.

    Raises SettingsError with the line number where the rest of the file cannot be read either.
    """
    with path.open("rb") as raw:
        begin = raw.read(4)
        is_compressed = begin.startswith(_GZIP)
        raw.seek(0)
        if begin == _PARQUET:
            yield from _rows(path, raw)
            return
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


def _rows(path: Path, raw: BinaryIO) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise SettingsError([f"{path}: Parquet needs pyarrow: pip install '.[train]'"]) from None
    number = 0
    try:
        file = pq.ParquetFile(raw)
        names = _known_columns(path, file.schema_arrow.names)
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(names)):
            for row in batch.to_pylist():
                number += 1
                yield (
                    number,
                    {names[name]: _told(names[name], value) for name, value in row.items() if value is not None},
                )
    except (ValueError, OSError) as error:  # pyarrow's errors are these
        raise SettingsError([f"{path}: cut short or damaged after row {number} ({error})"]) from error


def _known_columns(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """Column → field, without columns of other names. Raises SettingsError."""
    found = {name: field for name, field in zip(columns, _field_names(columns), strict=True) if field is not None}
    _refuse_repeated(path, list(found.values()))
    if missing := sorted(_NEEDED - set(found.values())):
        raise SettingsError([f"{path}: has no column {', '.join(missing)}"])
    log.info("reading a table", columns_left_out=sorted(set(columns) - set(found)))
    return found


def _refuse_repeated(path: Path, names: Sequence[str | None]) -> None:
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise SettingsError([f"{path}:1: two columns are {repeated[0]}"])


def _told(name: str, value: Any) -> Any:
    if name == "timestamp" and isinstance(value, datetime):
        return _of_moment(value)
    return _value(name, value) if name == "context" and isinstance(value, str) else value


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
            _refuse_repeated(path, names)
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
    """Times as seconds, rounded down; a context from JSON. What cannot be read stays text, which is then refused."""
    try:
        if name == "timestamp":
            return _seconds(field)
        if name == "context":
            return json.loads(field)
        return float(field) if name == "value" else field
    except (ValueError, OverflowError, RecursionError):
        return field


def _seconds(field: str) -> int:
    """Raises ValueError. A date without a zone is in UTC."""
    if re.fullmatch(r"-?\d+", field):
        return int(field)
    if re.fullmatch(r"-?\d+\.\d*", field):
        return int(float(field) // 1)
    return _of_moment(datetime.fromisoformat(field))


def _of_moment(moment: datetime) -> int:
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() // 1)
