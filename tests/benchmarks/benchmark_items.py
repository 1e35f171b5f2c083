"""What a change of an item costs while very many items have changed: two replicas on one store.

Writes `--live` new items into the store, then starts two servers. Measured: start to ready without and with these
items, how long the model then reads their titles, and `/recommend` meanwhile; the time of a PATCH of attributes, of a
PUT of a new item and of a PUT of a new title; how long until the other replica knows; how long the event loop of each
replica was held up (the longest time of one `/livez`, asked all the time by a thread of its own); `/recommend` on the
other replica without changes and with one change a second.
Prints a table and, last, one line of JSON.

    python tests/benchmarks/benchmark_items.py --bundle model_store/bundles/demo [--live 100000] [--seconds 30]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_store.catalogue.items import Item
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.overlay import NewRecord
from service.usecases.records import Change
from tests.benchmarks.benchmark_catalogue import titles_of
from tests.benchmarks.machine import last_line, table
from tests.benchmarks.serving import Server, running_server

NUM_CHANGES = 40


def live_items(num_items: int) -> list[Item]:
    titles = titles_of(num_items, np.random.default_rng(0))
    return [
        Item(f"live-{row}", f"{title} {row}", 0, {"shelf": f"s{row % 1000}", "price": row % 700, "new": row % 2 == 0})
        for row, title in enumerate(titles)
    ]


async def fill(url: str, items: Sequence[Item]) -> None:
    store = await MemoryStore.connect(url, timeout_s=30)
    for start in range(0, len(items), 1000):
        records = [NewRecord(item.item_id, Change(item).to_record()) for item in items[start : start + 1000]]
        await store.put_items(records, loaded=0)
    await store.close()


class Stalls:
    """The longest gap between two answers of `/livez` while the block runs."""

    def __init__(self, server: Server) -> None:
        self._server = Server(server.port, server.pid, server.store_url)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.gaps_ms: list[float] = []

    def __enter__(self) -> "Stalls":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ends.is_set():
            started = time.perf_counter()
            self._server.ask("GET", "/livez")
            self.gaps_ms.append(1000 * (time.perf_counter() - started))
            time.sleep(0.002)


def until_filled(server: Server) -> None:
    """Until the model of the server knows all items."""
    while True:
        status, body = server.ask("GET", "/readyz")  # not ready while a busy machine's store is slow
        if status == 200 and not json.loads(body)["items_waiting"]:
            return
        time.sleep(0.2)


def timed_ms(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def changes(server: Server, other: Server, num_live: int) -> dict[str, float]:
    """Medians, one change after the other; `lag_s`: the largest time until the other replica had a new title."""

    def put(item_id: str, title: str) -> None:
        status, body = server.ask("PUT", f"/items/{item_id}", {"title": title, "attributes": {"shelf": "s1"}})
        assert status == 200, body

    def patch(number: int) -> None:
        body = {"attributes": {"price": 10_000 + number}}
        assert server.ask("PATCH", f"/items/live-{number * 7 % num_live}", body)[0] == 200

    patched = [timed_ms(lambda n=number: patch(n)) for number in range(NUM_CHANGES)]  # type: ignore[misc]
    added = [timed_ms(lambda n=number: put(f"added-{n}", f"w{n} w{n + 1} added")) for number in range(NUM_CHANGES)]  # type: ignore[misc]
    titled = [timed_ms(lambda n=number: put(f"live-{n}", f"w{n} another title")) for number in range(NUM_CHANGES)]  # type: ignore[misc]
    lags = []
    for number in range(5):
        put(f"lag-{number}", f"w{number} lag")
        started = time.perf_counter()
        while other.ask("GET", f"/items/lag-{number}")[0] != 200:
            time.sleep(0.02)
        lags.append(time.perf_counter() - started)
    return {
        "patch_ms": float(np.median(patched)),
        "new_item_ms": float(np.median(added)),
        "new_title_ms": float(np.median(titled)),
        "lag_s": max(lags),
    }


def recommend_ms(server: Server, seconds: float, change: Callable[[int], Any] | None) -> tuple[float, float]:
    """p50 and p99 of one request after the other; `change` is called each second."""
    ends, next_at, number = time.perf_counter() + seconds, time.perf_counter(), 0
    times: list[float] = []
    body = {"recent": [{"item_id": "live-1"}, {"item_id": "live-2"}], "k": 10}
    while time.perf_counter() < ends:
        if change is not None and time.perf_counter() >= next_at:
            threading.Thread(target=change, args=(number,)).start()
            next_at, number = next_at + 1, number + 1
        times.append(timed_ms(lambda: server.post("/recommend", body)))
    return float(np.percentile(times, 50)), float(np.percentile(times, 99))


def measure(bundle: Path, num_live: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory)) as store:
        found: dict[str, Any] = {"live": num_live}
        started = time.perf_counter()
        with running_server(bundle, store_url=store.url):
            found["ready_without_s"] = time.perf_counter() - started
        asyncio.run(fill(store.url, live_items(num_live)))
        started = time.perf_counter()
        with running_server(bundle, store_url=store.url) as server:
            ready = time.perf_counter()
            found["ready_with_s"] = ready - started
            found["filling_p50_ms"], found["filling_p99_ms"] = recommend_ms(server, seconds / 2, None)
            until_filled(server)
            found["filled_after_s"] = time.perf_counter() - ready
            with running_server(bundle, store_url=store.url) as other:
                until_filled(other)
                time.sleep(5)  # what is left to do after the start
                with Stalls(server) as own, Stalls(other) as far:
                    found |= changes(server, other, num_live)
                found |= {"stall_ms": max(own.gaps_ms), "other_stall_ms": max(far.gaps_ms)}
                found["idle_p50_ms"], found["idle_p99_ms"] = recommend_ms(other, seconds, None)

                def change(number: int) -> None:
                    writer = Server(server.port, server.pid, server.store_url)  # a slow change may overlap the next one
                    writer.ask("PUT", f"/items/second-{number}", {"title": f"w{number} each second"})

                found["changing_p50_ms"], found["changing_p99_ms"] = recommend_ms(other, seconds, change)
        return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--live", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    args = parser.parse_args(argv)
    found = measure(args.bundle, args.live, args.seconds)
    print(table([["measure", "value"], *found.items()]))
    print(last_line("items", found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
