"""Good answers per second when more requests come than the service can answer, start after start.

For each start: a fresh server process with a store of its own; its capacity, measured with a closed loop of many
clients; then open loops at several multiples of that capacity, in which every request has a deadline. A good answer has
status 200, is no fallback, and is complete within the deadline, counted from the time at which the request was due.
Before and after each load comes one second (or one deadline, if longer) of the same load that is not counted. The
question is whether good answers become fewer while the load grows, so each load is compared with the best of the
smaller ones. (At 1 × alone, random arrivals leave a slow model idle at times, so that load may have fewer than 2 ×.)

Sizes: `demo`, a trained bundle (default: the demo's), deadline 500 ms; `large`, a model of 85 million parameters with
random weights on one thread, deadline four times the time of a single answer.

Prints progress on stderr, then Markdown tables and, last, one line of JSON. About 1.5 minutes a start and size.

    PYTHONPATH=. python tests/benchmarks/overload.py [--starts 10] [--sizes demo,large] [--factors 1,2,4,8]
        [--seconds 8] [--bundle DIR] [--out FILE]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from model_store.grounding import ItemIndex
from model_store.manifest import GenerationSpec
from tests.benchmarks.load import Load, Outcome, generate
from tests.benchmarks.machine import ROOT, cell, last_line, median_ms, percentile_ms
from tests.benchmarks.serving import Server, demo_events, ingest, running_server, wait_until_encoded
from tests.benchmarks.world import Shape, make_model, make_prompt, make_shop, quiet_library, save_bundle

GOAL = 0.75  # good answers/s do not fall below this share while the load grows, see `ratios_to_best`
DEMO_DEADLINE_MS = 500
SINGLE_ANSWERS = 4  # deadline of the large size, in times of a single answer
PATIENT_MS = 60_000  # deadline while the capacity is measured: nothing is refused
LEAST_LEAD_S = 1.0
PAUSE_S = 0.5  # between two loads
LARGE = Shape("llama", 8, 768, 12, 12, 2048, 16_000, True, 300, 10)
LARGE_USERS, LARGE_EVENTS = 12, 20
NEWEST = 1_760_000_000

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is served at one size, and how its capacity is found."""

    bundle: Path
    events: list[dict[str, Any]]
    num_clients: int  # of the closed loop
    capacity_s: float  # how long the closed loop runs
    deadline_ms: int | None  # None: `SINGLE_ANSWERS` times the time of a single answer
    environment: dict[str, str] = field(default_factory=dict)


# --- what is measured ---------------------------------------------------------------------------------------------


def demo(bundle: Path) -> Subject:
    return Subject(bundle, demo_events(bundle), num_clients=64, capacity_s=3.0, deadline_ms=DEMO_DEADLINE_MS)


def large(directory: Path) -> Subject:
    """One torch thread, so that the load generator, the store and HTTP have the other core of a small machine."""
    bundle = directory / "large"
    shop = make_shop(LARGE)
    prompt = make_prompt(LARGE)
    with quiet_library():
        vectors = np.random.default_rng(0).standard_normal((len(shop.titles), LARGE.hidden_size), dtype=np.float32)
        catalogue = Catalogue((Item(str(row), title) for row, title in enumerate(shop.titles)), prompt)
        save_bundle(
            bundle,
            make_model(LARGE, shop),
            catalogue,
            ItemIndex.build(vectors),
            prompt,
            generation=GenerationSpec(num_beams=LARGE.num_beams),
        )
    items = np.random.default_rng(1).integers(len(shop.titles), size=(LARGE_USERS, LARGE_EVENTS)).tolist()
    events = [
        {"user_id": f"reader-{user}", "item_id": str(row), "timestamp": NEWEST + place}
        for user, rows in enumerate(items)
        for place, row in enumerate(rows)
    ]
    threads = {"AUTOMR_THREADS": os.environ.get("AUTOMR_THREADS", "1")}
    return Subject(bundle, events, num_clients=8, capacity_s=6.0, deadline_ms=None, environment=threads)


@contextmanager
def subjects(sizes: Sequence[str], bundle: Path) -> Iterator[dict[str, Subject]]:
    with tempfile.TemporaryDirectory() as directory:
        makers: dict[str, Callable[[], Subject]] = {
            "demo": lambda: demo(bundle),
            "large": lambda: large(Path(directory)),
        }
        yield {size: makers[size]() for size in sizes}


# --- measuring --------------------------------------------------------------------------------------------------------


def offer(port: int, bodies: Sequence[Row], *, rate: float, deadline_ms: int, seconds: float) -> Outcome:
    """An open loop of `rate` requests/s for `seconds`, each with this deadline."""
    with_deadline = [{**body, "deadline_ms": deadline_ms} for body in bodies]
    deadline_s = deadline_ms / 1000
    lead_s = max(LEAST_LEAD_S, deadline_s)
    load = Load(port, "/recommend", with_deadline, seconds, rate=rate, lead_s=lead_s, deadline_s=deadline_s)
    return generate(load)


def figures_of(outcome: Outcome) -> Row:
    """Good answers, what became of the other requests (shares of all), and the generator's delay."""
    total = max(1, outcome.num_requests)
    refused = outcome.statuses.get("429", 0)
    return {
        "requests": outcome.num_requests,
        "good_per_s": outcome.good_rate,
        "good": len(outcome.good_s) / total,
        "refused": refused / total,
        "fallbacks": sum(outcome.fallbacks.values()) / total,
        "late": outcome.num_late / total,
        "errors": (outcome.lost + len(outcome.refused_s) - refused) / total,
        "p50_ms": percentile_ms(outcome.good_s, 50) if outcome.good_s else None,
        "p99_ms": percentile_ms(outcome.good_s, 99) if outcome.good_s else None,
        "lag_p99_ms": percentile_ms(outcome.lags_s, 99) if outcome.lags_s else None,
        "lag_max_ms": percentile_ms(outcome.lags_s, 100) if outcome.lags_s else None,
        "statuses": outcome.statuses,
        "fallback_reasons": outcome.fallbacks,
    }


def measure_start(subject: Subject, factors: Sequence[float], seconds: float) -> Row:
    users = sorted({event["user_id"] for event in subject.events})
    bodies = [{"user_id": user_id, "k": 10} for user_id in users]
    patient = [{**body, "deadline_ms": PATIENT_MS} for body in bodies]
    with running_server(subject.bundle, **subject.environment) as server:
        ingest(server, subject.events)
        wait_until_encoded(server)
        single_ms = _single_ms(server, patient)
        for length in (1.0, subject.capacity_s):  # the first one warms up
            closed = generate(Load(server.port, "/recommend", patient, length, subject.num_clients))
        if not closed.rate:
            raise SystemExit(f"the server answered none of {closed.num_requests} requests: {closed.statuses}")
        deadline_ms = subject.deadline_ms or max(1, round(SINGLE_ANSWERS * single_ms))
        rows = []
        for factor in factors:
            time.sleep(PAUSE_S)
            rate = factor * closed.rate
            outcome = offer(server.port, bodies, rate=rate, deadline_ms=deadline_ms, seconds=seconds)
            rows.append({"factor": factor, "offered_per_s": rate, **figures_of(outcome)})
    for row, ratio in zip(rows, ratios_to_best([row["good_per_s"] for row in rows]), strict=True):
        row["to_best"] = ratio
        row["on_schedule"] = (row["lag_p99_ms"] or 0.0) <= deadline_ms / 20
    return {"capacity_per_s": closed.rate, "single_ms": single_ms, "deadline_ms": deadline_ms, "rows": rows}


def ratios_to_best(good_per_s: Sequence[float]) -> list[float]:
    """Good answers at each load, in ascending order, against the best of this load and all smaller ones."""
    return [good / best if best else 0.0 for good, best in zip(good_per_s, accumulate(good_per_s, max), strict=True)]


def _single_ms(server: Server, bodies: Sequence[Row]) -> float:
    """Median time of an answer to one client alone, once for each user after once for each user to warm up."""
    seconds = []
    for body in [*bodies, *bodies]:
        started = time.perf_counter()
        server.post("/recommend", body)
        seconds.append(time.perf_counter() - started)
    return median_ms(seconds[len(bodies) :])


def summary_of(starts: Sequence[Row]) -> Row:
    """Medians over the starts for each factor, and the lowest ratio to the best factor of the same start."""
    by_factor = list(zip(*(start["rows"] for start in starts), strict=True))
    names = ("good_per_s", "to_best", "good", "refused", "fallbacks", "late", "errors", "p50_ms", "p99_ms")
    rows = [
        {
            "factor": rows[0]["factor"],
            **{name: _over(rows, name, statistics.median) for name in (*names, "lag_p99_ms")},
            "least_good_per_s": _over(rows, "good_per_s", min),
            "least_to_best": _over(rows, "to_best", min),
        }
        for rows in by_factor
    ]
    capacities = [start["capacity_per_s"] for start in starts]
    return {
        "capacity_per_s": statistics.median(capacities),
        "deadline_ms": statistics.median(start["deadline_ms"] for start in starts),
        "least_to_best": min(row["least_to_best"] for row in rows),
        "is_on_schedule": all(row["on_schedule"] for start in starts for row in start["rows"]),
        "factors": rows,
    }


def _over(rows: Sequence[Row], name: str, function: Callable[[Sequence[float]], float]) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return function(values) if values else None


# --- printing ---------------------------------------------------------------------------------------------------------


def markdown(results: dict[str, Row]) -> str:
    return "\n\n".join(part for size, found in results.items() for part in _parts(size, found))


def _parts(size: str, found: Row) -> list[str]:
    summary, starts = found["summary"], found["starts"]
    verdict = "reached" if summary["least_to_best"] >= GOAL else "missed"
    head = (
        f"**{size}**: {len(starts)} starts; median capacity {cell(summary['capacity_per_s'])} answers/s, deadline "
        f"{cell(float(summary['deadline_ms']))} ms. Lowest ratio to the best of the smaller loads of a start: "
        f"{summary['least_to_best']:.2f} (goal ≥ {GOAL}, {verdict})."
    )
    parts = [head, _factors_table(summary["factors"]), _starts_table(starts)]
    return parts if summary["is_on_schedule"] else [*parts, _late_generator(starts)]


def _factors_table(rows: Sequence[Row]) -> str:
    head = ("load", "good/s", "min", "to best", "min", "good", "429", "fallback", "late", "error")
    rates, ratios = ("good_per_s", "least_good_per_s"), ("to_best", "least_to_best")
    shares = ("good", "refused", "fallbacks", "late", "errors")
    times = ("p50_ms", "p99_ms", "lag_p99_ms")
    lines = [
        [
            f"{row['factor']:g} ×",
            *(cell(row[name]) for name in rates),
            *(f"{row[name]:.2f}" for name in ratios),
            *(f"{100 * row[name]:.1f} %" for name in shares),
            *(cell(row[name]) for name in times),
        ]
        for row in rows
    ]
    return _table([[*head, "p50 ms", "p99 ms", "send lag p99 ms"], *lines])


def _starts_table(starts: Sequence[Row]) -> str:
    """Good answers per second."""
    factors = [f"{row['factor']:g} ×" for row in starts[0]["rows"]]
    lines = [
        [
            str(number),
            cell(start["capacity_per_s"]),
            *(cell(row["good_per_s"]) for row in start["rows"]),
            f"{min(row['to_best'] for row in start['rows']):.2f}",
        ]
        for number, start in enumerate(starts, start=1)
    ]
    return _table(
        [["start", "capacity/s", *(f"good/s at {factor}" for factor in factors), "lowest share kept"], *lines]
    )


def _late_generator(starts: Sequence[Row]) -> str:
    late = [
        f"start {number} at {row['factor']:g} × (p99 {cell(row['lag_p99_ms'])} ms)"
        for number, start in enumerate(starts, start=1)
        for row in start["rows"]
        if not row["on_schedule"]
    ]
    return f"The load generator could not keep its schedule: {', '.join(late)}. These rows understate the service."


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *others = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *others])


def measure(found: dict[str, Subject], num_starts: int, factors: Sequence[float], seconds: float) -> dict[str, Row]:
    results: dict[str, Row] = {}
    for size, subject in found.items():
        starts = []
        for number in range(1, num_starts + 1):
            start = measure_start(subject, factors, seconds)
            starts.append(start)
            rates = ", ".join(f"{row['factor']:g} ×: {cell(row['good_per_s'])}" for row in start["rows"])
            line = f"{size}, start {number}: capacity {cell(start['capacity_per_s'])}/s; good/s at {rates}"
            print(line, file=sys.stderr, flush=True)
        results[size] = {"summary": summary_of(starts), "starts": starts}
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=["demo", "large"])
    parser.add_argument(
        "--factors", type=lambda text: sorted(map(float, text.split(","))), default=[1.0, 2.0, 4.0, 8.0]
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="counted seconds of each load")
    parser.add_argument("--bundle", type=Path, default=ROOT / "model_store/bundles/demo", help="of the size demo")
    parser.add_argument("--out", type=Path, help="also write the tables and the JSON to this file")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.sizes) - {"demo", "large"}
    if unknown or arguments.starts < 1 or not arguments.factors or min(arguments.factors) <= 0:
        parser.error("--sizes takes demo and large; --starts and --factors must be positive")
    if "demo" in arguments.sizes and not (arguments.bundle / "demo-interactions.jsonl").is_file():
        print(f"{arguments.bundle}: not a demo bundle; make one with `make demo`", file=sys.stderr)
        return 2
    with subjects(arguments.sizes, arguments.bundle) as found:
        results = measure(found, arguments.starts, arguments.factors, arguments.seconds)
    text = f"{markdown(results)}\n\n{last_line('overload', {'seconds': arguments.seconds, **results})}"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
