"""A user with many events costs the store small steps only. Steps are counted, because times depend on the machine."""

import pytest
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.store.client import ELEMENTS_PER_STEP, LARGE, MemoryStore
from service.store.events import SEEN, Event

NUM_EVENTS = LARGE + 1200


@pytest.fixture
async def large(store: MemoryStore, raw: Redis) -> MemoryStore:
    """All events of the user have the same time."""
    for start in range(0, NUM_EVENTS, 1000):
        numbers = range(start, min(start + 1000, NUM_EVENTS))
        await store.append([Event(f"e{number}", "u", f"i{number}", 77) for number in numbers])
    await raw.config_resetstat()
    return store


async def calls(raw: Redis) -> dict[str, int]:
    stats = await raw.info("commandstats")
    return {name.removeprefix("cmdstat_"): facts["calls"] for name, facts in stats.items()}


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
    assert used["zremrangebyrank"] >= steps and used["hdel"] >= steps
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
