"""What is in the live store comes out as a data set, to the event: training reads it, and an import gives it back."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_store.catalogue.items import Item
from model_store.event_types import EventTypes, TypeRule
from service.commands import import_file
from service.errors import SettingsError, StoreUnavailable
from service.export import dataset
from service.export.dataset import export
from service.store.client import MemoryStore
from service.store.events import Event
from tests.service.real import NOW, Service, history
from training.build_index import catalogue_items
from training.data.dataset import load_dataset
from training.data.splits import time_split

ITEMS = [
    Item("i0", "Zero", attributes={"pages": 3, "tags": ["a", "b"], "mixed": 1}),
    Item("i1", "One", attributes={"pages": 4, "mixed": "x"}),
    *(Item(f"i{number}", f"Item {number}") for number in range(2, 7)),
]
KINDS = ("view", "click", "purchase", "dislike", "rating", "impression")


def events(num_users: int, num_events: int) -> list[Event]:
    return [
        Event(f"e{n}", f"u{user}", f"i{n % 7}", NOW + n, KINDS[n % 6], float(n % 5), "red tea" if n % 3 == 0 else None)
        for user in range(num_users)
        for n in range(num_events)
    ]


async def test_all_events_come_out_and_training_reads_them(store: MemoryStore, tmp_path: Path) -> None:
    stored = events(5, 20)
    await store.append(stored)
    manifest = await export(store, ITEMS, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "interactions.parquet").to_pylist()
    assert {(row["user_id"], row["event_id"], row["type"], row["rating"]) for row in rows} == {
        (event.user_id, event.event_id, event.type, event.value) for event in stored
    }
    assert len(rows) == len(stored) == manifest["stats"]["interactions"]
    found = load_dataset(tmp_path / "out")
    assert found.interactions.height == len(stored) and found.items.height == len(ITEMS)
    assert found.queries is not None and found.queries.height == sum(event.query is not None for event in stored)
    by_id = {row["item_id"]: row for row in pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()}
    assert (by_id["i0"]["pages"], by_id["i0"]["tags"], by_id["i0"]["mixed"]) == (3, ["a", "b"], "1")
    assert found.items.columns == ["item_id", "title", "mixed", "pages", "tags"], "none of the items came later"


async def test_an_item_that_came_while_the_service_ran_is_new_after_the_training(
    store: MemoryStore, tmp_path: Path
) -> None:
    await store.append(events(5, 20))
    newest = [*ITEMS, Item("fresh", "Fresh", attributes={"pages": 5}, added_at=NOW)]
    await export(store, newest, tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    trained = {
        item.item_id: item for item in catalogue_items(dataset, time_split(dataset, long_user_length=5, min_earlier=2))
    }
    assert (trained["fresh"].added_at, trained["i0"].added_at) == (NOW, None)
    assert trained["fresh"].attributes == {"pages": 5}, "the time is no attribute"


@pytest.mark.parametrize("dies_after", [0, 1, 3, 5])
async def test_an_interrupted_export_goes_on(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_after: int
) -> None:
    monkeypatch.setattr(dataset, "_EVENTS_PER_PART", 8)
    await store.append(events(6, 5))
    left, read = dies_after, store.events

    async def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreUnavailable("killed")
        return await read(*args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(StoreUnavailable):
        patched.setattr(store, "events", dying)
        await export(store, ITEMS, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    manifest = await export(store, ITEMS, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "interactions.parquet").to_pylist()
    assert len({(row["user_id"], row["event_id"]) for row in rows}) == len(rows) == 30
    assert manifest["stats"]["users"] == 6 and not (tmp_path / "out" / "export.partial").exists()


@pytest.mark.parametrize("dies_in", ["_write_items", "_write_whole", "shutil.rmtree"])
async def test_an_export_that_is_killed_at_its_end_goes_on(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    """While the parts are put together, and while they are removed: some are gone by then."""
    monkeypatch.setattr(dataset, "_EVENTS_PER_PART", 8)
    await store.append(events(6, 5))
    types = EventTypes(types={"view": TypeRule(weight=0.5)})
    name, write = dies_in.rpartition(".")[2], dataset._write_whole

    def die(*args: Any, **kwargs: Any) -> None:
        if name == "rmtree":
            min(args[0].glob("part-*")).unlink()
        elif name == "_write_whole" and args[0].name != "dataset.json":
            return write(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"service.export.dataset.{dies_in}", die)
        await export(store, ITEMS, tmp_path / "out", types)
    manifest = await export(store, ITEMS, tmp_path / "out", types)
    found = load_dataset(tmp_path / "out")
    assert found.interactions.height == manifest["stats"]["interactions"] == 30 and found.event_types == types
    assert not (tmp_path / "out" / "export.partial").exists()


async def test_other_files_are_not_overwritten(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError):
        await export(store, ITEMS, tmp_path)


async def test_an_export_of_a_user_is_imported_as_it_was(service: Service, tmp_path: Path) -> None:
    facts = {"query": "red tea", "session_id": "s", "context": {"device": "phone"}, "recommendation_id": "r"}
    await service.submit([{**each, **facts, "type": "rating", "value": 4.5} for each in history(5)], "visible")
    before = [event async for event in service.users.export("u")]
    lines = [json.dumps({"user_id": "u", **event._asdict()}) for event in before]
    (tmp_path / "u.jsonl").write_text("\n".join(lines))
    await service.users.forget("u")
    await service.eraser.recreate("u")  # otherwise events from before the deletion are refused
    assert await import_file(service.ingest.submit, tmp_path / "u.jsonl") == 5
    assert [event async for event in service.users.export("u")] == before


async def test_what_was_exported_is_imported_as_it_was(service: Service, tmp_path: Path) -> None:
    """The data set of `export`, into a store that has none of it: values are not rounded."""
    facts = {"query": "red tea", "session_id": "s", "context": {"device": "phone", "n": 1}, "recommendation_id": "r"}
    sent = [{**each, **facts, "type": "rating", "value": 19.99} for each in history(5)]
    await service.submit([*sent, *history(3, "v")], "visible")
    before = {user: [event async for event in service.users.export(user)] for user in ("u", "v")}
    await export(service.store, service.view.catalogue.items, tmp_path / "out")
    for user in before:
        await service.users.forget(user)
        await service.eraser.recreate(user)
    assert await import_file(service.ingest.submit, tmp_path / "out" / "interactions.parquet") == 8
    assert {user: [event async for event in service.users.export(user)] for user in before} == before


async def test_a_parquet_file_that_is_no_table_of_events_says_why(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "events.parquet"
    times = [datetime.fromtimestamp(NOW - n, UTC) for n in range(3)]
    table = pa.table({"User": ["u"] * 3, "userId": ["u"] * 3, "item": ["i1"] * 3, "timestamp": times})
    pq.write_table(table, file)
    with pytest.raises(SettingsError, match=r"events\.parquet: has no column item_id"):
        await import_file(service.ingest.submit, file)
    pq.write_table(table.rename_columns(["note", "userId", "item_id", "timestamp"]), file)
    assert await import_file(service.ingest.submit, file) == 3
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(SettingsError, match="cut short or damaged"):
        await import_file(service.ingest.submit, file)
