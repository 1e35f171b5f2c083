"""The store against its floor: bytes per user, fetching and scoring of memory, reads and writes, durable ingest.

Starts Valkey servers of its own. The floor of an operation is the time that redis-py needs to move the same bytes with
plain pipelined commands; our operation and the floor take turns. Less than a minute. Prints tables and, last, one line
of JSON.

    python tests/benchmarks/benchmark_store.py [--repeats 300]
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import uvloop
from redis.asyncio import Redis

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from model_store.manifest import BackboneSpec, Manifest, MemorySpec, PromptSpec, VoicesSpec
from model_store.memory.codec import StateDtype
from model_store.memory.retriever import Retriever
from model_store.text.history import window_ending_at
from model_store.view import BundleView
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.events import Event, UserStates, encode_event, order_member
from service.store.keys import user_keys
from service.usecases.seen import SeenRows
from service.usecases.timeline import Timeline, events_needed, events_with_states, known_of, window_fingerprint
from tests.benchmarks.machine import last_line, median_ms, percentile_ms, table

K, M = 10, 90
SPACE = "0123456789ab"
DTYPES: tuple[StateDtype, ...] = ("float16", "int8")
SIZES, MEMORIES = (64, 128, 896, 4096), (90, 500)
PASTS = (0, 100, 300, 500)
NUM_ITEMS = 20_000
BATCH = 100

Work = Callable[[], Awaitable[Any]]


@dataclass
class World:
    """The parts of a bundle that the store's side of a recommendation needs."""

    bundle: BundleView
    hidden_size: int

    @classmethod
    def make(
        cls, hidden_size: int, dtype: StateDtype = "float16", max_memory: int = M, past_length: int = 0
    ) -> "World":
        """`past_length`: events that the voices read; 0 for a bundle without voices."""
        backbone = BackboneSpec(
            base_model="none", weights_sha256="", split_layer=1, num_layers=2, hidden_size=hidden_size
        )
        manifest = Manifest(
            name="store",
            created_at="",
            backbone=backbone,
            prompt=PromptSpec(recent_length=K),
            memory=MemorySpec(max_elements=max_memory, state_dtype=dtype),
            voices=_voices(past_length) if past_length else None,
            num_items=NUM_ITEMS,
            space=SPACE,
        )
        return cls(BundleView(manifest, _catalogue()), hidden_size)

    def events(self, user_id: str, count: int) -> list[Event]:
        """Items repeat only after `NUM_ITEMS` events. Event ids are as long as derived ones."""
        items = self.bundle.catalogue.items
        return [
            Event(os.urandom(16).hex(), user_id, items[number % NUM_ITEMS].item_id, 1_700_000_000 + 60 * number)
            for number in range(count)
        ]

    def states(self, events: Sequence[Event]) -> UserStates:
        """Random states for the newest K + M events, with the fingerprints of their windows."""
        rows, items = self.bundle.catalogue.rows, self.bundle.catalogue.items
        titles = [items[rows[event.item_id]].title for event in events]
        first = max(0, len(events) - K - self.bundle.manifest.memory.max_elements)
        fingerprints = [window_fingerprint(window_ending_at(titles, at, K)) for at in range(first, len(events))]
        states = np.random.default_rng(0).normal(size=(len(fingerprints), self.hidden_size)).astype(np.float16)
        records = self.bundle.codec.encode_many(states, fingerprints)
        pairs = zip(events[first:], records, strict=True)
        return UserStates(events[0].user_id, {event.event_id: record for event, record in pairs}, keep=len(records))


def _voices(past_length: int) -> VoicesSpec:
    return VoicesSpec(tables=("near",), recent_length=K, past_length=past_length, has_returns=True)


@cache
def _catalogue() -> Catalogue:
    return Catalogue((Item(f"item-{row:06}", f"Title number {row}") for row in range(NUM_ITEMS)), None)


async def take_turns(works: Sequence[Work], repeats: int) -> list[list[float]]:
    """Seconds of each run of each operation. The first three rounds are not counted."""
    laps: list[list[float]] = [[] for _ in works]
    for number in range(repeats + 3):
        for place, work in enumerate(works):
            started = time.perf_counter()
            await work()
            if number >= 3:
                laps[place].append(time.perf_counter() - started)
    return laps


async def put(store: MemoryStore, world: World, user_id: str, num_events: int) -> list[Event]:
    events = world.events(user_id, num_events)
    for start in range(0, num_events, 500):
        await store.append(events[start : start + 500])
    await store.save_states(SPACE, [world.states(events)], events_with_states(world.bundle))
    return events


# ---- bytes


async def capacity(store: MemoryStore, raw: Redis) -> list[dict[str, Any]]:
    """Bytes of all keys of a user with M + K events, as the server counts them."""
    found = []
    for max_memory in MEMORIES:
        for hidden_size in SIZES:
            for dtype in DTYPES:
                await raw.flushall()
                await put(store, World.make(hidden_size, dtype, max_memory), "u", max_memory + K)
                keys = user_keys("u", SPACE)
                sizes = [int(await raw.memory_usage(key, samples=0) or 0) for key in keys]
                total = sum(sizes)
                facts = {"M": max_memory, "D": hidden_size, "dtype": dtype, "states_bytes": sizes[4]}
                found.append(facts | {"log_bytes": total - sizes[4], "bytes": total, "users_per_gib": 2**30 // total})
    return found


# ---- time


async def fetch_and_score(store: MemoryStore, raw: Redis, hidden_size: int, repeats: int) -> dict[str, float]:
    """What /recommend does with memory: round trip, events, states, check of their windows, scores of 90 elements."""
    await raw.flushall()
    world = World.make(hidden_size)
    await put(store, world, "u", K + M)
    torch.manual_seed(0)
    retriever, query = Retriever(hidden_size).eval(), torch.randn(1, hidden_size)
    limit = events_with_states(world.bundle)

    async def fetch() -> Any:
        remembered = (await store.recall_and_seen("u", SPACE, limit)).events
        return Timeline(remembered, world.bundle).memory().states

    async def fetch_then_score() -> None:
        states = torch.from_numpy(await fetch()).float()
        if states.shape != (M, hidden_size):
            raise RuntimeError(f"{len(states)} of {M} elements are valid")
        with torch.inference_mode():
            retriever(query, states[None], torch.ones(1, M))

    both, alone = await take_turns([fetch_then_score, fetch], repeats)
    facts = {"p50_ms": median_ms(both), "p99_ms": percentile_ms(both, 99)}
    return facts | {"fetch_p50_ms": median_ms(alone), "fetch_p99_ms": percentile_ms(alone, 99)}


async def long_histories(store: MemoryStore, raw: Redis, repeats: int) -> dict[str, float]:
    """Time of the store's part of /recommend by length of the history. All items of a history are distinct."""
    await raw.flushall()
    world = World.make(64)
    seen_rows = SeenRows(world.bundle.catalogue)
    limit = events_with_states(world.bundle)

    def remember(user_id: str) -> Work:
        async def work() -> None:
            remembered, _, seen, _ = await store.recall_and_seen(user_id, SPACE, limit)
            Timeline(remembered, world.bundle).memory()
            seen_rows.of(seen, world.bundle.catalogue, 0)

        return work

    counts = (10, 100, 1000, 5000)
    for count in counts:
        await put(store, world, f"u{count}", count)
    laps = await take_turns([remember(f"u{count}") for count in counts], repeats)
    return {f"{count}_events_ms": median_ms(each) for count, each in zip(counts, laps, strict=True)}


async def long_pasts(store: MemoryStore, raw: Redis, repeats: int) -> dict[str, float]:
    """Time of the store's part of /recommend for a user with 1000 events, by the number of events that voices read."""
    await raw.flushall()
    worlds = {length: World.make(64, past_length=length) for length in PASTS}
    await put(store, worlds[0], "u", 1000)

    def remember(world: World) -> Work:
        num_events, num_states = events_needed(world.bundle), events_with_states(world.bundle)

        async def work() -> None:
            remembered = (await store.recall_and_seen("u", SPACE, num_events, num_states=num_states)).events
            known = known_of(remembered, world.bundle, 1_800_000_000)
            if len(known.memory.events) != M:
                raise RuntimeError(f"{len(known.memory.events)} of {M} elements are valid")

        return work

    laps = await take_turns([remember(world) for world in worlds.values()], repeats)
    return {f"past_{length}_ms": median_ms(each) for length, each in zip(worlds, laps, strict=True)}


async def against_floor(store: MemoryStore, raw: Redis, repeats: int) -> dict[str, dict[str, float]]:
    """Our operations and plain commands for the same bytes. D = 896, float16; a batch has events of 20 users."""
    await raw.flushall()
    world = World.make(896)
    events = await put(store, world, "u", K + M)
    states, limit = world.states(events), events_with_states(world.bundle)
    bodies = {event.event_id: encode_event(event) for event in events}
    members = b"".join(order_member(event) for event in events)
    await raw.hset("raw:bodies", mapping=cast(Any, bodies))
    await raw.hset("raw:records", mapping=cast(Any, states.records))
    numbers = iter(range(10**9))

    def batch() -> list[Event]:
        first = next(numbers) * BATCH
        return [Event(f"event {first + at:026}", f"v{at % 20}", f"item-{at:06}", first + at) for at in range(BATCH)]

    async def append() -> None:
        await store.append(batch())

    async def raw_append() -> None:
        pipeline = raw.pipeline(transaction=False)
        by_user: dict[str, dict[str, bytes]] = {}
        for event in batch():
            by_user.setdefault(event.user_id, {})[event.event_id] = encode_event(event) + order_member(event)
        for user_id, fields in by_user.items():
            pipeline.hset(f"raw:{user_id}", mapping=cast(Any, fields))
        await pipeline.execute()

    async def recall() -> None:
        await store.recall("u", SPACE, limit)

    async def raw_recall() -> None:
        pipeline = raw.pipeline(transaction=False)
        pipeline.hmget("raw:bodies", list(bodies))
        pipeline.hmget("raw:records", list(states.records))
        await pipeline.execute()

    async def save() -> None:
        await store.save_states(SPACE, [states], limit)

    async def raw_save() -> None:
        pipeline = raw.pipeline(transaction=False)
        pipeline.hset("raw:records", mapping=cast(Any, states.records))
        await pipeline.execute()

    await raw.set("raw:members", members)
    works = [append, raw_append, recall, raw_recall, save, raw_save]
    medians = [median_ms(laps) for laps in await take_turns(works, repeats)]
    names = ("append_100_events", "recall_100_events_and_states", "save_100_states")
    return {
        name: {"ours_ms": medians[2 * place], "floor_ms": medians[2 * place + 1]} for place, name in enumerate(names)
    }


async def ingest_rate(fsync: str, seconds: float = 2.0) -> float:
    """Events acknowledged per second: batches of 100 events of 20 users, four batches at a time."""
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory), fsync=fsync) as server:
        store = await MemoryStore.connect(server.url)
        done = 0
        ends = time.perf_counter() + seconds

        async def send(lane: int) -> None:
            nonlocal done
            while time.perf_counter() < ends:
                at = range(done, done + BATCH)
                await store.append([Event(f"{lane} {each}", f"u{each % 20}", f"i{each % 500}", each) for each in at])
                done += BATCH

        started = time.perf_counter()
        await asyncio.gather(*(send(lane) for lane in range(4)))
        rate = done / (time.perf_counter() - started)
        await store.close()
    return rate


# ---- run and report


async def measure(repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory)) as server:
        store, raw = await MemoryStore.connect(server.url), Redis.from_url(server.url)
        results = {
            "capacity": await capacity(store, raw),
            "fetch_and_score": {f"D={size}": await fetch_and_score(store, raw, size, repeats) for size in (64, 896)},
            "remember": await long_histories(store, raw, repeats),
            "pasts": await long_pasts(store, raw, repeats),
            "floor": await against_floor(store, raw, repeats),
        }
        await raw.aclose()
        await store.close()
    return results | {"ingest_events_per_s": {fsync: await ingest_rate(fsync) for fsync in ("always", "everysec")}}


def report(results: dict[str, Any]) -> str:
    capacity_rows = [list(row.values()) for row in results["capacity"]]
    scores = [[name, *each.values()] for name, each in results["fetch_and_score"].items()]
    floors = [
        [name.replace("_", " "), each["ours_ms"], each["floor_ms"], each["ours_ms"] / each["floor_ms"]]
        for name, each in results["floor"].items()
    ]
    parts = [
        [["M", "D", "dtype", "states, bytes", "log, bytes", "bytes per user", "users per GiB"], *capacity_rows],
        [["fetch and score 90", "p50 ms", "p99 ms", "fetch p50 ms", "fetch p99 ms"], *scores],
        [["history", "ms"], *([name, value] for name, value in results["remember"].items())],
        [["events for the voices", "ms"], *([name, value] for name, value in results["pasts"].items())],
        [["operation", "ours, ms", "floor, ms", "ratio"], *floors],
        [["fsync", "events per s"], *([name, value] for name, value in results["ingest_events_per_s"].items())],
    ]
    return "\n\n".join(table(rows) for rows in parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300)
    torch.set_num_threads(1)
    results = uvloop.run(measure(parser.parse_args(argv).repeats))
    print(report(results))
    print(last_line("store", results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
