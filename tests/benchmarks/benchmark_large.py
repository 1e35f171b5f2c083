"""A user of a million events: what each use of the user costs the store in one step, and the event loop at once.

A private store, no server and no model. Of each use are measured: its time, the longest command of the store in whole
milliseconds (its latency monitor; 0: less than one), the most processor time that one round trip takes the store (which
hardly depends on other work on the machine; Linux only), and the longest time in which the event loop did not run.
Prints a table and, last, one line of JSON. With a million events two minutes on an idle machine, and 2 GB of memory.

    PYTHONPATH=. python tests/benchmarks/benchmark_large.py [--events 1000000]
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from service.garbage import leave_out_what_is_open
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.events import Event
from service.store.requests import Command
from tests.benchmarks.machine import last_line, table

PER_CALL, PAGE = 500, 500  # events
TICK_S = 0.002


@dataclass
class Cost:
    name: str
    seconds: float
    longest_command_ms: int
    most_processor_ms: float
    longest_stall_ms: float


class Processor:
    """What the main thread of the store computes for each round trip of `store`, one at a time."""

    def __init__(self, store: MemoryStore, server: EmbeddedServer) -> None:
        self._times = Path(f"/proc/{server.pid}/task/{server.pid}/schedstat")
        self._execute, self.most_ms = store._execute, 0.0
        store._execute = self._timed  # type: ignore[method-assign]

    async def _timed(self, commands: Sequence[Command], **options: Any) -> list[Any]:
        before = self._ms()
        answers = await self._execute(commands, **options)
        self.most_ms = max(self.most_ms, self._ms() - before)
        return answers

    def _ms(self) -> float:
        return int(self._times.read_text().split()[0]) / 1e6


@asynccontextmanager
async def measured(name: str, raw: Redis, processor: Processor, costs: list[Cost]) -> AsyncIterator[None]:
    await raw.latency_reset()
    stalls, processor.most_ms = [0.0], 0.0

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            stalls.append(time.perf_counter() - before - TICK_S)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    ticking.cancel()
    events = {each[0]: each[3] for each in await raw.latency_latest()}
    longest = max(int(events.get(name, 0)) for name in (b"command", b"fast-command"))
    costs.append(Cost(name, seconds, longest, processor.most_ms, 1000 * max(stalls)))


def event(number: int) -> Event:
    return Event(f"e{number}", "u", f"i{number % 50_000}", 1_000_000_000 + number)


async def pages(store: MemoryStore) -> int:
    """Reads all events, as the export of the user does."""
    total, cursor, is_first = 0, None, True
    while is_first or cursor is not None:
        page, cursor = await store.events("u", before=cursor, limit=PAGE)
        total, is_first = total + len(page), False
    return total


async def sort_again(store: MemoryStore, raw: Redis) -> None:
    """What the first reader after another table of event types has to wait for."""
    await raw.hdel("automr:{u}:facts", "table")
    await store.recall("u", "s", 1)


async def run(num_events: int, directory: Path) -> list[Cost]:
    costs: list[Cost] = []
    leave_out_what_is_open()  # as the service does; else a full collection is the longest stall of all
    with EmbeddedServer(directory, fsync="everysec") as server:
        store = await MemoryStore.connect(server.url, timeout_s=60)
        processor = Processor(store, server)
        async with Redis.from_url(server.url) as raw:
            await raw.config_set("latency-monitor-threshold", 1)
            async with measured(f"store {num_events:,} events, {PER_CALL} a call", raw, processor, costs):
                for start in range(0, num_events, PER_CALL):
                    await store.append([event(number) for number in range(start, min(start + PER_CALL, num_events))])
            uses: dict[str, Callable[[], Awaitable[object]]] = {
                "one more event": lambda: store.append([event(num_events)]),
                "what a recommendation reads": lambda: store.recall_and_seen("u", "s", 60),
                "one page of 500": lambda: store.events("u", limit=PAGE),
                "correct the oldest event": lambda: store.replace(event(0)._replace(item_id="another")),
                "delete one event": lambda: store.forget_event("u", "e1"),
                "sort again by another table of event types": lambda: sort_again(store, raw),
                "read all, page by page (export)": lambda: pages(store),
                "delete the user": lambda: store.forget_user("u"),
            }
            for name, use in uses.items():
                async with measured(name, raw, processor, costs):
                    await use()
            assert not [key async for key in raw.scan_iter("automr:{u}:*")], "something of the user is left"
        await store.close()
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description="What a user of very many events costs.")
    parser.add_argument("--events", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="automr-large-") as name:
        costs = asyncio.run(run(args.events, Path(name)))
    heading = ["use", "seconds", "longest command, ms", "most processor time, ms", "longest stall of the loop, ms"]
    rows = [list(vars(each).values()) for each in costs]
    print(table([heading, *rows]))
    print(last_line("large user", {"events": args.events, "uses": {each.name: vars(each) for each in costs}}))


if __name__ == "__main__":
    main()
