"""The overlay of the catalogue in the store: versions grow, and what changed since a version is read in portions."""

from redis.asyncio import Redis

from service.store.client import MemoryStore
from service.store.overlay import NewRecord


async def put(store: MemoryStore, *names: str, record: bytes = b"{}") -> int:
    version = await store.put_items([NewRecord(name, record) for name in names], loaded=0)
    assert version is not None
    return version


async def test_what_changed_since_a_version_comes_once_in_the_order_of_changes(store: MemoryStore) -> None:
    assert await store.changed_items(0) == [] and await store.put_items([], loaded=7) == 7
    await put(store, "a", "b", "c")
    first = await store.changed_items(0, 2)
    assert [each.item_id for each in first] == ["a", "b"]
    rest = await store.changed_items(first[-1].version, 2)
    assert [each.item_id for each in rest] == ["c"]
    last = await put(store, "a", record=b'{"title": "A"}')
    (changed,) = await store.changed_items(rest[-1].version)
    assert changed == ("a", last, b'{"title": "A"}') and await store.changed_items(last) == []
    assert [each.item_id for each in await store.changed_items(0)] == ["b", "c", "a"], "one entry for each item"


async def test_a_record_that_is_based_on_an_old_one_is_refused_with_all_others(store: MemoryStore) -> None:
    known = await put(store, "a")
    assert await store.put_items([NewRecord("a", b"1", True), NewRecord("new", b"1", True)], loaded=known)
    refused = [NewRecord("b", b"2"), NewRecord("a", b"2", True)]
    assert await store.put_items(refused, loaded=known) is None, "the other one was lost"
    assert {each.item_id: each.record for each in await store.changed_items(0)} == {"a": b"1", "new": b"1"}


async def test_versions_grow_after_the_store_was_emptied(store: MemoryStore, raw: Redis) -> None:
    before = await put(store, "a")
    await raw.flushall()
    await put(store, "b")
    assert [each.item_id for each in await store.changed_items(before)] == ["b"], "a replica would not see the change"


async def test_records_that_an_earlier_release_wrote_are_found(store: MemoryStore, raw: Redis) -> None:
    await raw.hset("automr:items", mapping={"old": b'{"title": "Old"}', "bad": b"\xff"})
    found = {each.item_id: each.record for each in await store.changed_items(0)}
    assert found == {"old": b'{"title": "Old"}', "bad": b"\xff"}
    await raw.hdel("automr:items", "old")
    assert {each.item_id: each.record for each in await store.changed_items(0)} == {"old": b"", "bad": b"\xff"}
