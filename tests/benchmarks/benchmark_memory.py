"""What memory costs a request: users with long histories, against the same users with the newest K events only.

Starts a real server process on a bundle (default: the demo's) with a store of its own, and sends it the events of the
users with the longest histories twice: all of them, and as another user only those of the window. The second user has
no memory: neither states nor older events that vote. The two requests of a pair ask for the same items at the same
time, right after each other. Prints a table and, last, one line of JSON. Half a minute.

    python tests/benchmarks/benchmark_memory.py [--bundle DIR] [--events FILE] [--users 50] [--pairs 300]
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_store.files import read_manifest
from tests.benchmarks.machine import last_line, median_ms, table
from tests.benchmarks.serving import ROOT, Server, ingest, running_server, wait_until_encoded

Events = list[dict[str, Any]]
KINDS = ("memory", "window")
_DAY = 86_400
_WARM_UP = 20  # pairs


def longest_histories(file: Path, num_users: int) -> dict[str, Events]:
    """The events of the users who have most of them, each oldest first. `file` has one event per line, as JSON."""
    found: dict[str, Events] = {}
    for line in file.read_text().splitlines():
        event = json.loads(line)
        found.setdefault(event["user_id"], []).append(event)
    users = sorted(found, key=lambda user_id: (-len(found[user_id]), user_id))[:num_users]
    return {user_id: sorted(found[user_id], key=lambda event: int(event["timestamp"])) for user_id in users}


def send_twice(server: Server, histories: Mapping[str, Events], recent_length: int) -> None:
    for user_id, events in histories.items():
        for kind, part in zip(KINDS, (events, events[-recent_length:]), strict=True):
            ingest(server, [{**event, "user_id": f"{kind}-{user_id}"} for event in part], size=500)
    wait_until_encoded(server)


def paired_requests(server: Server, histories: Mapping[str, Events], num_pairs: int) -> dict[str, Any]:
    """The users take turns, and so does the order of a pair. Raises RuntimeError if an answer is a fallback."""
    users = list(histories)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    stages: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    for number in range(_WARM_UP + num_pairs):
        user_id = users[number % len(users)]
        now = int(histories[user_id][-1]["timestamp"]) + _DAY
        for kind in KINDS if number % 2 else reversed(KINDS):
            body = {"user_id": f"{kind}-{user_id}", "k": 10, "exclude_seen": False, "timestamp": now}
            started = time.perf_counter()
            answer = server.post("/recommend", body)
            taken = time.perf_counter() - started
            if answer["fallback"] is not None:
                raise RuntimeError(f"{kind}-{user_id}: fallback {answer['fallback']}")
            if number >= _WARM_UP:
                seconds[kind].append(taken)
                for stage, milliseconds in answer["timings_ms"].items():
                    stages[kind].setdefault(stage, []).append(milliseconds)
    return {
        "events": statistics.median(len(events) for events in histories.values()),
        "p50_ms": {kind: median_ms(laps) for kind, laps in seconds.items()},
        "stages_p50_ms": {
            kind: {stage: statistics.median(laps) for stage, laps in own.items()} for kind, own in stages.items()
        },
        "ratio": statistics.median(
            memory / window for memory, window in zip(seconds["memory"], seconds["window"], strict=True)
        ),
    }


def measure(bundle: Path, events: Path, *, num_users: int, num_pairs: int) -> dict[str, Any]:
    histories = longest_histories(events, num_users)
    with running_server(bundle) as server:
        send_twice(server, histories, read_manifest(bundle).prompt.recent_length)
        return paired_requests(server, histories, num_pairs)


def rows_of(result: Mapping[str, Any]) -> list[tuple[object, ...]]:
    stages = {kind: result["stages_p50_ms"][kind] for kind in KINDS}
    return [
        (f"p50, ms; {result['events']:.0f} events", *KINDS),
        ("/recommend", *(result["p50_ms"][kind] for kind in KINDS)),
        *((f"  {stage}", *(stages[kind].get(stage) for kind in KINDS)) for stage in stages["memory"]),
        ("median ratio of a pair", result["ratio"], None),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "model_store" / "bundles" / "demo")
    parser.add_argument("--events", type=Path, help="JSON lines with user_id, item_id, timestamp (default: the demo's)")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=300)
    arguments = parser.parse_args(argv)
    events = arguments.events or arguments.bundle / "demo-interactions.jsonl"
    result = measure(arguments.bundle, events, num_users=arguments.users, num_pairs=arguments.pairs)
    print(table(rows_of(result)))
    print(last_line("memory", result))


if __name__ == "__main__":
    main()
