"""What a process keeps of what large users have seen is right, and it is not kept for long."""

import asyncio
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from service.store import requests
from service.store.client import MemoryStore
from service.store.events import SEEN, Event, item_digest
from service.store.keys import user_keys
from service.store.large import seen
from tests.service.commands import calls

NUM_EVENTS = 40  # four parts


@pytest.fixture(autouse=True)
async def large(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of more events than one part has entries."""
    for module in (requests, seen):
        monkeypatch.setattr(module, "SEEN_BYTES", SEEN.itemsize * 10)
    await add(store, *(f"i{number}" for number in range(NUM_EVENTS)))


async def add(store: MemoryStore, *items: str) -> None:
    await store.append([Event(f"of {item}", "u", item, 77) for item in items])


async def items_of(store: MemoryStore) -> set[bytes]:
    entries = (await store.recall_and_seen("u", "s", 1)).seen
    return {entries[start : start + 8] for start in range(0, len(entries), SEEN.itemsize)}


@pytest.mark.parametrize("last", ["retried", "another"])
async def test_a_replica_that_took_over_has_as_many_events_but_others(
    store: MemoryStore, raw: Redis, last: str
) -> None:
    """It lagged. Since it took over, as many events came as were lost; the last may be lost and sent again."""
    assert item_digest("i0") in await items_of(store)
    behind = {key: value for key in user_keys("u") if (value := await raw.dump(key))}
    await add(store, "lost", "retried")
    assert item_digest("lost") in await items_of(store)
    for key, value in behind.items():
        await raw.restore(key, 0, value, replace=True)
    await add(store, "new", last)
    found = await items_of(store)
    assert item_digest("new") in found, "an event that counts as seen does not"
    assert item_digest("lost") not in found
    await raw.config_resetstat()
    await items_of(store)
    assert (await calls(raw))["eval"] == 1


async def test_a_deletion_while_a_part_is_merged_is_not_undone(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    merging, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(work: Callable[[bytes], bytes], entries: bytes) -> bytes:
        if len(entries) == SEEN.itemsize * NUM_EVENTS:  # the last part
            merging.set()
            await go_on.wait()
        return work(entries)

    monkeypatch.setattr(asyncio, "to_thread", slowly)
    reading = asyncio.create_task(items_of(store))
    await merging.wait()
    await store.forget_user("u")
    go_on.set()
    assert await reading == set()
    assert not store._seen.known, "a deleted user is kept"


async def test_a_user_who_is_not_read_is_not_kept(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have deleted the user."""
    monkeypatch.setattr(seen, "KEPT_S", 0.1)
    await items_of(store)
    until = store._seen.known["u"].until
    await items_of(store)
    assert store._seen.known["u"].until > until, "a user who is read is not kept"
    async with asyncio.timeout(5):
        while store._seen.known:
            await asyncio.sleep(0.02)
    assert len(await items_of(store)) == NUM_EVENTS
