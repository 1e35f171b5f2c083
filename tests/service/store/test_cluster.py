"""Redis Cluster of three primaries and three replicas, real servers: primaries are killed, slots move, disks confirm.

What is acknowledged as `replicated` survives the loss of any primary, and memory is the same as after a backfill.
"""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.erasure.eraser import Eraser
from service.errors import NotDurable, StoreUnavailable
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.events import Event, UserStates, item_digest
from service.store.keys import RECEIPTS, user_keys
from service.store.overlay import NewRecord
from service.store.scan import event_counts, scan_users
from service.store.sealing.master import MasterKeys
from service.store.sealing.records import is_sealed, is_sealed_state
from service.store.sealing.sealing import Sealing
from service.store.sealing.walk import seal_all
from service.usecases.encode import backfill
from tests.chaos.traffic import Tally, Traffic
from tests.service.cluster import ClusterOfServers, Node, until
from tests.service.real import in_order, open_app, open_service, states_from_scratch


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOfServers]:
    """Whole again after each test."""
    with ClusterOfServers(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


@pytest.fixture
async def store(cluster: ClusterOfServers) -> AsyncIterator[MemoryStore]:
    for node in cluster.primaries():
        node.client.flushall()
    opened = await MemoryStore.connect(cluster.url)
    yield opened
    await opened.close()


async def stored_ids(store: MemoryStore, user_id: str = "u") -> set[str]:
    return {each.event_id for each in (await store.events(user_id, limit=500))[0]}


async def test_every_method_works_on_a_cluster(store: MemoryStore) -> None:
    await store.ping()
    batch = [Event(f"e{i}", f"u{i % 20}", "i", i) for i in range(100)]
    assert await store.append(batch) == ["accepted"] * 100 and await store.append(batch) == ["duplicate"] * 100
    assert sorted([user async for user in store.users()]) == sorted({event.user_id for event in batch})
    scanned, cursor = await scan_users(store, "u1", None, 10)
    while cursor is not None:
        more, cursor = await scan_users(store, "u1", cursor, 10)
        scanned += more
    assert set(scanned) == {"u1", *(f"u{number}" for number in range(10, 20))}, "not all nodes are scanned"
    assert await event_counts(store, ["u1", "u2"]) == [5, 5]
    for user in ("u1", "u2", "u3", "u4"):
        assert (await store.save_states("s", [UserStates(user, {f"e{user[1:]}": b"state"}, 100)], 100))[
            0
        ].num_states == 1
        assert [m.record for m in await store.recall(user, "s", 100)] == [b"state"] + [None] * 4
        assert len((await store.events(user, limit=3))[0]) == 3
        assert await store.forget_event(user, f"e{user[1:]}")
        assert (await store.forget_user(user)).events == 4
        assert await store.recall(user, "s", 5) == []
    others = [f"u{number}" for number in range(5, 20)]
    all_saved = await store.save_states("s", [UserStates(user, {f"e{user[1:]}": b"x"}, 9) for user in others], 9)
    assert [each.num_states for each in all_saved] == [1] * 15
    recalled_at_once = await store.recall_many(others, "s", 100)
    assert [each.events[0].record for each in recalled_at_once] == [b"x"] * 15, "not in the order of the user ids"
    assert item_digest("i") in (await store.recall_and_seen("u7", "s", 1)).seen
    entries = await store.next_encodings("c", count=100, block_ms=10)
    assert len(entries) == await store.backlog() == 16, "entries of deleted users are left"
    assert await store.renew_encodings("c", [entry for entry, _ in entries]) == 16
    assert await store.renew_encodings("d", [entry for entry, _ in entries]) == 0
    await store.encoded([entry for entry, _ in entries])
    version = await store.put_items([NewRecord("i", b"{}")], loaded=0)
    assert await store.changed_items(0) == [("i", version, b"{}")] and await store.backlog() == 0


async def test_no_acknowledged_event_is_lost_when_each_primary_is_killed_in_turn(
    cluster: ClusterOfServers, store: MemoryStore, bundle_path: Path
) -> None:
    """Through the API, with deletions and late retries; then memory is that of a backfill."""
    tally = Tally()
    async with open_app(bundle_path, cluster.url, durability="replicated", encode_in_process=True) as (_, client):
        traffic = Traffic(client, tally, 7, "u")
        traffic.start()
        for primary in cluster.primaries():
            await traffic.until_more(10)
            promoted = await asyncio.to_thread(cluster.fail_over, primary)
            await asyncio.to_thread(cluster.bring_back, primary, promoted)
        await traffic.until_more(10)
        await traffic.stop()
        await traffic.look()
    assert not any(tally.bad.values()), tally.bad
    async with open_service(bundle_path, cluster.url) as service:
        await service.work_off()
        for user_id in tally.acknowledged:
            timeline = await service.timeline(user_id)
            assert not timeline.missing_states(), "an event was acknowledged, and its state is lost"
            log = [each async for each in events_of(service.store, user_id)]
            assert timeline.events == in_order(log)[-len(timeline.events) :]
            expected = {name: print_ for name, (_, print_) in states_from_scratch(log, service.bundle).items()}
            records = await service.store.recall(user_id, service.space, len(log))
            kept = {each.event.event_id: each.record for each in records if each.record is not None}
            decoded = service.bundle.codec.decode_many(list(kept.values()))
            found = {name: row.tobytes() for name, row in zip(kept, decoded.fingerprints, strict=True)}
            assert found == expected, "memory is not that of the events"
        assert (await backfill(service.worker))["states"] == 0


async def events_of(store: MemoryStore, user_id: str) -> AsyncIterator[Event]:
    page, cursor = await store.events(user_id, limit=500)
    while True:
        for event in page:
            yield event
        if cursor is None:
            return
        page, cursor = await store.events(user_id, before=cursor, limit=500)


async def test_only_what_replicas_have_confirmed_is_promised(cluster: ClusterOfServers, store: MemoryStore) -> None:
    """The control: behind a replica that is cut off, what is acknowledged as `stored` is lost with the primary."""
    store.num_replicas = 1
    primary = cluster.primary_of(user_keys("u")[0])
    replica = cluster.replica_of(primary)
    before = [Event(f"before{number}", "u", "i", number) for number in range(20)]
    assert set(await store.append(before, durability="replicated")) == {"accepted"}
    await store.check_durability("replicated")
    cut_off(primary, replica)
    with pytest.raises(NotDurable, match="0 of 1 replicas"):
        await store.check_durability("replicated")
    late = [Event(f"late{number}", "u", "i", 100 + number) for number in range(20)]
    assert set(await store.append(late)) == {"accepted"}
    for _ in range(2):  # a retry stores nothing, and must not count as confirmed
        with pytest.raises(NotDurable, match="0 of 1 replicas"):
            await store.append([Event("asked", "u", "i", 200)], durability="replicated")
    assert len(await stored_ids(store)) == 41, "a refusal says that the write is done"
    primary.kill()
    replica.go_on()
    await asyncio.to_thread(until, lambda: replica.is_primary, "the replica has not taken over")
    await asyncio.to_thread(cluster.bring_back, primary, replica)
    found = await stored_ids(store)
    assert found == {each.event_id for each in before}, "confirmed events are kept; the others were not on the replica"
    again = await store.append([*before, *late], durability="replicated")
    assert again == ["duplicate"] * 20 + ["accepted"] * 20, "a retry is not safe"


def cut_off(primary: Node, replica: Node) -> None:
    """The replica stands still, and the primary sends it nothing more."""
    replica.pause()
    primary.client.execute_command("CLIENT KILL TYPE replica")


async def test_a_receipt_of_a_deletion_is_confirmed_by_its_own_node(
    cluster: ClusterOfServers, store: MemoryStore
) -> None:
    store.num_replicas, store.durability = 1, "replicated"
    eraser = Eraser(store, Metrics(), minutes=0)
    primary = cluster.primary_of(RECEIPTS)
    users = (f"u{number}" for number in range(100))
    user_id = next(each for each in users if cluster.primary_of(user_keys(each)[0]) is not primary)
    await store.append([Event("e", user_id, "i", 1)])
    replica = cluster.replica_of(primary)
    cut_off(primary, replica)
    try:
        with pytest.raises(NotDurable, match="0 of 1 replicas"):
            await eraser.delete(user_id)
        assert not await stored_ids(store, user_id)
    finally:
        replica.go_on()
    await asyncio.to_thread(until, lambda: primary.has_replicas(1), "the replica does not come back")
    await eraser.delete(user_id)
    receipts, _ = await eraser.page(None, 10)
    assert len(receipts) == 2, "a deletion that was refused has its receipt, too"


async def test_records_are_sealed_rotated_and_shredded_on_every_node(
    cluster: ClusterOfServers, store: MemoryStore
) -> None:
    """A primary is lost while a walk seals the records."""
    users = [f"u{number}" for number in range(30)]
    log = [Event(f"e{number}", user, "i", number, query="private") for user in users for number in range(5)]
    store.num_replicas, store.durability = 1, "replicated"
    await store.append(log)
    await store.save_states("s", [UserStates(user, {"e4": b"Zm-state"}, 9) for user in users], 9)
    before = await store.recall_many(users, "s", 9)
    store.sealing.master = MasterKeys.read([f"k1={base64.b64encode(bytes([1]) * 32).decode()}"])
    walk = asyncio.create_task(seal_all(store))
    await asyncio.sleep(0.01)
    primary = cluster.primaries()[0]
    promoted = await asyncio.to_thread(cluster.fail_over, primary)
    with contextlib.suppress(StoreUnavailable):
        await walk
    await asyncio.to_thread(cluster.bring_back, primary, promoted)
    await seal_all(store)
    assert [each.events for each in await store.recall_many(users, "s", 9)] == [each.events for each in before]
    assert await store.append(log) == ["duplicate"] * len(log)
    keys = [user_keys(user)[0] for user in users]
    bodies = [body for found in await store.run([("HVALS", key) for key in keys]) for body in found]
    assert len(bodies) == len(log) and all(map(is_sealed, bodies)), "a plain record is left"
    (states,) = await store.run([("HVALS", f"automr:{{{users[0]}}}:states:s")])
    assert is_sealed_state(states[0])
    lines = [f"k{number}={base64.b64encode(bytes([number]) * 32).decode()}" for number in (2, 1)]
    store.sealing.master = MasterKeys.read(lines)
    assert (await seal_all(store))["keys"] == len(users)
    store.sealing = Sealing(store.run, MasterKeys.read(lines[:1]))
    assert await store.sealing.problem() is None
    assert [each.events for each in await store.recall_many(users, "s", 9)] == [each.events for each in before]
    assert (await store.forget_user(users[0])).shredded == 1


async def test_each_disk_that_takes_something_must_confirm_it(cluster: ClusterOfServers, store: MemoryStore) -> None:
    events = [Event("e", f"u{number}", "i", number) for number in range(20)]
    assert await store.append(events, durability="fsync") == ["accepted"] * 20
    node = cluster.primary_of(user_keys("u3")[0])
    node.client.config_set("appendonly", "no")
    try:
        with pytest.raises(NotDurable, match="cannot promise `fsync`"):
            await store.append(events, durability="fsync")
    finally:
        node.client.config_set("appendonly", "yes")
    assert await event_counts(store, ["u3", "u4"]) == [1, 1]


async def test_writes_follow_a_slot_that_moves(cluster: ClusterOfServers, store: MemoryStore) -> None:
    """The client has learned where the slot was. While it moves, a node serves no script with several keys of it."""
    store.durability = "replicated"
    await store.append([Event("e", f"u{number}", "i", number) for number in range(20)])
    key = user_keys("mover")[0]
    source = cluster.primary_of(key)
    target = next(node for node in cluster.primaries() if node is not source)
    slot = source.client.execute_command("CLUSTER KEYSLOT", key)
    target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.name)
    source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.name)
    with pytest.raises(StoreUnavailable, match="is moving"):
        await store.append([Event("e1", "mover", "i", 1)])
    for node in (target, source):
        node.client.execute_command("CLUSTER SETSLOT", slot, "NODE", target.name)
    assert await store.append([Event("e1", "mover", "i", 1)]) == ["accepted"]
    assert await stored_ids(store, "mover") == {"e1"}
    assert (await store.forget_user("mover")).events == 1
