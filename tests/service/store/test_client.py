"""`MemoryStore` on a real server: events are stored once and in one order, deletions leave no key, errors are told."""

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from model_store.text.history import tie_key
from service.errors import BadRequest, StartupError, StoreCorrupt, StoreUnavailable
from service.store.client import CLAIM_AFTER_MS, MemoryStore
from service.store.connection import MOST_TIMEOUTS
from service.store.embedded.server import EmbeddedServer
from service.store.events import SEEN, Deleted, Event, UserCounts, UserStates, item_digest
from service.store.keys import ENCODE, GROUP, QUEUED, WAITING
from service.store.overlay import NewRecord
from tests.service.commands import calls

STRANGE = ["{a}:b", "a}{b", "*?[x]\\", "nul\0tab\t\n", "ünï✓🎬", "x" * 3000, " ", "%7B", "..", "lone \ud800"]
events_of_one_user = st.lists(
    st.builds(
        Event,
        event_id=st.text(max_size=4),
        user_id=st.just("u"),
        item_id=st.text(max_size=4),
        timestamp=st.integers(-3, 3) | st.integers(-(2**53), 2**53),
        type=st.sampled_from(["like", "purchase"]),
        value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        context=st.none() | st.just({"device": "phone", "place": 3}),
    ),
    max_size=12,
    unique_by=lambda event: event.event_id,
)


def make_events(count: int, user_id: str = "u") -> list[Event]:
    return [Event(f"e{i:04}", user_id, f"i{i % 7}", 1000 + i // 3) for i in range(count)]


def in_order(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda e: (e.timestamp, tie_key(e.user_id, e.item_id), e.event_id.encode()))


async def seen(store: MemoryStore, user_id: str) -> set[bytes]:
    found = (await store.recall_and_seen(user_id, "s", 1)).seen
    assert len(found) % SEEN.itemsize == 0
    return {entry["digest"].tobytes() for entry in np.frombuffer(found, dtype=SEEN) if entry["digest"]}


async def save(store: MemoryStore, user_id: str, space: str, records: dict[str, bytes], *, keep: int) -> int:
    return (await store.save_states(space, [UserStates(user_id, records, keep)], keep))[0].num_states


async def recalled(store: MemoryStore, user_id: str = "u", limit: int = 100) -> list[Event]:
    return [memory.event for memory in await store.recall(user_id, "s", limit)]


async def fill(store: MemoryStore, events: list[Event], space: str = "s") -> None:
    await store.append(events)
    await save(store, events[0].user_id, space, {e.event_id: b"state" for e in events}, keep=100)


async def save_as_earlier_versions(raw: Redis, space: str) -> None:
    """Weights of the last retrieval."""
    await raw.set(f"automr:{{u}}:retrieval:{space}", b'{"e0001":1.0}')
    await raw.sadd("automr:{u}:spaces", space)


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


async def test_the_first_event_with_an_id_is_kept(store: MemoryStore) -> None:
    first, second = Event("e", "u", "i1", 1, "buy", 2.5), Event("e", "u", "i2", 2)
    found = await store.append([first, second, Event("e", "v", "i2", 2)])
    assert found == ["accepted", "conflict", "accepted"]
    assert await store.append([second, first]) == ["conflict", "duplicate"]
    assert await recalled(store) == [first] and await seen(store, "u") == {item_digest("i1")}


async def test_append_answers_in_the_order_of_its_events(store: MemoryStore) -> None:
    batch = [Event(f"e{i % 250}", f"u{i % 50}", "i", i) for i in range(500)]
    assert await store.append(batch) == ["accepted"] * 250 + ["conflict"] * 250
    assert await store.append(batch[:250]) == ["duplicate"] * 250
    assert sorted([user async for user in store.users()]) == sorted({event.user_id for event in batch})
    assert await store.append([]) == []


async def test_a_flood_of_events_is_one_entry_of_the_queue_for_each_user(store: MemoryStore, raw: Redis) -> None:
    for number in range(50):
        await store.append([Event(f"e{number}", user, "i", number) for user in "uv"])
        await store.request_encoding(["u"])
    assert await raw.xlen(ENCODE) == await store.backlog() == 2


async def test_an_event_that_comes_while_its_user_is_encoded_makes_another_entry(
    store: MemoryStore, raw: Redis
) -> None:
    """Whoever has begun may have read the events before. Also if that worker was killed, and another one has begun."""
    await store.append([Event("e1", "u", "i", 1)])
    for number, consumer in enumerate(["a", "b"], start=2):
        ((entry, _),) = await store.next_encodings(consumer, count=1, block_ms=1)
        for repeated in range(3):
            await store.append([Event(f"e{number}-{repeated}", "u", "i", number)])
        assert await raw.xlen(ENCODE) == 2, "an event would not be encoded, or each of them asks for it"
        await store.encoded([entry])
    await store.encoded([entry for entry, _ in await store.next_encodings("c", count=9, block_ms=1)])
    assert not await raw.exists(WAITING, QUEUED) and await store.backlog() == 0


async def test_duplicates_ask_for_nothing(store: MemoryStore) -> None:
    await store.append([Event("e", "u", "i", 1)])
    await store.encoded([entry for entry, _ in await store.next_encodings("a", count=9, block_ms=1)])
    assert await store.append([Event("e", "u", "i", 1)] * 9) == ["duplicate"] * 9 and await store.backlog() == 0


async def test_an_event_is_stored_only_together_with_its_entry_of_the_queue(store: MemoryStore, raw: Redis) -> None:
    """Duplicates ask for nothing, so a retry after a failure must not find the event stored without its entry."""
    await raw.execute_command("ACL", "SETUSER", "default", "-xadd")
    try:
        with pytest.raises(StoreUnavailable, match="xadd"):
            await store.append([Event("e", "u", "i", 1)])
    finally:
        await raw.execute_command("ACL", "SETUSER", "default", "+xadd")
    assert await store.append([Event("e", "u", "i", 1)]) == ["accepted"] and await store.backlog() == 1


@pytest.mark.parametrize("mark", ["nonsense", "1-1", "99999999999999-0"])
async def test_an_entry_that_is_gone_keeps_nobody_from_asking(store: MemoryStore, raw: Redis, mark: str) -> None:
    await raw.hset(QUEUED, "u", mark)
    await store.append([Event("e", "u", "i", 1)])
    assert await store.backlog() == 1


async def test_recall_returns_the_newest_events_with_their_states(store: MemoryStore) -> None:
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


@pytest.mark.parametrize("num_states", [0, 3, 5, 30, 99])
async def test_only_the_newest_events_come_with_states(store: MemoryStore, num_states: int) -> None:
    events = in_order(make_events(30))
    await store.append(events)
    await save(store, "u", "s", {event.event_id: b"x" for event in events}, keep=100)
    found = (await store.recall_and_seen("u", "s", 10, num_states=num_states)).events
    assert [memory.event for memory in found] == events[-10:]
    with_state = min(num_states, 10)
    assert [memory.record for memory in found] == [None] * (10 - with_state) + [b"x"] * with_state


async def test_recall_is_one_command_for_a_history_of_any_length(store: MemoryStore, raw: Redis) -> None:
    events = make_events(5000)
    for start in range(0, 5000, 500):
        await store.append(events[start : start + 500])
    await store.recall("u", "s", 100)
    await raw.config_resetstat()
    assert len(await recalled(store)) == 100
    used = await calls(raw)
    assert used["eval"] == 1, "recall took more than one round trip"
    expected = {"eval", "zrevrange", "hmget", "hgetall", "strlen"}
    assert {name for name in used if "config" not in name and "info" not in name} == expected


async def test_seen_comes_with_the_same_command_as_the_events(store: MemoryStore, raw: Redis) -> None:
    """8 bytes for each event of the whole history."""
    events = [Event(f"e{i}", "u", f"i{i}", i) for i in range(5000)]
    for start in range(0, 5000, 500):
        await store.append(events[start : start + 500])
    await raw.config_resetstat()
    assert await seen(store, "u") == {item_digest(event.item_id) for event in events}
    used = await calls(raw)
    assert used["eval"] == 1 and not {"zrange", "set"} & used.keys()
    assert await raw.strlen("automr:{u}:seen") == SEEN.itemsize * 5000


@pytest.mark.parametrize("loss", ["hash of an earlier version", "lost", "torn"])
async def test_seen_is_computed_again_when_its_key_is_damaged(store: MemoryStore, raw: Redis, loss: str) -> None:
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
    assert "cmdstat_zrange" not in await raw.info("commandstats"), "seen is computed at every read"


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


async def test_the_log_digest_depends_on_the_events_and_their_order(store: MemoryStore) -> None:
    async def digest(limit: int = 3) -> bytes:
        return (await store.recall_many(["u"], "s", limit))[0].log_digest

    await store.append([Event(f"e{number}", "u", "i", number) for number in range(5)])
    before = await digest(10)
    assert (await store.save_states("s", [UserStates("u", {"e3": b"x"}, 2)], 10))[0] == (1, before)
    digests = {before, await digest(), await digest(4)}
    await store.append([Event("e2", "u", "i", 99)])
    assert await digest(10) == before, "a duplicate changes nothing"
    for change in (Event("late", "u", "i", 3), Event("e5", "u", "i", 5), Event("early", "u", "i", -1)):
        await store.append([change])
        digests.add(await digest(10))
    await store.forget_event("u", "early")
    assert await digest(10) in digests
    await store.forget_event("u", "late")
    await store.append([Event("late", "u", "another", 3)])
    digests.add(await digest(10))
    assert len(digests) == 7, "the digest did not change with the events"
    assert (await store.save_states("s", [UserStates("u", {}, 2)], 10))[0].log_digest == await digest(10)


async def test_unreadable_events_are_skipped_and_counted(store: MemoryStore, raw: Redis) -> None:
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
    with structlog.testing.capture_logs() as lines:
        assert await recalled(store) == [good]
        assert await store.events("u", limit=50) == ([good], None)
    assert [(line["skipped"], line["events"]) for line in lines] == [(len(bad), len(bad) + 1)] * 2, lines
    assert item_digest("i") in await seen(store, "u")
    assert await store.forget_event("u", "bad0") and (await store.forget_user("u")).events == len(bad)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
async def test_a_value_that_is_no_finite_number_is_read_as_none(store: MemoryStore, raw: Redis, value: str) -> None:
    event = Event("e", "u", "i", 5, "buy")
    await store.append([event, Event("f", "u", "i", 6, "buy", 2.5)])
    await raw.hset("automr:{u}:events", "e", f'{{"item_id":"i","timestamp":5,"type":"buy","value":{value}}}')
    assert await recalled(store) == [event, Event("f", "u", "i", 6, "buy", 2.5)]
    assert (await store.events("u", limit=5))[0][-1] == event
    assert await seen(store, "u") == {item_digest("i")}


@pytest.mark.parametrize("name", STRANGE)
async def test_any_text_may_be_an_id(store: MemoryStore, raw: Redis, name: str) -> None:
    event = Event(name, name, name, 7, name, -0.5)
    await fill(store, [event])
    assert [(m.event, m.record is None) for m in await store.recall(name, "s", 10)] == [(event, False)]
    assert await seen(store, name) == {item_digest(name)} and [user async for user in store.users()] == [name]
    assert {user for _, user in await store.next_encodings("c", count=9, block_ms=1)} == {name}
    await store.put_items([NewRecord(name, b"{}")], loaded=0)
    assert [each.item_id for each in await store.changed_items(0)] == [name]
    assert await store.forget_event(name, name), "the event was not found again"
    assert not [key async for key in raw.scan_iter() if quote(name, safe="", errors="surrogatepass").encode() in key]


async def test_an_empty_user_id_is_refused(store: MemoryStore) -> None:
    with pytest.raises(BadRequest):
        await store.append([Event("e", "", "i", 1)])


# ---- pages


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_pages_contain_every_event_once_newest_first(store: MemoryStore, size: int) -> None:
    events = [Event(f"e{i}", "u", f"i{i}", i // 10) for i in range(40)]
    await store.append(events)
    shown: list[Event] = []
    cursor: str | None = None
    while True:
        page, cursor = await store.events("u", before=cursor, limit=size)
        shown += page
        if cursor is None:
            break
        await store.append([Event(f"late {len(shown)}", "u", "i", 1000)])  # newer events do not change the pages
        await store.forget_event("u", page[-1].event_id)  # nor does the deletion of the cursor's event
    assert shown == in_order(events)[::-1]


@pytest.mark.parametrize("cursor", ["", "!", "abc", "🎬", "bmFuOng", "MV8wOng"])
async def test_an_invalid_cursor_is_refused(store: MemoryStore, cursor: str) -> None:
    with pytest.raises(BadRequest, match="cursor"):
        await store.events("u", before=cursor, limit=5)


# ---- states and deletion


async def test_only_states_of_the_newest_events_are_kept(store: MemoryStore) -> None:
    events = make_events(30)
    await store.append(events)
    everything = {event.event_id: b"x" for event in events} | {"unknown": b"x"}
    assert await save(store, "u", "s", everything, keep=20) == 20
    assert await store.counts("u", "s") == UserCounts(30, 20)
    await store.append([Event("newer", "u", "i", 9999)])
    assert await save(store, "u", "s", {}, keep=20) == 0
    assert [m.record for m in await store.recall("u", "s", 30)] == [None] * 10 + [b"x"] * 19 + [None]


async def test_forgetting_a_user_leaves_no_key_and_counts_what_it_deleted(store: MemoryStore, raw: Redis) -> None:
    await fill(store, make_events(12))
    await fill(store, make_events(12), "t")
    await fill(store, make_events(3, "other"))
    await save_as_earlier_versions(raw, "an old space")
    deleted = await store.forget_user("u")
    assert deleted == Deleted(events=12, states=24, keys=8, requests=1, at=deleted.at)
    assert (await store.forget_user("u"))._replace(at=0) == Deleted(0, 0, 0)
    assert not [key async for key in raw.scan_iter() if b"{u}" in key]
    assert await store.counts("other", "s") == UserCounts(3, 3), "another user was touched"
    assert await store.append(make_events(2)) == ["accepted"] * 2, "something was left of the deleted events"
    assert (await store.counts("u", "s")).states == 0


async def test_a_damaged_set_of_spaces_leaves_no_state_behind(store: MemoryStore, raw: Redis) -> None:
    for user in ("u", "uu", "u*"):
        await fill(store, make_events(5, user), "s")
    await raw.delete("automr:{u}:spaces")
    await raw.set("automr:{u}:spaces", "not a set")
    assert (await store.forget_user("u")).events == 5
    assert not [key async for key in raw.scan_iter() if b"{u}" in key]
    assert [(await store.counts(user, "s")).states for user in ("uu", "u*")] == [5, 5], "another user was touched"


async def test_a_late_write_does_not_restore_a_deleted_user(store: MemoryStore, raw: Redis) -> None:
    await fill(store, make_events(5))
    await store.forget_user("u")
    assert await save(store, "u", "s", {"e0001": b"x"}, keep=9) == 0
    assert not [key async for key in raw.scan_iter() if b"{u}" in key]


async def test_forgetting_an_event_deletes_its_states(store: MemoryStore, raw: Redis) -> None:
    events = [Event("e1", "u", "twice", 1), Event("e2", "u", "twice", 2), Event("e3", "u", "once", 3)]
    await fill(store, events)
    await save_as_earlier_versions(raw, "s")
    assert await store.forget_event("u", "e3") and not await store.forget_event("u", "e3")
    assert await store.forget_event("u", "e2")
    assert await recalled(store) == events[:1] and await seen(store, "u") == {item_digest("twice")}
    assert await store.counts("u", "s") == UserCounts(1, 1) and not await raw.exists("automr:{u}:retrieval:s")
    await store.forget_event("u", "e1")
    assert not [key async for key in raw.scan_iter() if b"{u}" in key], "the last event left keys behind"


async def test_a_state_uses_little_more_memory_than_its_record(store: MemoryStore, raw: Redis) -> None:
    hidden_size, header_bytes = 128, 24
    events = [Event(os.urandom(16).hex(), "u", f"i{i}", i) for i in range(90)]
    await store.append(events)
    records = {event.event_id: os.urandom(header_bytes + 2 * hidden_size) for event in events}
    await save(store, "u", "s", records, keep=100)
    usage = await raw.memory_usage("automr:{u}:states:s", samples=0) or 0
    assert 0 < usage / 90 <= 2 * hidden_size + 64, f"{usage / 90:.0f} bytes for each state"


# ---- the queue and the catalogue


async def test_an_entry_is_delivered_until_it_is_acknowledged(store: MemoryStore, raw: Redis) -> None:
    assert await store.next_encodings("a", count=5, block_ms=1) == []
    await store.request_encoding(["u", "v"])
    await raw.xadd(ENCODE, {"something": "else"})
    (entry, user), (_, other) = await store.next_encodings("a", count=5, block_ms=1)
    assert (user, other) == ("u", "v") and await store.backlog() == 2, "the unreadable entry was not removed"
    assert await store.next_encodings("b", count=5, block_ms=1) == [], "an entry was delivered twice"
    await make_idle(raw, "a", entry)
    assert await store.next_encodings("b", count=5, block_ms=1) == [(entry, "u")], "the entry of a dead worker is lost"
    await store.encoded([entry])
    await store.encoded([])
    assert await store.backlog() == 1


async def test_a_renewed_entry_stays_with_its_worker(store: MemoryStore, raw: Redis) -> None:
    await store.request_encoding(["u", "v"])
    (first, _), (second, _) = await store.next_encodings("a", count=5, block_ms=1)
    await make_idle(raw, "a", first, second)
    assert await store.renew_encodings("a", [first]) == 1
    assert await store.next_encodings("b", count=5, block_ms=1) == [(second, "v")]
    pending = await pending_entry(raw, first)
    assert pending["consumer"] == b"a" and pending["time_since_delivered"] < CLAIM_AFTER_MS
    assert pending["times_delivered"] == 1, "a renewal counts as a delivery"


async def test_a_renewal_takes_nothing_from_another_worker(store: MemoryStore, raw: Redis) -> None:
    await store.request_encoding(["u", "v", "w"])
    mine, theirs, unread = await entry_ids(raw)
    assert await store.next_encodings("a", count=1, block_ms=1) == [(mine, "u")]
    assert await store.next_encodings("b", count=1, block_ms=1) == [(theirs, "v")]
    await make_idle(raw, "b", theirs)
    assert await store.renew_encodings("a", [mine, theirs, unread, "1-1"]) == 1
    pending = await pending_entry(raw, theirs)
    assert pending["consumer"] == b"b" and pending["time_since_delivered"] > CLAIM_AFTER_MS, "b's entry was renewed"
    assert await store.next_encodings("c", count=5, block_ms=1) == [(theirs, "v")]


@pytest.mark.parametrize("loss", ["acknowledged", "deleted", "flushed"])
async def test_a_renewal_of_an_entry_that_is_gone_does_nothing(store: MemoryStore, raw: Redis, loss: str) -> None:
    await store.request_encoding(["u"])
    ((entry, _),) = await store.next_encodings("a", count=5, block_ms=1)
    if loss == "acknowledged":
        await store.encoded([entry])
    elif loss == "deleted":
        await raw.xdel(ENCODE, entry)
    else:
        await raw.flushall()
    assert await store.renew_encodings("a", [entry]) == 0 and await store.backlog() == 0
    assert await store.next_encodings("b", count=5, block_ms=1) == []


async def test_a_renewal_is_one_command(store: MemoryStore, raw: Redis) -> None:
    await store.request_encoding(map(str, range(32)))
    entries = [entry for entry, _ in await store.next_encodings("a", count=32, block_ms=1)]
    await raw.config_resetstat()
    assert await store.renew_encodings("a", []) == 0 and await store.renew_encodings("a", entries) == 32
    assert (await calls(raw))["eval"] == 1


async def make_idle(raw: Redis, consumer: str, *entries: str) -> None:
    """As if the consumer had not renewed the entries for longer than `CLAIM_AFTER_MS`."""
    await raw.xclaim(ENCODE, GROUP, consumer, 0, list(entries), idle=CLAIM_AFTER_MS + 1, justid=True)


async def pending_entry(raw: Redis, entry: str) -> dict[str, Any]:
    found: Any = await raw.xpending_range(ENCODE, GROUP, entry, entry, 1)
    return dict(found[0])


async def entry_ids(raw: Redis) -> list[str]:
    entries: Any = await raw.xrange(ENCODE)
    return [entry.decode() for entry, _ in entries]


async def test_waiting_for_entries_ends_before_the_timeout(valkey: EmbeddedServer, raw: Redis) -> None:
    store = await MemoryStore.connect(valkey.url, timeout_s=0.2)
    started = time.monotonic()
    assert await store.next_encodings("a", count=1, block_ms=60_000) == []
    assert time.monotonic() - started < 1.0
    await store.close()


async def test_workers_that_asked_lately_are_counted(store: MemoryStore, raw: Redis) -> None:
    assert await store.num_workers() == 0
    await store.request_encoding(["u"])
    for name in ("a", "b"):
        await store.next_encodings(name, count=1, block_ms=1)
    assert await store.num_workers() == 2


# ---- errors


async def test_readiness_writes_once_a_second_however_often_it_is_asked(store: MemoryStore, raw: Redis) -> None:
    await raw.config_resetstat()
    await asyncio.gather(*(store.probe() for _ in range(50)))
    assert (await raw.info("commandstats"))["cmdstat_set"]["calls"] == 1


async def test_scripts_work_after_the_server_has_lost_them(store: MemoryStore, raw: Redis) -> None:
    await store.append(make_events(5))
    await raw.script_flush()
    assert len(await recalled(store)) == 5
    await raw.script_flush()
    assert await store.append([Event("e", f"u{i}", "i", 1) for i in range(3)]) == ["accepted"] * 3


async def test_the_client_reconnects_after_a_restart_and_nothing_is_lost(tmp_path: Path) -> None:
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


async def test_nobody_waits_for_a_store_that_hangs_and_its_first_answer_ends_that(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        store = await MemoryStore.connect(server.url, timeout_s=0.1)
        await store.append(make_events(2))
        os.kill(server.pid, signal.SIGSTOP)
        for _ in range(MOST_TIMEOUTS):
            with pytest.raises(StoreUnavailable, match="in time"):
                await store.recall("u", "s", 5)
        started = time.monotonic()
        for _ in range(200):
            with pytest.raises(StoreUnavailable, match="is not asked"):
                await store.recall("u", "s", 5)
        assert time.monotonic() - started < 200 * 0.01
        os.kill(server.pid, signal.SIGCONT)
        async with asyncio.timeout(10):
            while store.breaker.is_open:
                await asyncio.sleep(0.02)
        assert len(await store.recall("u", "s", 5)) == 2
        await store.close()


async def test_time_outs_between_answers_do_not_open_the_breaker(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        store = await MemoryStore.connect(server.url, timeout_s=0.3)
        for _ in range(MOST_TIMEOUTS + 1):
            os.kill(server.pid, signal.SIGSTOP)
            with pytest.raises(StoreUnavailable):
                await store.backlog()
            os.kill(server.pid, signal.SIGCONT)
            await store.ping()
        assert not store.breaker.is_open
        await store.close()


async def assert_unavailable(store: MemoryStore) -> None:
    started = time.monotonic()
    for attempt in (store.ping(), store.append(make_events(2)), store.recall("u", "s", 5), store.backlog()):
        with pytest.raises(StoreUnavailable):
            await attempt
    with pytest.raises(StoreUnavailable):
        await store.next_encodings("c", count=1, block_ms=10)
    with pytest.raises(StoreUnavailable):
        _ = [user async for user in store.users()]
    assert time.monotonic() - started < 4.0, "a store that is down delays its callers"


@pytest.mark.parametrize("name", ["events", "order", "states:s"])
async def test_a_key_of_a_wrong_type_is_told_apart_from_a_store_that_is_down(
    store: MemoryStore, raw: Redis, name: str
) -> None:
    for user_id in ("u", "other"):
        await fill(store, make_events(3, user_id))
    await raw.set(f"automr:{{u}}:{name}", "text")
    with pytest.raises(StoreCorrupt):
        await store.recall("u", "s", 5)
    with pytest.raises(StoreCorrupt):
        await store.recall_many(["other", "u"], "s", 5)
    with pytest.raises(StoreCorrupt):
        await store.save_states("s", [UserStates("u", {"e0001": b"x"}, 9)], 9)
    assert len(await recalled(store, "other")) == 3, "another user is affected"
    await store.forget_user("u")
    assert not [key async for key in raw.scan_iter() if b"{u}" in key]


@pytest.mark.parametrize("url", ["http://x", "nonsense", "redis://host:port", "memcached+cluster://x"])
async def test_an_invalid_url_is_a_startup_error(url: str) -> None:
    with pytest.raises(StartupError, match="rediss://"):
        await MemoryStore.connect(url)
