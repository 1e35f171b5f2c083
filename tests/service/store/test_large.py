"""A user with many events costs the store small steps only. Steps are counted, because times depend on the machine."""

import asyncio
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from model_store.event_types import EventTypes, TypeRule
from service.errors import StoreUnavailable
from service.store import requests
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.events import SEEN, Event, UserStates, item_digest
from service.store.keys import facts_key
from service.store.large import seen
from service.store.large.doomed import ELEMENTS_PER_STEP, LARGE
from service.store.lua.sorting import EVENTS_PER_SCRIPT
from tests.service.commands import calls

NUM_EVENTS = LARGE + 1200
OTHER = EventTypes(other=TypeRule(weight=1.0, seen_s=100))


@pytest.fixture
async def large(store: MemoryStore, raw: Redis) -> MemoryStore:
    """All events of the user have the same time."""
    for start in range(0, NUM_EVENTS, 1000):
        numbers = range(start, min(start + 1000, NUM_EVENTS))
        await store.append([Event(f"e{number}", "u", f"i{number}", 77) for number in numbers])
    await raw.config_resetstat()
    return store


async def test_a_page_among_equal_times_reads_little_more_than_itself(large: MemoryStore, raw: Redis) -> None:
    _, cursor = await large.events("u", limit=500)
    _, cursor = await large.events("u", before=cursor, limit=500)
    before = await calls(raw)
    assert len((await large.events("u", before=cursor, limit=5))[0]) == 5
    after = await calls(raw)
    assert after["zrange"] - before["zrange"] < 20 and "zrangebyscore" not in after
    shown, cursor = list[Event](), None
    while len(shown) < NUM_EVENTS:
        page, cursor = await large.events("u", before=cursor, limit=500)
        shown += page
    assert cursor is None and len(set(shown)) == NUM_EVENTS


async def test_an_event_is_deleted_and_corrected_without_a_look_at_the_others(large: MemoryStore, raw: Redis) -> None:
    assert await large.forget_event("u", "e7")
    assert await large.replace(Event("e9", "u", "another", 78)) == "replaced"
    recalled = await large.recall_and_seen("u", "s", 10)
    used = await calls(raw)
    assert not {"zrange", "zrangebyscore"} & used.keys(), "all events were read again"
    assert used["getrange"] <= 2 and "set" not in used
    assert recalled.events[-1].event.item_id == "another"
    assert len(recalled.seen) == SEEN.itemsize * (NUM_EVENTS + 1), "places of deleted events stay, with zeros"
    assert recalled.seen.count(bytes(SEEN.itemsize)) == 2
    assert await large.append([Event("e7", "u", "i7", 77)]) == ["accepted"]


async def test_many_events_are_deleted_in_small_steps(large: MemoryStore, raw: Redis) -> None:
    assert (await large.forget_user("u")).events == NUM_EVENTS
    used = await calls(raw)
    steps = -(-NUM_EVENTS // ELEMENTS_PER_STEP)
    assert used["zrem"] >= steps and used["hdel"] >= steps
    assert "zremrangebyrank" not in used, "it may take a hundred times as long as the others"
    assert not [key for key in await raw.keys("*") if b"{u}" in key or b"doomed" in key]


async def test_a_deletion_that_is_killed_between_two_steps_goes_on(
    large: MemoryStore, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, left = large.run, 3

    async def dying(commands: object) -> list[object]:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreUnavailable("killed")
        return await run(commands)  # type: ignore[arg-type]

    await large.tombstones.load()
    monkeypatch.setattr(large, "run", dying)
    with pytest.raises(StoreUnavailable):
        await large.forget_user("u")
    monkeypatch.undo()
    assert not [key for key in await raw.keys("*") if b"{u}" in key], "something of the user can be read"
    assert await raw.keys("*doomed*")
    await large.forget_user("u")
    assert not await raw.keys("*doomed*")


async def test_another_table_sorts_the_events_in_small_steps(
    large: MemoryStore, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile events come, a page is read, and the process is killed; another one goes on."""
    large.use_event_types(OTHER, 1)
    run, left = large.run, 3

    async def dying(commands: Sequence[tuple[object, ...]]) -> list[object]:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreUnavailable("killed")
        return await run(commands)

    with monkeypatch.context() as patch:
        patch.setattr(large, "run", dying)
        with pytest.raises(StoreUnavailable):
            await large.recall("u", "s", 10)
    assert await large.append([Event("new", "u", "new", 78)]) == ["accepted"]
    assert (await large.events("u", limit=2))[0][0].event_id == "new"
    await raw.config_resetstat()
    recalled = await large.recall_and_seen("u", "s", 10)
    used = await calls(raw)
    placed = -(-(NUM_EVENTS - 4 * EVENTS_PER_SCRIPT) // EVENTS_PER_SCRIPT)
    assert placed <= used["eval"] <= placed + 2, f"{used['eval']} scripts for {NUM_EVENTS} events"
    assert recalled.events[-1].event.event_id == "new"
    assert len(recalled.seen) == SEEN.itemsize * (NUM_EVENTS + 1)
    await raw.config_resetstat()
    await large.recall("u", "s", 10)
    assert (await calls(raw))["eval"] == 1, "the events are sorted"
    assert not await raw.hexists(facts_key("u"), "rest")


async def test_what_a_large_user_has_seen_is_read_once(
    large: MemoryStore, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (requests, seen):
        monkeypatch.setattr(module, "SEEN_BYTES", SEEN.itemsize * 1000)
    first = await large.recall_and_seen("u", "s", 10)
    used = await calls(raw)
    assert used["eval"] == 1 + NUM_EVENTS // 1000 and used["getrange"] < 2 * used["eval"] and "get" not in used
    digests = {entry[:8] for entry in parts(first.seen)}
    assert digests == {item_digest(f"i{number}") for number in range(NUM_EVENTS)}
    await large.append([Event("new", "u", "new", 78)])
    await raw.config_resetstat()
    again = await large.recall_and_seen("u", "s", 10)
    assert (await calls(raw))["eval"] == 1 and len(again.seen) == len(first.seen) + SEEN.itemsize
    await large.forget_event("u", "e7")
    assert item_digest("i7") not in {entry[:8] for entry in parts((await large.recall_and_seen("u", "s", 10)).seen)}
    await large.forget_user("u")
    assert "u" not in large._seen.known, "the process remembers a deleted user"
    assert (await large.recall_and_seen("u", "s", 10)).seen == b""
    await large.append([Event(f"n{number}", "u", f"n{number}", 79) for number in range(2000)])
    found = {entry[:8] for entry in parts((await large.recall_and_seen("u", "s", 10)).seen)}
    assert found == {item_digest(f"n{number}") for number in range(2000)}, "the deleted user came back"


async def test_an_event_that_takes_others_back_looks_at_a_bounded_number(large: MemoryStore, raw: Redis) -> None:
    """Events of the same item that are further away leave when a reader meets them."""
    (oldest,) = (await large.events("u", limit=NUM_EVENTS))[0][-1:]
    await raw.config_resetstat()
    await large.append([Event("return", "u", oldest.item_id, 80, "return")])
    assert "zrem" not in await calls(raw), "the oldest event was looked for"
    recalled = await large.recall("u", "s", NUM_EVENTS)
    assert len(recalled) == NUM_EVENTS - 1 and oldest not in [each.event for each in recalled]


async def test_a_server_that_forgot_the_scripts_gets_their_texts_again(store: MemoryStore, raw: Redis) -> None:
    await store.append([Event("a", "u", "x", 1)])
    await raw.script_flush()
    assert await store.append([Event("b", "u", "y", 2)], durability="fsync") == ["accepted"]
    assert [each.event.event_id for each in await store.recall("u", "s", 10)] == ["a", "b"]
    await raw.config_resetstat()
    await store.append([Event("c", "u", "y", 3)])
    assert "cmdstat_eval" not in await raw.info("commandstats"), "the text is sent each time"


async def test_a_server_that_knows_some_of_the_scripts_runs_them_in_their_order(store: MemoryStore, raw: Redis) -> None:
    first, second = (f"redis.call('RPUSH', KEYS[1], '{name}')" for name in ("first", "second"))
    commands = [("EVAL", script, 1, "order") for script in (first, second, first)]
    await store.run(commands)
    await raw.delete("order")
    await raw.script_flush()
    await raw.script_load(second)
    await store.run(commands)
    assert await raw.lrange("order", 0, -1) == [b"first", b"second", b"first"]


async def test_a_reader_of_an_older_table_never_takes_a_part_for_the_whole(
    large: MemoryStore, valkey: EmbeddedServer
) -> None:
    """A process that has not heard of a new table waits while others sort the user by it."""
    large.use_event_types(OTHER, 1)
    await large.append([Event("new", "u", "new", 78)])  # begins
    late = await MemoryStore.connect(valkey.url)
    reading = asyncio.create_task(late.recall("u", "s", NUM_EVENTS + 1))
    await asyncio.sleep(0.05)
    assert not reading.done(), f"{len(reading.result())} of {NUM_EVENTS + 1} events were taken for all"
    late.use_event_types(OTHER, 1)
    assert len(await reading) == NUM_EVENTS + 1
    await late.close()


async def test_states_of_events_that_are_not_sorted_yet_stay(large: MemoryStore) -> None:
    """The newest events are no interest, so the first step of a new sort places no event that has a state."""
    await large.append([Event(f"shown{number}", "u", "i", 78, "impression") for number in range(EVENTS_PER_SCRIPT)])
    records = {each.event.event_id: b"state" for each in await large.recall("u", "s", 20)}
    await large.save_states("s", [UserStates("u", records, 20)], 20)
    large.use_event_types(EventTypes(), 1)
    await large.append([Event("new", "u", "new", 79)])
    await large.save_states("s", [UserStates("u", {"new": b"state"}, 20)], 20)
    assert [each.record for each in await large.recall("u", "s", 20)] == [b"state"] * 20
    await large.save_states("s", [UserStates("u", {}, 20)], 20)
    assert (await large.counts("u", "s")).states == 20, "older states are not deleted any more"


def parts(entries: bytes) -> list[bytes]:
    found = (entries[start : start + SEEN.itemsize] for start in range(0, len(entries), SEEN.itemsize))
    return [entry for entry in found if entry != bytes(SEEN.itemsize)]
