"""The service as clients see it: latency of /recommend alone and under load, ingest, lag, bytes, memory of the server.

Starts a real server process on a bundle (default: the demo's) with a store of its own. Requests under load come from a
process of their own (`load.py`). Prints tables and, last, one line of JSON. About two minutes.

    python tests/benchmarks/benchmark_service.py [--bundle DIR] [--requests 300]
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_store.files import read_manifest
from model_store.manifest import Manifest
from tests.benchmarks.load import Load, Outcome, generate
from tests.benchmarks.machine import last_line, median_ms, percentile_ms, table
from tests.benchmarks.overload import offer
from tests.benchmarks.serving import (
    ROOT,
    Server,
    bytes_per_element,
    demo_events,
    ingest,
    quantile_between,
    running_server,
    wait_until_encoded,
)

ENGINE_STAGES = ("encode", "retrieve", "generate", "ground")
CLIENTS = (1, 4, 16, 64)
ROUNDS = 3  # each with all numbers of clients in turn, so that other load on the machine hits all of them
ROUND_S = 2.0
OVERLOAD_S = 6.0
DEADLINE_MS = 500
LONG_HISTORY, SHORT_HISTORY = 5000, 10
LAG_S = 10.0
LAG_USERS, BURST_POSTS = 200, 100
EVENTS_PER_POST = 20
NOW = 1_750_000_000

Events = list[dict[str, Any]]


def alone(server: Server, users: Sequence[str], num_requests: int) -> dict[str, Any]:
    """One client, one request after the other. Overhead: time of the client minus time of the engine's stages."""
    seconds, overheads = [], []
    stages: dict[str, list[float]] = {}
    for number in range(num_requests):
        started = time.perf_counter()
        answer = server.post("/recommend", {"user_id": users[number % len(users)], "k": 10})
        seconds.append(time.perf_counter() - started)
        timings = answer["timings_ms"]
        overheads.append(1000 * seconds[-1] - sum(timings.get(stage, 0.0) for stage in ENGINE_STAGES))
        for stage, milliseconds in timings.items():
            stages.setdefault(stage, []).append(milliseconds)
    return {
        "p50_ms": median_ms(seconds),
        "p99_ms": percentile_ms(seconds, 99),
        "overhead_p50_ms": statistics.median(overheads),
        "stages_p50_ms": {stage: statistics.median(laps) for stage, laps in stages.items()},
    }


def history(user_id: str, length: int, items: Sequence[str], start: int = NOW) -> Events:
    return [
        {"user_id": user_id, "item_id": items[place % len(items)], "timestamp": start + place}
        for place in range(length)
    ]


def long_against_short(server: Server, items: Sequence[str], num_pairs: int) -> dict[str, Any]:
    """Recommendations for two users in turn, who have the same newest items.

    Seen items are not excluded, so both requests rank the same items.
    """
    lengths = {"long": LONG_HISTORY, "short": SHORT_HISTORY}
    for user_id, length in lengths.items():
        ingest(server, history(user_id, LONG_HISTORY, items)[-length:], size=500)
    wait_until_encoded(server)
    seconds: dict[str, list[float]] = {user_id: [] for user_id in lengths}
    for _ in range(num_pairs):
        for user_id, laps in seconds.items():
            started = time.perf_counter()
            server.post("/recommend", {"user_id": user_id, "k": 10, "exclude_seen": False})
            laps.append(time.perf_counter() - started)
    return {
        "long_p50_ms": median_ms(seconds["long"]),
        "short_p50_ms": median_ms(seconds["short"]),
        "ratio": statistics.median(seconds["long"]) / statistics.median(seconds["short"]),
    }


def saturated(server: Server, bodies: Events) -> dict[str, Any]:
    """Closed loops with growing numbers of clients: medians over rounds, and throughput relative to one client."""
    generate(Load(server.port, "/recommend", bodies, 1.0, num_clients=16))  # warm
    before = server.metrics()
    rounds = [
        {clients: generate(Load(server.port, "/recommend", bodies, ROUND_S, clients)) for clients in CLIENTS}
        for _ in range(ROUNDS)
    ]
    after = server.metrics()
    found = {str(clients): _over_rounds([outcomes[clients] for outcomes in rounds]) for clients in CLIENTS}
    for clients in CLIENTS:
        ratios = [outcomes[clients].rate / outcomes[1].rate for outcomes in rounds]
        found[str(clients)]["against_one"] = statistics.median(ratios)
    jobs, batches = (after[f"batch_size_{part}"] - before[f"batch_size_{part}"] for part in ("sum", "count"))
    return {**found, "mean_batch": jobs / batches}


def _over_rounds(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "per_s": statistics.median(outcome.rate for outcome in outcomes),
        "p50_ms": statistics.median(percentile_ms(outcome.answered_s, 50) for outcome in outcomes),
        "p99_ms": statistics.median(percentile_ms(outcome.answered_s, 99) for outcome in outcomes),
        **_kinds(outcomes),
    }


def _kinds(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Numbers of requests by status, of fallbacks by reason, and of requests without an answer."""
    statuses, fallbacks = Counter[str](), Counter[str]()
    for outcome in outcomes:
        statuses.update(outcome.statuses)
        fallbacks.update(outcome.fallbacks)
    return {"statuses": dict(statuses), "fallbacks": dict(fallbacks), "lost": sum(each.lost for each in outcomes)}


def overloaded(server: Server, bodies: Events, rate: float) -> dict[str, Any]:
    """Twice as many requests as the service can answer, each with a deadline (`overload.py`)."""
    outcome = offer(server.port, bodies, rate=2 * rate, deadline_ms=DEADLINE_MS, seconds=OVERLOAD_S)
    refused = outcome.refused_s or [0.0]
    return {
        "offered_per_s": 2 * rate,
        "per_s": outcome.rate,
        "good_per_s": outcome.good_rate,
        "send_lag_p99_ms": percentile_ms(outcome.lags_s, 99),
        "p50_ms": percentile_ms(outcome.answered_s, 50),
        "p99_ms": percentile_ms(outcome.answered_s, 99),
        "refused_p99_ms": percentile_ms(refused, 99),
        "deadline_ms": DEADLINE_MS,
        **_kinds([outcome]),
    }


def encoding(server: Server, items: Sequence[str]) -> dict[str, Any]:
    """Events of many users in small posts: how many per second become memory, then the lag at half that rate."""
    for user in range(LAG_USERS):
        ingest(server, history(f"lag-{user}", 20, items), size=500)
    wait_until_encoded(server)
    burst = _posts(items, BURST_POSTS, NOW + 1000)
    started = time.perf_counter()
    for body in burst:
        server.post("/interactions", body)
    wait_until_encoded(server)
    capacity = EVENTS_PER_POST * len(burst) / (time.perf_counter() - started)
    rate = capacity / 2 / EVENTS_PER_POST
    posts = _posts(items, 2 * round(LAG_S * rate) + 2, NOW + 100_000)
    before = server.metrics()
    outcome = generate(Load(server.port, "/interactions", posts, LAG_S, rate=rate))
    wait_until_encoded(server)
    after = server.metrics()
    name = "ingest_visible_lag_seconds"
    return {
        "capacity_events_per_s": capacity,
        "offered_events_per_s": EVENTS_PER_POST * len(outcome.answered_s) / outcome.elapsed_s,
        "visible_p50_ms": 1000 * quantile_between(before, after, name, 0.5),
        "visible_p99_ms": 1000 * quantile_between(before, after, name, 0.99),
        **_kinds([outcome]),
    }


def _posts(items: Sequence[str], num_posts: int, start: int) -> Events:
    """Bodies with `EVENTS_PER_POST` events each. The users take turns."""
    events = [
        {"user_id": f"lag-{number % LAG_USERS}", "item_id": items[number % len(items)], "timestamp": start + number}
        for number in range(num_posts * EVENTS_PER_POST)
    ]
    starts = range(0, len(events), EVENTS_PER_POST)
    return [{"interactions": events[place : place + EVENTS_PER_POST]} for place in starts]


def measure(bundle: Path, num_requests: int) -> dict[str, Any]:
    manifest, events = read_manifest(bundle), demo_events(bundle)
    counts = Counter(event["user_id"] for event in events)
    users, items = sorted(counts), sorted({event["item_id"] for event in events})
    bodies = [{"user_id": user_id, "k": 10} for user_id in users]
    with running_server(bundle) as server:
        ingest(server, events)
        wait_until_encoded(server)
        alone(server, users, len(users))  # warm
        result: dict[str, Any] = {"alone": alone(server, users, num_requests)}
        result["saturated"] = saturated(server, bodies)
        best = max(result["saturated"][str(clients)]["per_s"] for clients in CLIENTS)
        result["overloaded"] = overloaded(server, bodies, best)
        result["history"] = long_against_short(server, items, num_requests // 4)
        result["ingest_events_per_s"] = ingest(server, history("many", 3000, items))
        wait_until_encoded(server)
        result["encoding"] = encoding(server, items)
        return {**result, **sizes(server, manifest, counts.most_common(1)[0][0])}


def sizes(server: Server, manifest: Manifest, user_id: str) -> dict[str, Any]:
    return {
        "bytes_per_element": asyncio.run(bytes_per_element(server.store_url, manifest.space, user_id)),
        "server_mib": server.resident_mib,
    }


def figures(result: dict[str, Any]) -> list[tuple[object, ...]]:
    one, histories, lag = (result[name] for name in ("alone", "history", "encoding"))
    return [
        ("one client, one request at a time", "p50", "p99", ""),
        ("/recommend", one["p50_ms"], one["p99_ms"], "ms"),
        *((f"  {stage}", laps, None, "ms") for stage, laps in one["stages_p50_ms"].items()),
        ("  overhead: client's time minus engine's time", one["overhead_p50_ms"], None, "ms"),
        (f"  user with {LONG_HISTORY} events", histories["long_p50_ms"], None, "ms"),
        (f"  user with {SHORT_HISTORY} events", histories["short_p50_ms"], None, "ms"),
        ("  ratio of the two", histories["ratio"], None, "×"),
        ("/interactions by 100, fsynced", result["ingest_events_per_s"], None, "events/s"),
        ("events encoded as memory, at most", lag["capacity_events_per_s"], None, "events/s"),
        (
            f"event visible as memory, at {lag['offered_events_per_s']:.0f} events/s",
            lag["visible_p50_ms"],
            lag["visible_p99_ms"],
            "ms",
        ),
        ("memory element in the store", result["bytes_per_element"], None, "bytes"),
        ("server processes, resident", result["server_mib"], None, "MiB"),
    ]


def loads(result: dict[str, Any]) -> list[tuple[object, ...]]:
    over = result["overloaded"]
    name = f"{over['offered_per_s']:.0f}/s, deadline {over['deadline_ms']} ms"
    kinds = ("200", "429")
    return [
        ("load", "answers/s", "× one", "p50 ms", "p99 ms", *kinds, "fallbacks", "lost"),
        *((f"{clients} clients", *_cells(result["saturated"][str(clients)], kinds)) for clients in CLIENTS),
        (name, *_cells(over, kinds)),
    ]


def _cells(found: dict[str, Any], kinds: Sequence[str]) -> tuple[object, ...]:
    measured = [found.get(name) for name in ("per_s", "against_one", "p50_ms", "p99_ms")]
    counted = [found["statuses"].get(kind, 0) for kind in kinds]
    return (*measured, *counted, sum(found["fallbacks"].values()), found["lost"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "model_store/bundles/demo")
    parser.add_argument("--requests", type=int, default=300)
    arguments = parser.parse_args(argv)
    if not (arguments.bundle / "demo-interactions.jsonl").is_file():
        print(f"{arguments.bundle}: not a demo bundle; make one with `make demo`", file=sys.stderr)
        return 2
    result = measure(arguments.bundle, arguments.requests)
    print(table(figures(result)), table(loads(result)), sep="\n\n")
    print(last_line("service", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
