"""Laws of the store, on a real server: exactly once, one order, nothing left of the forgotten, no crash."""

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from model_store.text.history import tie_key
from service.errors import BadRequest, StartupError, StoreUnavailable
from service.store.client import CLAIM_AFTER_MS, MemoryStore
from service.store.embedded import EmbeddedServer
from service.store.events import DIGEST_BYTES, Event, Receipt, UserCounts, UserStates, item_digest
from service.store.keys import ENCODE

STRANGE = ["{a}:b", "a}{b", "*?[x]\\", "nul\0tab\t\n", "ünï✓🎬", "x" * 3000, " ", "%7B", "..", "lone \ud800"]
events_of_one_user = st.lists(
    st.builds(
        Event,
        event_id=st.text(max_size=4),
        user_id=st.just("u"),
        item_id=st.text(max_size=4),
        timestamp=st.integers(-3, 3) | st.integers(-(2**53), 2**53),
        type=st.sampled_from(["view", "purchase"]),
        value=st.none() | st.floats(allow_nan=False),
    ),
    max_size=12,
    unique_by=lambda event: event.event_id,
)


def make_events(count: int, user_id: str = "u") -> list[Event]:
    return [Event(f"e{i:04}", user_id, f"i{i % 7}", 1000 + i // 3) for i in range(count)]


def in_order(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda e: (e.timestamp, tie_key(e.user_id, e.item_id), e.event_id.encode()))


async def seen(store: MemoryStore, user_id: str) -> set[bytes]:
    digests = (await store.recall_and_seen(user_id, "s", 1))[1]
    assert len(digests) % DIGEST_BYTES == 0
    return {digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)}


async def save(store: MemoryStore, user_id: str, space: str, records: dict[str, bytes], *, keep: int) -> int:
    return (await store.save_states(space, [UserStates(user_id, records, keep)], keep))[0].num_states


async def recalled(store: MemoryStore, user_id: str = "u", limit: int = 100) -> list[Event]:
    return [memory.event for memory in await store.recall(user_id, "s", limit)]


async def fill(store: MemoryStore, events: list[Event], space: str = "s") -> None:
    await store.append(events)
    await save(store, events[0].user_id, space, {e.event_id: b"state" for e in events}, keep=100)


# ---- append and recall


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=events_of_one_user, seed=st.integers(0, 2**32))
def test_order_duplication_and_batching_of_arrival_do_not_matter(
    valkey: EmbeddedServer, events: list[Event], seed: int
) -> None:
    async def arrive() -> list[Event]:
        store = await MemoryStore.connect(valkey.url)
        await store.forget_user("u")
        rng = random.Random(seed)
        arrivals = events + rng.choices(events, k=len(events) // 2) if events else []
        rng.shuffle(arrivals)
        while arrivals:
            size = rng.randint(1, len(arrivals))
            await store.append(arrivals[:size])
            del arrivals[:size]
        found = await recalled(store)
        assert await seen(store, "u") == {item_digest(event.item_id) for event in events}
        await store.close()
        return found

    assert asyncio.run(arrive()) == in_order(events)


async def test_the_first_of_equal_event_ids_wins(store: MemoryStore) -> None:
    first, second = Event("e", "u", "i1", 1, "view", 2.5), Event("e", "u", "i2", 2)
    assert await store.append([first, second, Event("e", "v", "i2", 2)]) == [True, False, True]
    assert await store.append([second]) == [False]
    assert await recalled(store) == [first] and await seen(store, "u") == {item_digest("i1")}


async def test_a_batch_over_many_users_is_answered_in_its_order(store: MemoryStore) -> None:
    batch = [Event(f"e{i % 250}", f"u{i % 50}", "i", i) for i in range(500)]
    assert await store.append(batch) == [True] * 250 + [False] * 250
    assert sorted([user async for user in store.users()]) == sorted({event.user_id for event in batch})
    assert await store.append([]) == []


async def test_duplicates_are_queued_too_so_a_retry_heals_a_crash(store: MemoryStore) -> None:
    for size in (1, 2):
        await store.append([Event("e", "u", "i", 1)] * 2)
        assert await store.backlog() == size


async def test_recall_gives_the_newest_with_their_states(store: MemoryStore) -> None:
    events = make_events(30)
    await store.append(events)
    expected = in_order(events)
    await save(store, "u", "s", {expected[-2].event_id: b"\0state\xff"}, keep=100)
    found = await store.recall("u", "s", 5)
    assert [memory.event for memory in found] == expected[-5:]
    assert [memory.record for memory in found] == [None, None, None, b"\0state\xff", None]
    assert all(memory.record is None for memory in await store.recall("u", "another space", 5))
    assert await store.recall("u", "s", 0) == [] and await store.recall("nobody", "s", 5) == []
    assert await recalled(store, limit=10**6) == expected


async def test_recall_is_one_command_whatever_the_history(store: MemoryStore, raw: Redis) -> None:
    events = make_events(5000)
    for start in range(0, 5000, 500):
        await store.append(events[start : start + 500])
    await store.recall("u", "s", 100)
    await raw.config_resetstat()
    assert len(await recalled(store)) == 100
    stats = await raw.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 1, "recall took more than one round trip"
    assert {name for name in stats if "config" not in name and "info" not in name} == {
        "cmdstat_evalsha",
        "cmdstat_zrevrange",
        "cmdstat_hmget",
        "cmdstat_hgetall",
    }
    assert stats["cmdstat_evalsha"]["usec"] < 20_000, "recall walked the whole history"


async def test_the_seen_items_come_with_the_events(store: MemoryStore, raw: Redis) -> None:
    """However long the history and wherever it came from: 8 bytes an event, in the answer of the one command."""
    events = [Event(f"e{i}", "u", f"i{i}", i) for i in range(5000)]
    for start in range(0, 5000, 500):
        await store.append(events[start : start + 500])
    await raw.config_resetstat()
    assert await seen(store, "u") == {item_digest(event.item_id) for event in events}
    stats = await raw.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 1 and not {"cmdstat_hvals", "cmdstat_set"} & stats.keys()
    assert await raw.strlen("automr:{u}:seen") == DIGEST_BYTES * 5000


@pytest.mark.parametrize("loss", ["hash of an earlier version", "lost", "torn"])
async def test_what_was_seen_follows_from_the_log(store: MemoryStore, raw: Redis, loss: str) -> None:
    events = [Event(f"e{number}", "u", name, number) for number, name in enumerate([*STRANGE, *STRANGE[:3]])]
    await store.append(events)
    before = await seen(store, "u")
    await raw.delete("automr:{u}:seen")
    if loss == "hash of an earlier version":
        await raw.hset("automr:{u}:seen", mapping={"i": 1})
        await store.append([Event("another", "u", STRANGE[0], 99)])
    elif loss == "torn":
        await raw.set("automr:{u}:seen", b"torn")
    assert await seen(store, "u") == before == {item_digest(name) for name in STRANGE}
    await raw.config_resetstat()
    assert await seen(store, "u") == before
    assert "cmdstat_hvals" not in await raw.info("commandstats"), "it is made anew again and again"


async def test_many_users_are_recalled_and_saved_in_one_round_trip(store: MemoryStore, raw: Redis) -> None:
    await store.append([Event(f"e{number}", user, "i", number) for user in "abc" for number in range(5)])
    states = [UserStates(user, {"e4": user.encode(), "unknown": b"x"}, 10) for user in "abc"]
    saved = await store.save_states("s", states, 2)
    assert [each.num_states for each in saved] == [1, 1, 1]
    recalled_at_once = await store.recall_many(["c", "nobody", "a", "c"], "s", 2)
    found = [each.events for each in recalled_at_once]
    assert found == [await store.recall(user, "s", 2) for user in ("c", "nobody", "a", "c")]
    assert [[each.record for each in one] for one in found] == [[None, b"c"], [], [None, b"a"], [None, b"c"]]
    assert await store.recall_many([], "s", 2) == [] and await store.save_states("s", [], 2) == []


async def test_the_log_is_named_by_its_events_and_their_order(store: MemoryStore) -> None:
    async def name(limit: int = 3) -> bytes:
        return (await store.recall_many(["u"], "s", limit))[0].log

    await store.append([Event(f"e{number}", "u", "i", number) for number in range(5)])
    before = await name(10)
    assert (await store.save_states("s", [UserStates("u", {"e3": b"x"}, 2)], 10))[0] == (1, before)
    names = {before, await name(), await name(4)}
    await store.append([Event("e2", "u", "i", 99)])
    assert await name(10) == before, "a duplicate changes nothing"
    for change in (Event("late", "u", "i", 3), Event("e5", "u", "i", 5), Event("early", "u", "i", -1)):
        await store.append([change])
        names.add(await name(10))
    await store.forget_event("u", "early")
    assert await name(10) in names
    await store.forget_event("u", "late")
    await store.append([Event("late", "u", "another", 3)])
    names.add(await name(10))
    assert len(names) == 7, "a changed log goes unnoticed"
    assert (await store.save_states("s", [UserStates("u", {}, 2)], 10))[0].log == await name(10)


async def test_bytes_of_others_are_skipped_and_counted(
    store: MemoryStore, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    good = Event("good", "u", "i", 5)
    await store.append([good])
    bad = [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'{"item_id":1,"timestamp":1,"type":"view","value":null}',
    ]
    bad += [b'{"item_id":"i","timestamp":true,"type":"v","value":null}', b'{"item_id":"i"}', b"[" * 100_000]
    for number, body in enumerate(bad):
        await raw.hset("automr:{u}:events", f"bad{number}", body)
        await raw.zadd("automr:{u}:order", {f"{'0' * 16}:bad{number}": number})
    await raw.zadd("automr:{u}:order", {b"\xff": 7})
    await raw.zadd("automr:{u}:order", {f"{'0' * 16}:without a body": 8})
    await raw.set("automr:{u}:seen", b"\xff")
    with caplog.at_level(logging.WARNING, "service.store.client"):
        assert await recalled(store) == [good]
        assert await store.events("u", limit=50) == ([good], None)
    assert f"skipped {len(bad) + 2} of {len(bad) + 3}" in caplog.text
    assert item_digest("i") in await seen(store, "u")
    assert await store.forget_event("u", "bad0") and (await store.forget_user("u")).events == len(bad)


@pytest.mark.parametrize("name", STRANGE)
async def test_any_text_is_a_name(store: MemoryStore, raw: Redis, name: str) -> None:
    event = Event(name, name, name, 7, name, -0.5)
    await fill(store, [event])
    await store.save_retrievals("s", {name: {name: 0.5}})
    assert [(m.event, m.record is None) for m in await store.recall(name, "s", 10)] == [(event, False)]
    assert await seen(store, name) == {item_digest(name)} and [user async for user in store.users()] == [name]
    assert await store.last_retrieval(name, "s") == {name: 0.5}
    assert {user for _, user in await store.next_encodings("c", count=9, block_ms=1)} == {name}
    await store.put_items({name: {"title": name}})
    assert await store.load_items() == {name: {"title": name}}
    assert await store.forget_event(name, name), "the event was not found again"
    assert not [key async for key in raw.scan_iter() if quote(name, safe="", errors="surrogatepass").encode() in key]


async def test_an_empty_user_id_is_refused(store: MemoryStore) -> None:
    with pytest.raises(BadRequest):
        await store.append([Event("e", "", "i", 1)])


# ---- pages


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_pages_show_every_event_once_newest_first(store: MemoryStore, size: int) -> None:
    events = [Event(f"e{i}", "u", f"i{i}", i // 10) for i in range(40)]
    await store.append(events)
    shown: list[Event] = []
    cursor: str | None = None
    while True:
        page, cursor = await store.events("u", before=cursor, limit=size)
        shown += page
        if cursor is None:
            break
        await store.append([Event(f"late {len(shown)}", "u", "i", 1000)])  # newer ones do not disturb the pages
        await store.forget_event("u", page[-1].event_id)  # nor does the end of the place itself
    assert shown == in_order(events)[::-1]


@pytest.mark.parametrize("cursor", ["", "!", "abc", "🎬", "bmFuOng", "MV8wOng"])
async def test_a_foreign_cursor_is_refused(store: MemoryStore, cursor: str) -> None:
    with pytest.raises(BadRequest, match="cursor"):
        await store.events("u", before=cursor, limit=5)


# ---- states, and forgetting


async def test_states_of_the_newest_are_kept_and_the_others_trimmed(store: MemoryStore) -> None:
    events = make_events(30)
    await store.append(events)
    everything = {event.event_id: b"x" for event in events} | {"unknown": b"x"}
    assert await save(store, "u", "s", everything, keep=20) == 20
    assert await store.counts("u", "s") == UserCounts(30, 20)
    await store.append([Event("newer", "u", "i", 9999)])
    assert await save(store, "u", "s", {}, keep=20) == 0
    assert [m.record for m in await store.recall("u", "s", 30)] == [None] * 10 + [b"x"] * 19 + [None]


async def test_forgetting_leaves_no_key_and_says_what_went(store: MemoryStore, raw: Redis) -> None:
    await fill(store, make_events(12))
    await fill(store, make_events(12), "t")
    await fill(store, make_events(3, "other"))
    await store.save_retrievals("only retrieved", {"u": {"e0001": 1.0}})
    assert await store.forget_user("u") == Receipt(events=12, states=24, keys=7)
    assert await store.forget_user("u") == Receipt(0, 0, 0)
    assert not [key async for key in raw.scan_iter() if b"{u}" in key]
    assert await store.counts("other", "s") == UserCounts(3, 3), "another user was touched"
    assert await store.append(make_events(2)) == [True, True], "re-ingestion does not start clean"
    assert (await store.counts("u", "s")).states == 0


async def test_late_writes_do_not_bring_a_user_back(store: MemoryStore, raw: Redis) -> None:
    await fill(store, make_events(5))
    await store.forget_user("u")
    assert await save(store, "u", "s", {"e0001": b"x"}, keep=9) == 0
    await store.save_retrievals("s", {"u": {"e0001": 1.0}})
    assert not [key async for key in raw.scan_iter() if b"{u}" in key]


async def test_forgetting_an_event_forgets_what_came_of_it(store: MemoryStore, raw: Redis) -> None:
    events = [Event("e1", "u", "twice", 1), Event("e2", "u", "twice", 2), Event("e3", "u", "once", 3)]
    await fill(store, events)
    await store.save_retrievals("s", {"u": {"e3": 1.0}})
    assert await store.forget_event("u", "e3") and not await store.forget_event("u", "e3")
    assert await store.forget_event("u", "e2")
    assert await recalled(store) == events[:1] and await seen(store, "u") == {item_digest("twice")}
    assert await store.counts("u", "s") == UserCounts(1, 1) and await store.last_retrieval("u", "s") == {}
    await store.forget_event("u", "e1")
    assert not [key async for key in raw.scan_iter() if b"{u}" in key], "the last event left keys behind"


async def test_a_memory_element_costs_little_more_than_its_record(store: MemoryStore, raw: Redis) -> None:
    hidden_size, header_bytes = 128, 24
    events = [Event(os.urandom(16).hex(), "u", f"i{i}", i) for i in range(90)]
    await store.append(events)
    records = {event.event_id: os.urandom(header_bytes + 2 * hidden_size) for event in events}
    await save(store, "u", "s", records, keep=100)
    usage = await raw.memory_usage("automr:{u}:states:s", samples=0) or 0
    assert 0 < usage / 90 <= 2 * hidden_size + 64, f"{usage / 90:.0f} bytes for each element"


# ---- the queue and the catalogue


async def test_an_entry_is_handed_out_until_it_is_encoded(store: MemoryStore, raw: Redis) -> None:
    assert await store.next_encodings("a", count=5, block_ms=1) == []
    await store.request_encoding(["u", "v"])
    await raw.xadd(ENCODE, {"something": "else"})
    (entry, user), (_, other) = await store.next_encodings("a", count=5, block_ms=1)
    assert (user, other) == ("u", "v") and await store.backlog() == 2, "the unreadable entry is still there"
    assert await store.next_encodings("b", count=5, block_ms=1) == [], "an entry was handed out twice"
    await raw.execute_command("XCLAIM", ENCODE, "encoders", "a", 0, entry, "IDLE", CLAIM_AFTER_MS + 1)
    assert await store.next_encodings("b", count=5, block_ms=1) == [(entry, "u")], "a dead worker's entry is lost"
    await store.encoded([entry])
    await store.encoded([])
    assert await store.backlog() == 1


async def test_waiting_for_work_ends_before_the_timeout(valkey: EmbeddedServer, raw: Redis) -> None:
    store = await MemoryStore.connect(valkey.url, timeout_s=0.2)
    started = time.monotonic()
    assert await store.next_encodings("a", count=1, block_ms=60_000) == []
    assert time.monotonic() - started < 1.0
    await store.close()


async def test_the_overlay_has_a_version(store: MemoryStore, raw: Redis) -> None:
    assert await store.items_version() == 0 and await store.load_items() == {}
    await store.put_items({})
    await store.put_items({"i1": {"title": "One"}, "i2": {"hidden": True}})
    await store.put_items({"i1": {"title": "Uno"}})
    await raw.hset("automr:items", "bad", b"\xff")
    assert await store.items_version() == 2
    assert await store.load_items() == {"i1": {"title": "Uno"}, "i2": {"hidden": True}}


# ---- trouble


async def test_scripts_come_back_after_the_server_forgot_them(store: MemoryStore, raw: Redis) -> None:
    await store.append(make_events(5))
    await raw.script_flush()
    assert len(await recalled(store)) == 5
    await raw.script_flush()
    assert await store.append([Event("e", f"u{i}", "i", 1) for i in range(3)]) == [True] * 3


async def test_a_restart_loses_nothing_and_is_survived_by_the_client(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        store = await MemoryStore.connect(server.url, timeout_s=1.0)
        await asyncio.gather(*(store.append([event]) for event in make_events(20)))
        os.kill(server.pid, signal.SIGKILL)
        for _ in range(200):
            try:
                found = await recalled(store)
                break
            except StoreUnavailable:
                await asyncio.sleep(0.02)
        assert found == in_order(make_events(20))
        await store.close()


async def test_a_store_that_is_down_or_stuck_is_reported_quickly(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        store = await MemoryStore.connect(server.url, timeout_s=0.2)
        await store.ping()
        os.kill(server.pid, signal.SIGSTOP)
        await assert_unavailable(store)
        os.kill(server.pid, signal.SIGCONT)
        await store.ping()
    await assert_unavailable(store)
    await store.close()
    nowhere = await MemoryStore.connect("redis+cluster://127.0.0.1:1", timeout_s=0.2)
    await assert_unavailable(nowhere)
    await nowhere.close()


async def assert_unavailable(store: MemoryStore) -> None:
    started = time.monotonic()
    for attempt in (store.ping(), store.append(make_events(2)), store.recall("u", "s", 5), store.backlog()):
        with pytest.raises(StoreUnavailable):
            await attempt
    with pytest.raises(StoreUnavailable):
        await store.next_encodings("c", count=1, block_ms=10)
    with pytest.raises(StoreUnavailable):
        _ = [user async for user in store.users()]
    assert time.monotonic() - started < 4.0, "a store that is down holds its callers up"


@pytest.mark.parametrize("url", ["http://x", "nonsense", "redis://host:port", "memcached+cluster://x"])
async def test_a_url_that_cannot_be_read_is_the_operators_mistake(url: str) -> None:
    with pytest.raises(StartupError, match="rediss://"):
        await MemoryStore.connect(url)


# ---- a cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Two nodes of Redis Cluster, half of the slots each."""
    from service.store.embedded import _binary  # noqa: PLC2701

    ports, nodes = _free_ports(2), []
    for port in ports:
        home = tmp_path / str(port)
        home.mkdir()
        options = ["--port", str(port), "--cluster-port", str(_free_ports(1)[0]), "--bind", "127.0.0.1"]
        options += ["--cluster-enabled", "yes", "--save", ""]
        nodes.append(subprocess.Popen([_binary(), *options], cwd=home, stdout=subprocess.DEVNULL))
    try:
        _join(ports)
        yield f"redis+cluster://127.0.0.1:{ports[0]}"
    finally:
        for node in nodes:
            node.kill()
            node.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _join(ports: list[int]) -> None:
    clients = [BlockingRedis(port=port) for port in ports]
    _until(lambda: all(client.ping() for client in clients))
    clients[0].execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
    clients[1].execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
    clients[0].execute_command(
        "CLUSTER MEET", "127.0.0.1", ports[1], clients[1].config_get("cluster-port")["cluster-port"]
    )
    _until(lambda: all(_is_formed(client) for client in clients))
    for client in clients:
        client.close()


def _is_formed(node: BlockingRedis) -> bool:
    """The node serves, and it and the other know each other's slots."""
    slots = node.execute_command("CLUSTER SLOTS")
    info = node.execute_command("CLUSTER INFO")
    return len(slots) == 2 and info["cluster_state"] == "ok"


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            if condition():
                return
        except RedisError:
            pass
        assert time.monotonic() < deadline, "the cluster did not come up"
        time.sleep(0.05)


@pytest.fixture
async def cluster_store(cluster: str) -> AsyncIterator[MemoryStore]:
    store = await MemoryStore.connect(cluster)
    yield store
    await store.close()


async def test_all_of_it_works_on_a_cluster(cluster_store: MemoryStore) -> None:
    store = cluster_store
    await store.ping()
    batch = [Event(f"e{i}", f"u{i % 20}", "i", i) for i in range(100)]
    assert await store.append(batch) == [True] * 100 and await store.append(batch) == [False] * 100
    assert sorted([user async for user in store.users()]) == sorted({event.user_id for event in batch})
    for user in ("u1", "u2", "u3", "u4"):
        assert await save(store, user, "s", {f"e{user[1:]}": b"state"}, keep=100) == 1
        assert [m.record for m in await store.recall(user, "s", 100)] == [b"state"] + [None] * 4
        assert len((await store.events(user, limit=3))[0]) == 3
        assert await store.forget_event(user, f"e{user[1:]}")
        await store.save_retrievals("s", {user: {"e": 1.0}})
        assert (await store.forget_user(user)).events == 4
        assert await store.recall(user, "s", 5) == []
    others = [f"u{number}" for number in range(5, 20)]
    saved = await store.save_states("s", [UserStates(user, {f"e{user[1:]}": b"x"}, 9) for user in others], 9)
    assert [each.num_states for each in saved] == [1] * 15
    recalled_at_once = await store.recall_many(others, "s", 100)
    assert [each.events[0].record for each in recalled_at_once] == [b"x"] * 15, "not in the order of the users"
    assert await seen(store, "u7") == {item_digest("i")}
    entries = await store.next_encodings("c", count=100, block_ms=10)
    assert len(entries) == await store.backlog() == 40
    await store.encoded([entry for entry, _ in entries])
    await store.put_items({"i": {"title": "t"}})
    assert await store.load_items() == {"i": {"title": "t"}}
    assert await store.items_version() == 1 and await store.backlog() == 0
