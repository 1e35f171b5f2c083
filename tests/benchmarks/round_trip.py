"""Events of all types go in by HTTP and by `service import`, come out by `export`, are trained on, and are served.

In: a bundle, an empty store, a number of events. Out: the numbers of events at each place, which must be the same, and
the seconds of each step. A test runs it with few events.

    python tests/benchmarks/round_trip.py --bundle model_store/bundles/demo [--events 50000]
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from model_store.event_types import EventTypes
from model_store.view import BundleView
from service.commands import import_file
from service.export.dataset import export
from service.store.embedded.server import EmbeddedServer
from tests.benchmarks.machine import last_line, table
from tests.service.real import open_app, open_service
from tests.training.small import TINY
from training.data.dataset import load_dataset
from training.pipeline import main as train
from training.run import recipes

AT_ONCE, EVENTS_OF_A_USER = 500, 50
NOW = 1_700_000_000
Counts = Counter[tuple[str, str]]  # (user, type) → events


class Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def events(item_ids: Sequence[str], number: int) -> list[dict[str, Any]]:
    """Of all types of the table and one that it does not name, and a tenth of them with a query."""
    rng, kinds = random.Random(0), [*EventTypes().types, "a word of ours"]
    return [
        {
            "event_id": f"e{place}",
            "user_id": f"u{place % max(number // EVENTS_OF_A_USER, 3)}",
            "item_id": rng.choice(item_ids),
            "timestamp": NOW + 60 * place,
            "type": kinds[place * 7 % len(kinds)],
            "value": float(1 + place % 5) if kinds[place * 7 % len(kinds)] == "rating" else None,
            "query": "something to read" if place % 10 == 0 else None,
        }
        for place in range(number)
    ]


def counted(rows: Iterator[dict[str, Any]]) -> Counts:
    return Counter((row["user_id"], row["type"]) for row in rows)


async def round_trip(bundle: Path, store_url: str, directory: Path, *, number: int, recipe: str) -> dict[str, Any]:
    """Raises AssertionError where an event was lost, changed or made. Needs an empty store."""
    clock, posts = Clock(), list[float]()
    item_ids = [item.item_id for item in BundleView.open_view(bundle).catalogue.items]
    sent = events(item_ids, number)
    expected, half = counted(iter(sent)), number // 2
    async with open_app(bundle, store_url, store_timeout_s=30) as (_, client):
        for start in range(0, half, AT_ONCE):
            began = time.perf_counter()
            for _ in range(1 + (start == 0)):  # the first part is sent twice, as a client that heard no answer does
                body = {"interactions": sent[start : min(start + AT_ONCE, half)]}
                while (answer := await client.post("/interactions", json=body)).status_code == 503:
                    await asyncio.sleep(1)  # the store of a busy machine is slow; it is safe to send again
                assert answer.status_code == 202, answer.text
            posts.append(time.perf_counter() - began)
    clock.lap("http_s")
    file = directory / "events.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in sent[half:]))
    async with open_service(bundle, store_url, store_timeout_s=30) as service:
        assert await import_file(service.ingest.submit, file) == number - half
        clock.lap("import_s")
        await export(service.store, service.view.catalogue.items, directory / "out", service.view.event_types)
    clock.lap("export_s")
    rows = pq.read_table(directory / "out/interactions.parquet").to_pylist()
    assert counted(iter(rows)) == expected, "the export has other events than were sent"
    wanted = {(event["event_id"], event["item_id"], event["timestamp"], event["value"]) for event in sent}
    assert {(row["event_id"], row["item_id"], row["timestamp"], row["rating"]) for row in rows} == wanted
    found = load_dataset(directory / "out")
    assert found.interactions.height == number and found.items.height == len(item_ids)
    assert found.queries is not None and found.queries.height == sum(event["query"] is not None for event in sent)
    options = ["--data", directory / "out", "--out", directory / "trained", "--device", "cpu", "--recipe", recipe]
    assert await asyncio.to_thread(train, list(map(str, options))) == 0
    clock.lap("train_s")
    served: Counts = Counter()
    async with open_app(directory / "trained", store_url, store_timeout_s=30) as (_, client):
        for user in sorted({event["user_id"] for event in sent}):
            lines = (await client.get(f"/users/{user}/export")).text.splitlines()
            served += Counter((user, json.loads(line)["type"]) for line in lines)
            page = (await client.get(f"/users/{user}")).json()
            assert page["counts"]["events"] == len(lines), f"{user} has another number of events"
        answer = await client.post("/recommend", json={"user_id": "u0", "k": 5, "exclude_seen": False})
        assert answer.json()["fallback"] is None and len(answer.json()["items"]) == 5, answer.text
    clock.lap("serve_s")
    assert served == expected, "the service has other events than were sent"
    counts = {"sent": number, "exported": len(rows), "trained": found.interactions.height, "served": served.total()}
    tenth = max(1, len(posts) // 10)
    slowest = {
        "first_posts_s": sum(posts[1 : tenth + 1]) / len(posts[1 : tenth + 1] or [0]),
        "last_posts_s": sum(posts[-tenth:]) / tenth,
    }
    return counts | clock.seconds | slowest


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--recipe", default="tiny", help="of training, or `tiny`, the one of the tests")
    args = parser.parse_args(argv)
    recipes.RECIPES.setdefault("tiny", TINY)
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(Path(name) / "store") as store:
        found = asyncio.run(round_trip(args.bundle, store.url, Path(name), number=args.events, recipe=args.recipe))
    print(table([["measure", "value"], *found.items()]))
    print(last_line("round_trip", found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
