"""Which events are interest, speak against items, or do neither, and what is seen: a function of the log and the table.

The law is stated once more in Python, and compared with what the store's scripts make of any order of arrival, of
resends, corrections, deletions and changes of the table.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from model_store.event_types import DAY_S, EventRule, EventTypes, TypeRule, ValueRule
from model_store.text.history import tie_key
from service.store import requests
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.events import SEEN, SEEN_FOR_EVER, Event, item_digest
from service.store.large import seen as seen_parts
from service.store.lua import scripts
from service.store.lua.sorting import EVENTS_PER_SCRIPT

DEFAULTS = EventTypes()
OTHER = EventTypes(
    types={
        "view": TypeRule(weight=2.0, seen_s=50),
        "rating": TypeRule(weight=-1.0, by_value=[ValueRule(at_least=1.5, at_most=4.5, cancels=True, seen_s=0)]),
        "purchase": TypeRule(cancels=True, memory=False),
    },
    other=TypeRule(weight=0.0, seen_s=None),
)
KINDS = ["interaction", "view", "purchase", "rating", "dislike", "skip", "return", "impression", "unheard of"]
EVENTS = st.lists(
    st.builds(
        Event,
        event_id=st.text("abc", min_size=1, max_size=2),
        user_id=st.just("u"),
        item_id=st.sampled_from(["x", "y", "z"]),
        timestamp=st.integers(-2, 6) | st.integers(0, 2**53),
        type=st.sampled_from(KINDS),
        value=st.none() | st.sampled_from([1.0, 2.0, 3.0, 4.0, 4.5, 5.0]),
        context=st.none(),
    ),
    max_size=14,
    unique_by=lambda event: event.event_id,
)
# Two of these take back others of the same item. One that is corrected while the sets are made anew begins them again.
TAKEN_BACK = [
    Event("a", "u", "x", 0, "interaction"),
    Event("c", "u", "x", 0, "dislike"),
    Event("b", "u", "x", 0, "rating", 1.0),
    Event("aa", "u", "x", 0, "interaction"),
]
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "append", "replace", "forget", "read", "page", "table"]), st.integers(0, 99)),
    max_size=12,
)


@contextmanager
def steps_of(num_events: int) -> Iterator[None]:
    """Scripts look at so many events only, and `seen` comes in parts of so many entries: as for a very large user."""
    step, entries = f"EVENTS_PER_SCRIPT = {EVENTS_PER_SCRIPT}\n", SEEN.itemsize * num_events
    with pytest.MonkeyPatch.context() as patch:
        for name, script in vars(scripts).items():
            if name.isupper() and isinstance(script, str):
                patch.setattr(scripts, name, script.replace(step, f"EVENTS_PER_SCRIPT = {num_events}\n"))
        patch.setattr(requests, "SEEN_BYTES", entries)
        patch.setattr(seen_parts, "SEEN_BYTES", entries)
        yield


def place(event: Event) -> tuple[int, str, bytes]:
    return event.timestamp, tie_key(event.user_id, event.item_id), event.event_id.encode()


def expected(log: Sequence[Event], table: EventTypes) -> dict[str, Any]:
    """The law: oldest first, what is interest and is not taken back later; what is against; what is seen until when."""
    rules: dict[str, EventRule] = {event.event_id: table.rule(event.type, event.value) for event in log}
    ordered = sorted(log, key=place)
    taken_back = {event.item_id: place(event) for event in ordered if rules[event.event_id].cancels}
    interest = [
        event
        for event in ordered
        if rules[event.event_id].is_interest
        and not (event.item_id in taken_back and place(event) < taken_back[event.item_id])
    ]
    seen: dict[bytes, int] = {}
    for event in log:
        seconds = rules[event.event_id].seen_s
        if seconds != 0:
            until = SEEN_FOR_EVER if seconds is None else max(0, min(SEEN_FOR_EVER - 1, event.timestamp + seconds))
            seen[item_digest(event.item_id)] = max(until, seen.get(item_digest(event.item_id), 0))
    against = [event for event in ordered[::-1] if rules[event.event_id].is_against]
    return {"interest": interest, "against": against, "seen": seen}


async def found(store: MemoryStore) -> dict[str, Any]:
    recalled = await store.recall_and_seen("u", "s", 100)
    seen: dict[bytes, int] = {}
    for entry in np.frombuffer(recalled.seen, dtype=SEEN):
        if entry["digest"]:
            seen[entry["digest"].tobytes()] = max(int(entry["until"]), seen.get(entry["digest"].tobytes(), 0))
    return {
        "interest": [each.event for each in recalled.events],
        "against": list(recalled.against),
        "seen": seen,
    }


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, steps=STEPS, seed=st.integers(0, 2**32), at_once=st.sampled_from([1, 3, EVENTS_PER_SCRIPT]))
@example(
    events=TAKEN_BACK,
    steps=[("append", 0), ("append", 12), ("append", 44), ("replace", 0), ("replace", 0)],
    seed=665,
    at_once=1,
)
def test_what_events_mean_is_a_function_of_the_log_and_the_table(
    valkey: EmbeddedServer, events: list[Event], steps: list[tuple[str, int]], seed: int, at_once: int
) -> None:
    async def play(store: MemoryStore) -> None:
        await store.forget_user("u")
        dice, log, number, table = random.Random(seed), dict[str, Event](), 0, DEFAULTS
        for kind, argument in [*steps, ("append", 99), ("append", 0)]:
            if kind == "append" and events:
                sent = events if argument == 99 else dice.choices(events, k=argument % 5 + 1)
                await store.append(dice.sample(sent, len(sent)))
                for event in sent:
                    log.setdefault(event.event_id, event)
            elif kind == "replace" and events:
                event = dice.choice(events)._replace(item_id=dice.choice("xyz"), type=dice.choice(KINDS))
                await store.replace(event)
                log[event.event_id] = event
            elif kind == "forget" and events:
                event_id = dice.choice(events).event_id
                assert await store.forget_event("u", event_id) == (log.pop(event_id, None) is not None)
            elif kind == "table":
                number, table = number + 1, OTHER if table is DEFAULTS else DEFAULTS
                store.use_event_types(table, number)
            elif kind == "read":
                assert await found(store) == expected(list(log.values()), table)
            elif kind == "page":
                page, _ = await store.events("u", limit=100)
                assert page == sorted(log.values(), key=place, reverse=True), "a page needs no sorted events"
        assert await found(store) == expected(list(log.values()), table)
        page, _ = await store.events("u", limit=100)
        assert page == sorted(log.values(), key=place, reverse=True), "a page leaves out events that are no interest"

    async def run() -> None:
        store = await MemoryStore.connect(valkey.url)
        try:
            await play(store)
        finally:
            await store.close()

    with steps_of(at_once):
        asyncio.run(run())


async def test_an_older_table_of_another_replica_does_not_stay(store: MemoryStore, valkey: EmbeddedServer) -> None:
    late = await MemoryStore.connect(valkey.url)
    store.use_event_types(OTHER, 1)
    log = [Event("a", "u", "x", 1, "purchase"), Event("b", "u", "y", 2, "view")]
    await store.append(log[:1])
    await late.append(log[1:])  # has not heard of the new table
    assert await found(store) == expected(log, OTHER)
    await late.close()


@pytest.mark.parametrize("change", ["forget", "replace"])
def test_a_sort_ends_when_the_last_event_that_is_not_placed_goes(valkey: EmbeddedServer, change: str) -> None:
    async def run() -> None:
        store, late = await MemoryStore.connect(valkey.url), await MemoryStore.connect(valkey.url)
        await store.forget_user("u")
        log = [Event(name, "u", name, second, "view") for second, name in enumerate("abc")]
        await store.append(log[:2])
        store.use_event_types(OTHER, 1)
        await store.append(log[2:])  # the sets are made anew, and `b` is placed
        if change == "forget":
            await store.forget_event("u", "a")
        else:
            await store.replace(log[0]._replace(item_id="z"))
        async with asyncio.timeout(5):
            recalled = await late.recall("u", "s", 10)
            recalled_and_seen = await store.recall_and_seen("u", "s", 10)
        assert len(recalled) == len(recalled_and_seen.events) == (2 if change == "forget" else 3)
        await store.close()
        await late.close()

    with steps_of(1):
        asyncio.run(run())


async def test_the_log_digest_follows_what_events_mean(store: MemoryStore) -> None:
    async def digest() -> bytes:
        return (await store.log_digests(["u"], 10))[0]

    seen = []
    event = Event("a", "u", "x", 1, "purchase")
    for change in (
        lambda: store.append([event]),
        lambda: store.replace(event._replace(value=2.0)),
        lambda: store.append([Event("b", "u", "y", 2, "dislike")]),
        lambda: store.forget_event("u", "b"),
    ):
        await change()
        await store.recall("u", "s", 10)
        seen.append(await digest())
    store.use_event_types(OTHER, 1)
    await store.recall("u", "s", 10)
    seen.append(await digest())
    assert len(set(seen)) == len(seen), "a worker would not notice a change that came while it counted"


async def test_a_user_of_an_earlier_version_is_sorted_at_the_first_read(store: MemoryStore, raw: Redis) -> None:
    log = [Event("a", "u", "x", 1, "purchase"), Event("b", "u", "y", 2, "dislike"), Event("c", "u", "z", 3, "view")]
    await store.append(log)
    await raw.delete("automr:{u}:facts", "automr:{u}:against", "automr:{u}:aside", "automr:{u}:seen")
    for event in log:
        await raw.zadd("automr:{u}:order", {f"{tie_key('u', event.item_id)}:{event.event_id}": event.timestamp})
    await raw.hset("automr:{u}:seen", "x", "1")
    assert await found(store) == expected(log, DEFAULTS)


def test_the_defaults_say_what_a_shop_expects() -> None:
    def rule(kind: str, value: float | None = None) -> EventRule:
        return DEFAULTS.rule(kind, value)

    assert [rule("rating", value).weight for value in (1.0, 2.0, 3.0, 4.0, 5.0)] == [-1.0, -1.0, 0.5, 1.0, 1.0]
    assert rule("purchase") == rule("something of yours") == rule("interaction")
    assert rule("purchase").seen_s is None and rule("view").seen_s == rule("click").seen_s == 0
    assert rule("play").seen_s == DAY_S and rule("view").is_interest and not rule("impression").is_interest
    assert rule("dislike").is_against and rule("dislike").seen_s is None and rule("return").cancels
