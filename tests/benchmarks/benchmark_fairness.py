"""What one loud caller costs a quiet one: a key asks steadily for recommendations while another key floods the server.

    python tests/benchmarks/benchmark_fairness.py [--bundle DIR] [--rounds 6] [--seconds 5] [--rate 20]
        [--quiet recommendations|"related items"|"popular items"|"searched items"|users] [--only NAME ...]

Phases alternate, so that other work on the machine hits all of them: the quiet key alone; beside a flood of
recommendations; beside floods of new events, of single new events, of events that are stored already, of events whose
memory is waited for, of large bodies that are refused, and of each kind of lists. The goal: the quiet key's p99 is at
most twice that without a flood (the median of the rounds).
`--quiet`: what the quiet key asks for. Ends with a table and one JSON line.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from service.identity.keys import new_secret
from service.store.embedded.server import EmbeddedServer
from tests.benchmarks.load import Load, Outcome, generate
from tests.benchmarks.machine import last_line, percentile_ms, table
from tests.benchmarks.serving import Server, demo_events, ingest, running_server, wait_until_encoded

ROOT = Path(__file__).resolve().parents[2]
QUIET, LOUD = new_secret(), new_secret()
NUM_READERS, NUM_WRITERS, NUM_SINGLE = 64, 4, 32
EVENTS_PER_POST, NUM_POSTS = 200, 400
NUM_UNKNOWN, NUM_LISTS = 75_000, 25_000  # fields and lists of wrong bodies
LEAD_S = 0.5
PAUSE_S = 0.05  # after a refusal, a twentieth of what is asked for: more would take the processors from the server

Floods = dict[str, Callable[[], Load | None]]


def lists(items: Sequence[str]) -> dict[str, list[str]]:
    """Paths of lists, by name."""
    return {
        "related items": [f"/items/{quote(item, safe='')}/related?k=100" for item in items],
        "popular items": ["/popular?k=100", "/trending?k=100", "/latest?k=100"],
        "searched items": ["/items?query=a&limit=500", "/items?query=the&limit=500"],
        "users": ["/users?limit=500", "/users?prefix=nobody"],
    }


def floods(port: int, users: Sequence[str], items: Sequence[str], seconds: float) -> Floods:
    """What the loud key sends, by name. Each call makes new events."""
    numbers = itertools.count()

    def loud(path: str, bodies: list[dict[str, Any]], num_clients: int) -> Load:
        return Load(port, path, bodies, seconds + 2 * LEAD_S, num_clients, key=LOUD, pause_s=PAUSE_S)

    def events(count: int) -> list[dict[str, Any]]:
        now, places = int(time.time()) - 1000, [next(numbers) for _ in range(count)]
        facts = [(f"flood-{place % 500}", items[place % len(items)], f"f{place}") for place in places]
        return [{"user_id": user, "item_id": item, "event_id": name, "timestamp": now} for user, item, name in facts]

    def posts(count: int, size: int) -> list[dict[str, Any]]:
        return [{"interactions": events(size)} for _ in range(count)]

    def reads(gets: list[str]) -> Load:
        return replace(loud("", [], NUM_READERS), gets=gets)

    repeated = posts(4, EVENTS_PER_POST)
    wrong: list[dict[str, Any]] = [{str(number): 0 for number in range(NUM_UNKNOWN)}, {"filter": [[]] * NUM_LISTS}]
    return {
        "no flood": lambda: None,
        "recommendations": lambda: loud("/recommend", [{"user_id": user, "k": 10} for user in users], NUM_READERS),
        "batches of events": lambda: loud("/interactions", posts(NUM_POSTS, EVENTS_PER_POST), NUM_WRITERS),
        "single events": lambda: loud("/interactions", posts(20_000, 1), NUM_SINGLE),
        "duplicates": lambda: loud("/interactions", repeated, NUM_WRITERS),
        "visible events": lambda: loud(
            "/interactions", [{"wait": "visible"} | post for post in posts(9999, 1)], NUM_SINGLE
        ),
        "wrong bodies": lambda: loud("/recommend", wrong, NUM_WRITERS),
        **{name: partial(reads, gets) for name, gets in lists(items).items()},
    }


def beside(flood: Load | None, quiet: Load) -> tuple[Outcome, Outcome]:
    """What the quiet key and the loud one saw."""
    found: list[Outcome] = []
    if flood is None:
        return generate(quiet), Outcome(elapsed_s=1.0)
    thread = threading.Thread(target=lambda: found.append(generate(flood)))
    thread.start()
    outcome = generate(quiet)
    thread.join()
    return outcome, found[0]


def measure(
    bundle: Path, rounds: int, seconds: float, *, rate: float, names: Sequence[str], asks_for: str
) -> dict[str, Any]:
    known = demo_events(bundle)
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory)) as store:
        with running_server(bundle, store_url=store.url) as server:  # without keys
            ingest(server, known, size=500)
            wait_until_encoded(server)
        with running_server(bundle, store_url=store.url, AUTOMR_API_KEYS=f"{QUIET},{LOUD}") as server:
            users = sorted({event["user_id"] for event in known})[:100]
            items = sorted({event["item_id"] for event in known})
            bodies = [{"user_id": user, "k": 10} for user in users]
            quiet = Load(server.port, "/recommend", bodies, seconds, rate=rate, lead_s=LEAD_S, key=QUIET)
            quiet = replace(quiet, gets=lists(items).get(asks_for, []))
            return _phases(server, quiet, floods(server.port, users, items, seconds), rounds, names)


def _phases(server: Server, quiet: Load, made: Floods, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    phases: dict[str, list[dict[str, Any]]] = {name: [] for name in made if not names or name in names}
    for _ in range(rounds):
        for name, row in phases.items():
            seen, sent = beside(made[name](), quiet)
            row.append({
                "p50_ms": percentile_ms(seen.answered_s, 50), "p99_ms": percentile_ms(seen.answered_s, 99),
                "refused": len(seen.refused_s) + seen.lost, "fallbacks": sum(seen.fallbacks.values()),
                "flood_per_s": len(sent.answered_s) / sent.elapsed_s, "flood_refused": len(sent.refused_s),
            })  # fmt: skip
            wait_until_encoded(server)
    return {name: _over_rounds(row, phases["no flood"]) for name, row in phases.items()}


def _over_rounds(rows: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = {name: statistics.median(row[name] for row in rows) for name in ("p50_ms", "p99_ms", "flood_per_s")}
    found |= {name: sum(row[name] for row in rows) for name in ("refused", "fallbacks", "flood_refused")}
    for name in ("p50_ms", "p99_ms"):
        ratios = [row[name] / base[name] for row, base in zip(rows, alone, strict=True)]
        found[name.replace("ms", "ratio")] = round(statistics.median(ratios), 2)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "model_store/bundles/demo")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second of the quiet key")
    kinds = ("recommendations", *lists([]))
    parser.add_argument("--quiet", choices=kinds, default=kinds[0], help="what the quiet key asks for")
    parser.add_argument("--only", nargs="*", default=[], help="names of phases")
    args = parser.parse_args()
    found = measure(args.bundle, args.rounds, args.seconds, rate=args.rate, names=args.only, asks_for=args.quiet)
    columns = ("p50_ms", "p99_ms", "p50_ratio", "p99_ratio", "refused", "fallbacks", "flood_per_s", "flood_refused")
    print(table([("beside", *columns), *((name, *(row[column] for column in columns)) for name, row in found.items())]))
    print(last_line("fairness", found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
