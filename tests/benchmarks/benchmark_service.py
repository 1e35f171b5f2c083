"""What one client sees of the demo: latency of /recommend, ingest, lag until memory is visible, bytes, server memory.

Starts a real server process on a bundle (default: the demo's) with a store of its own. Prints a table and, last, one
line of JSON.

    python tests/benchmarks/benchmark_service.py [--bundle DIR] [--requests 500]
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import redis.asyncio

from model_store.bundle import read_manifest
from model_store.manifest import Manifest
from service.embedded import EmbeddedServer
from service.keys import user_prefix
from service.server import bound_socket

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120


@contextmanager
def running_server(bundle: Path, store_url: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a server that is ready."""
    with bound_socket("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "service",
        "serve",
        "--bundle",
        str(bundle),
        "--store",
        store_url,
        "--port",
        str(port),
    ]
    process = subprocess.Popen([*command, "--log-level", "warning"], cwd=ROOT)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(address, process)
        yield address, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait_until_ready(address: str, process: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends and process.poll() is None:
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return 1000 * statistics.median(seconds), 1000 * cuts[98]


def timed(client: httpx.Client, path: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    started = time.perf_counter()
    answer = client.post(path, json=body)
    seconds = time.perf_counter() - started
    answer.raise_for_status()
    return seconds, answer.json()


def ingest(client: httpx.Client, events: list[dict[str, Any]]) -> float:
    """Events acknowledged per second, in batches of 100."""
    started = time.perf_counter()
    for start in range(0, len(events), 100):
        timed(client, "/interactions", {"interactions": events[start : start + 100]})
    return len(events) / (time.perf_counter() - started)


def wait_for_memory(client: httpx.Client, user_id: str, num_states: int) -> float:
    """Seconds until the user has that many states."""
    started = time.perf_counter()
    while client.get(f"/users/{user_id}").json()["counts"]["states"] < num_states:
        time.sleep(0.005)
    return time.perf_counter() - started


def recommend(
    client: httpx.Client, users: Sequence[str], num_requests: int
) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of each request, and of each stage in milliseconds."""
    seconds: list[float] = []
    stages: dict[str, list[float]] = {}
    for number in range(num_requests):
        lap, answer = timed(client, "/recommend", {"user_id": users[number % len(users)], "k": 10})
        seconds.append(lap)
        for stage, milliseconds in answer["timings_ms"].items():
            stages.setdefault(stage, []).append(milliseconds)
    return seconds, stages


def visible_lags(client: httpx.Client, events: list[dict[str, Any]]) -> list[float]:
    """Seconds from the acknowledgement of one event to its state, for fresh users one after the other."""
    lags = []
    for number, event in enumerate(events):
        user_id = f"lag-{number}"
        timed(client, "/interactions", {"interactions": [{**event, "user_id": user_id}]})
        lags.append(wait_for_memory(client, user_id, 1))
    return lags


async def bytes_per_element(store_url: str, space: str, user_id: str) -> float:
    """What the server says a user's states take, by element, overhead included."""
    client = redis.asyncio.Redis.from_url(store_url)
    key = f"{user_prefix(user_id)}states:{space}"
    total, count = await client.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0), await client.hlen(key)
    await client.aclose()
    return float(total) / int(count)


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def measure(bundle: Path, num_requests: int) -> dict[str, Any]:
    events = [json.loads(line) for line in (bundle / "demo-interactions.jsonl").read_text().splitlines()]
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedServer(Path(directory)) as store,
        running_server(bundle, store.url) as (address, pid),
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        return _measure(client, events, read_manifest(bundle), num_requests, store_url=store.url, pid=pid)


def _measure(
    client: httpx.Client,
    events: list[dict[str, Any]],
    manifest: Manifest,
    num_requests: int,
    *,
    store_url: str,
    pid: int,
) -> dict[str, Any]:
    counts = Counter(event["user_id"] for event in events)
    longest, num_events = counts.most_common(1)[0]
    rate = ingest(client, events)
    wait_for_memory(client, longest, min(num_events, manifest.memory.max_elements + manifest.prompt.recent_length))
    recommend(client, sorted(counts), len(counts))  # warm
    seconds, stages = recommend(client, sorted(counts), num_requests)
    p50, p99 = percentiles(seconds)
    visible_p50, visible_p99 = percentiles(visible_lags(client, events[:100]))
    return {
        "recommend_p50_ms": round(p50, 2),
        "recommend_p99_ms": round(p99, 2),
        "stages_p50_ms": {stage: round(statistics.median(laps), 2) for stage, laps in stages.items()},
        "ingest_events_per_s": round(rate),
        "visible_p50_ms": round(visible_p50, 1),
        "visible_p99_ms": round(visible_p99, 1),
        "bytes_per_element": round(asyncio.run(bytes_per_element(store_url, manifest.space, longest)), 1),
        "bytes_allowed": 2 * manifest.backbone.hidden_size + 64,
        "server_mib": round(resident_mib(pid)),
    }


def table(result: dict[str, Any], num_requests: int) -> str:
    stages = ", ".join(f"{stage} {laps}" for stage, laps in result["stages_p50_ms"].items())
    rows = [
        (
            f"/recommend, k = 10, {num_requests} requests",
            f"p50 {result['recommend_p50_ms']} ms, p99 {result['recommend_p99_ms']} ms",
        ),
        ("  stages, p50 in ms", stages),
        ("/interactions in batches of 100, fsynced", f"{result['ingest_events_per_s']} events/s"),
        ("acknowledged → memory visible", f"p50 {result['visible_p50_ms']} ms, p99 {result['visible_p99_ms']} ms"),
        ("memory element in the store", f"{result['bytes_per_element']} bytes (2·D + 64 = {result['bytes_allowed']})"),
        ("server process", f"{result['server_mib']} MiB resident"),
    ]
    return "\n".join(f"{name:45} {value}" for name, value in rows)


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "model_store/bundles/demo")
    parser.add_argument("--requests", type=int, default=500)
    arguments = parser.parse_args(argv)
    if not (arguments.bundle / "demo-interactions.jsonl").is_file():
        print(f"{arguments.bundle}: not a demo bundle; make one with `make demo`", file=sys.stderr)
        return 2
    result = measure(arguments.bundle, arguments.requests)
    machine = {"commit": commit(), "cores": os.cpu_count(), "machine": platform.processor() or platform.machine()}
    print(table(result, arguments.requests))
    print(json.dumps({"benchmark": "service", **result, **machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
