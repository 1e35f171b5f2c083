"""Writes all live events and items as a data set: interactions.parquet, items.parquet, queries.parquet, dataset.json.

In: a store, the items of the catalogue, a directory. Out: the directory, and counts. The users are listed first; their
events are then written user by user, in parts of bounded size, each with its own name. So memory is bounded by the list
of users, and a run that was interrupted goes on after its last part. The parts become the files of the data set at the
end, `dataset.json` last, and are then removed. The events of one user are those at the moment at which they are read;
users who come after the list are left for the next export.
"""

import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from model_store.catalogue.items import ADDED_AT, Item
from model_store.event_types import EventTypes
from service.errors import SettingsError
from service.store.client import MemoryStore
from service.store.events import Event

log = structlog.get_logger("service.export.dataset")

DEFAULT_TYPES = EventTypes()
FORMAT_VERSION = 1  # of dataset.json, as training writes it
_EVENTS_PER_PART = 50_000
_EVENTS_PER_PAGE = 500
_ITEMS_PER_GROUP = 10_000
_MANIFEST, _PARTS, _USERS = "dataset.json", "export.partial", "users.json"
_EVENTS = pa.schema(
    [
        ("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64()), ("rating", pa.float64()),
        ("type", pa.string()), ("event_id", pa.string()), ("query", pa.string()), ("session_id", pa.string()),
        ("context", pa.string()), ("recommendation_id", pa.string()),
    ]
)  # fmt: skip
_QUERIES = ["user_id", "item_id", "timestamp", "query"]


async def export(
    store: MemoryStore, items: Sequence[Item], out: Path, types: EventTypes = DEFAULT_TYPES
) -> dict[str, Any]:
    """Returns the manifest of the data set. Raises SettingsError if `out` holds something else.

    `types`: the table of event types in force, which training then reads as well.
    """
    parts, finished = out / _PARTS, out / _MANIFEST
    if not parts.exists() and out.is_dir() and any(out.iterdir()):
        raise SettingsError([f"--out {out}: is not empty; choose a new directory"])
    if finished.exists():  # the run before was interrupted while it removed the parts
        shutil.rmtree(parts)
        manifest: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
        return manifest
    parts.mkdir(parents=True, exist_ok=True)
    users = await _snapshot(store, parts / _USERS)
    done = max((int(file.stem.split("-")[1]) for file in parts.glob("part-*.parquet")), default=0)
    while done < len(users):
        done = await _write_part(store, users, done, parts)
        log.info("exporting", users=done, of=len(users))
    if types != DEFAULT_TYPES:
        (out / "event_types.json").write_text(types.model_dump_json(indent=2) + "\n", encoding="utf-8")
    manifest = _assemble(out, parts, items)
    shutil.rmtree(parts)
    return manifest


async def _snapshot(store: MemoryStore, file: Path) -> list[str]:
    """The users, in order; those of the interrupted run if there was one."""
    if not file.exists():
        users = sorted({user_id async for user_id in store.users()})
        _write_whole(file, lambda partial: partial.write_text(json.dumps(users), encoding="utf-8"))
    found: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return found


async def _write_part(store: MemoryStore, users: Sequence[str], start: int, parts: Path) -> int:
    """Users from `start` until the part is full; returns the first user of the next part."""
    stop, rows = start, list[dict[str, Any]]()
    while stop < len(users) and len(rows) < _EVENTS_PER_PART:
        rows += [_row(event) async for event in _events(store, users[stop])]
        stop += 1
    table = pa.Table.from_pylist(rows, schema=_EVENTS)
    _write_whole(parts / f"part-{stop:012}.parquet", lambda partial: pq.write_table(table, partial, compression="zstd"))
    return stop


async def _events(store: MemoryStore, user_id: str) -> AsyncIterator[Event]:
    cursor, is_first = None, True
    while is_first or cursor is not None:
        page, cursor = await store.events(user_id, before=cursor, limit=_EVENTS_PER_PAGE)
        is_first = False
        for event in page:
            yield event


def _row(event: Event) -> dict[str, Any]:
    context = json.dumps(event.context, ensure_ascii=False) if event.context else None
    return {**event._asdict(), "rating": event.value, "context": context}


def _assemble(out: Path, parts: Path, items: Sequence[Item]) -> dict[str, Any]:
    files = sorted(parts.glob("part-*.parquet"))
    groups = [file for file in files if pq.read_metadata(file).num_rows]
    stats = _stats(groups, len(items))
    _write_groups(out / "interactions.parquet", _EVENTS, map(pq.read_table, groups))
    names = ["interactions.parquet", "items.parquet"]
    asked = pa.schema([_EVENTS.field(name) for name in _QUERIES])
    if _write_groups(out / "queries.parquet", asked, map(_asked, groups)):
        names.append("queries.parquet")
    else:
        (out / "queries.parquet").unlink()
    _write_items(out / "items.parquet", items)
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": out.resolve().name,
        "source": {"format": "export"},
        "stats": stats,
        "dropped": {},
        "sha256": {name: _sha256(out / name) for name in names},
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    _write_whole(out / _MANIFEST, lambda partial: partial.write_text(text, encoding="utf-8"))
    return manifest


def _asked(file: Path) -> pa.Table:
    """The events that followed a query."""
    table = pq.read_table(file, columns=_QUERIES)
    return table.filter(table["query"].is_valid())


def _write_groups(file: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """One table after the other; returns the number of rows."""
    num_rows = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            num_rows += table.num_rows
    return num_rows


def _write_items(file: Path, items: Sequence[Item]) -> None:
    """Attributes as columns: of text, numbers or booleans where all items agree, of JSON text where they do not.

    A column says when items came that came while the service ran, if there are any.
    """
    names = sorted({name for item in items for name in item.attributes} - {"item_id", "title", ADDED_AT})
    columns = {name: _type_of([item.attributes.get(name) for item in items]) for name in names}
    times = [(ADDED_AT, pa.int64())] if any(item.added_at is not None for item in items) else []
    schema = pa.schema([("item_id", pa.string()), ("title", pa.string()), *columns.items(), *times])
    _write_groups(file, schema, (pa.Table.from_pylist(rows, schema=schema) for rows in _item_rows(items, columns)))


def _item_rows(items: Sequence[Item], columns: dict[str, pa.DataType]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(items), _ITEMS_PER_GROUP):
        yield [
            {
                "item_id": item.item_id,
                "title": item.title,
                ADDED_AT: item.added_at,
                **{name: _value(item.attributes.get(name), kind) for name, kind in columns.items()},
            }
            for item in (items[place] for place in range(start, min(start + _ITEMS_PER_GROUP, len(items))))
        ]


def _type_of(values: Sequence[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds and kinds <= {int, float}:
        return pa.int64() if kinds == {int} else pa.float64()
    if kinds == {list} and all(isinstance(each, str) for value in values if value is not None for each in value):
        return pa.list_(pa.string())
    return pa.string()


def _value(value: Any, kind: pa.DataType) -> Any:
    if kind != pa.string() or value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _stats(files: Sequence[Path], num_items: int) -> dict[str, Any]:
    users, num_events, times = set[str](), 0, list[int]()
    for file in files:
        table = pq.read_table(file, columns=["user_id", "timestamp"])
        users.update(table["user_id"].unique().to_pylist())
        num_events += table.num_rows
        times += [min(part := table["timestamp"].to_pylist()), max(part)]
    return {
        "users": len(users),
        "items": num_items,
        "interactions": num_events,
        "first_timestamp": min(times, default=0),
        "last_timestamp": max(times, default=0),
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Under another name first, so that no file is there in part."""
    partial = file.with_name(f"{file.name}.new")
    write(partial)
    os.replace(partial, file)
