"""Mixed traffic for minutes, with misbehaving clients: looks for lost answers, lost events and memory leaks.

Starts a real server process on a bundle (default: the demo's). Prints progress every ten seconds and, last, one line of
JSON. The exit code is 1 when an answer or an acknowledged event was lost, or when memory grows.

    python tests/benchmarks/soak.py [--minutes 10] [--bundle DIR] [--samples FILE.csv]
"""

import argparse
import asyncio
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from tests.benchmarks.machine import last_line, percentile_ms
from tests.benchmarks.serving import ROOT, Server, demo_events, ingest, running_server
from tests.benchmarks.traffic import Caller, Ledger

SAMPLE_EVERY_S = 1.0
SAY_EVERY_S = 10.0
NUM_CALLERS = 8
SMALL_CACHE = {"AUTOMR_WINDOW_CACHE_MIB": "16"}  # full within seconds, so that later growth is not the cache
MAX_SLOPE_MIB = 10.0  # per minute in a run of one minute; in a run of n minutes 1/n of it


@dataclass
class Samples:
    """One row per second: (seconds, resident MiB, p50 ms, p99 ms of the answers since the last row)."""

    rows: list[tuple[float, float, float, float]] = field(default_factory=list)

    def slope(self) -> float:
        """Growth of resident memory in MiB per minute: slope of a line through the second half of the samples."""
        half = np.array(self.rows[len(self.rows) // 2 :])
        return float(60 * np.polyfit(half[:, 0], half[:, 1], 1)[0]) if len(half) > 2 else 0.0

    def over_time(self, pieces: int = 10) -> list[dict[str, float]]:
        """Medians over `pieces` equal parts of the run."""
        parts = [part for part in np.array_split(np.array(self.rows), pieces) if len(part)]
        names = ("at_s", "resident_mib", "p50_ms", "p99_ms")
        return [dict(zip(names, np.nanmedian(part, axis=0).tolist(), strict=True)) for part in parts]

    def save(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("seconds", "resident_mib", "p50_ms", "p99_ms"))
            writer.writerows(self.rows)


async def soak(server: Server, items: Sequence[str], seconds: float, ledger: Ledger) -> Samples:
    samples, started = Samples(), time.monotonic()
    callers = [Caller(server.port, items, ledger, seed) for seed in range(NUM_CALLERS)]
    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(caller.run(started + seconds))
        group.create_task(_watch(server, ledger, samples, started, started + seconds))
    return samples


async def _watch(server: Server, ledger: Ledger, samples: Samples, started: float, ends: float) -> None:
    say_at = started + SAY_EVERY_S
    while (now := time.monotonic()) < ends:
        laps, ledger.seconds = ledger.seconds or [float("nan")], []
        row = (now - started, server.resident_mib, percentile_ms(laps, 50), percentile_ms(laps, 99))
        samples.rows.append(row)
        if now >= say_at:
            say_at += SAY_EVERY_S
            share = (now - started) / (ends - started)
            line = f"{share:4.0%}  {sum(ledger.statuses.values())} answers, {ledger.lost} lost, {row[1]:.0f} MiB"
            print(f"{line}, p50 {row[2]:.0f} ms, p99 {row[3]:.0f} ms", flush=True)
        await asyncio.sleep(SAMPLE_EVERY_S)


def missing_events(server: Server, ledger: Ledger) -> int:
    """Number of acknowledged events that are missing in the exports of users who were not deleted."""
    missing = 0
    for user_id, event_ids in ledger.acknowledged.items():
        status, body = server.ask("GET", f"/users/{user_id}/export")
        rows = [json.loads(line) for line in body.splitlines()] if status == 200 else []
        missing += len(event_ids - {row.get("event_id") for row in rows})
    return missing


def measure(bundle: Path, minutes: float, samples_path: Path | None) -> dict[str, Any]:
    events = demo_events(bundle)
    items = sorted({event["item_id"] for event in events})
    with running_server(bundle, **SMALL_CACHE) as server:
        ingest(server, events)
        ledger = Ledger()
        samples = uvloop.run(soak(server, items, 60 * minutes, ledger))
        missing = missing_events(server, ledger)
    if samples_path is not None:
        samples.save(samples_path)
    return {
        "minutes": minutes,
        "statuses": dict(sorted(ledger.statuses.items())),
        "broken_off": dict(sorted(ledger.broken_off.items())),
        "unexpected": ledger.unexpected,
        "lost_answers": ledger.lost,
        "acknowledged_events": sum(map(len, ledger.acknowledged.values())),
        "missing_events": missing,
        "slope_mib_per_minute": samples.slope(),
        "over_time": samples.over_time(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--bundle", type=Path, default=ROOT / "model_store/bundles/demo")
    parser.add_argument("--samples", type=Path, default=None, help="also write the samples to this file")
    arguments = parser.parse_args(argv)
    if not (arguments.bundle / "demo-interactions.jsonl").is_file():
        print(f"{arguments.bundle}: not a demo bundle; make one with `make demo`", file=sys.stderr)
        return 2
    result = measure(arguments.bundle, arguments.minutes, arguments.samples)
    for name, value in result.items():
        print(f"{name:24} {value}")
    print(last_line("soak", result))
    is_growing = result["slope_mib_per_minute"] > MAX_SLOPE_MIB / max(1.0, arguments.minutes)
    return int(is_growing or bool(result["lost_answers"] or result["missing_events"] or result["unexpected"]))


if __name__ == "__main__":
    sys.exit(main())
