"""Run all benchmarks, one after the other, and compare their results with the goals.

Each benchmark runs as a program of its own. Its output is kept in `var/bench/NAME.txt`; the last line of it is JSON.

    PYTHONPATH=. python tests/benchmarks/summary.py [NAME ...]      run all or the named ones, then print the goals
    PYTHONPATH=. python tests/benchmarks/summary.py --show          print the goals with the last results
    PYTHONPATH=. python tests/benchmarks/summary.py --markdown      the same with all tables, for README.md
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.machine import ROOT, cell, table

KEPT = ROOT / "var" / "bench"
Result = Mapping[str, Any]
BENCHMARKS: dict[str, list[str]] = {
    "engine demo": ["benchmark_engine.py"],
    "engine smollm2": ["benchmark_engine.py", "--size", "smollm2"],
    "engine 0.5b": ["benchmark_engine.py", "--size", "0.5b"],
    "pretrained": ["benchmark_pretrained.py"],
    "precision": ["benchmark_precision.py"],
    "annotation": ["benchmark_annotation.py"],
    "service": ["benchmark_service.py"],
    "overload": ["overload.py", "--starts", "1"],
    "store": ["benchmark_store.py"],
    "catalogue": ["benchmark_catalogue.py"],
}


class Goal(NamedTuple):
    """`measured` takes a figure from the benchmark's JSON. It must be `at_most` or `at_least` a number."""

    row: str
    benchmark: str
    measured: Callable[[Result], float]
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""

    @property
    def wanted(self) -> str:
        bound = f"≤ {cell(self.at_most)}" if self.at_most is not None else f"≥ {cell(self.at_least)}"
        return f"{bound} {self.unit}".strip()

    def is_reached(self, figure: float) -> bool:
        return figure <= self.at_most if self.at_most is not None else figure >= (self.at_least or 0.0)


def _peer(name: str) -> Callable[[Result], float]:
    return lambda found: float(found["peers"][name]["times_faster"])


def _least_annotation(found: Result) -> float:
    return min(size["times_faster"] for size in found.values() if isinstance(size, dict) and "times_faster" in size)


def _best_against_one(found: Result) -> float:
    return max(load["against_one"] for load in found["saturated"].values() if isinstance(load, dict))


def _refused_alone(found: Result) -> float:
    """Share of the requests above capacity that got 429 or an answer of the model: no fallback, no loss."""
    over = found["overloaded"]
    total = sum(over["statuses"].values()) + over["lost"]
    others = total - over["statuses"].get("200", 0) - over["statuses"].get("429", 0)
    return 1 - (others + sum(over["fallbacks"].values())) / total


def _least_to_best(size: str) -> Callable[[Result], float]:
    return lambda found: float(found[size]["summary"]["least_to_best"])


def _agreement(precision: str, key: str) -> Callable[[Result], float]:
    return lambda found: float(found[precision][key])


def _slowest_fetch(percentile: str) -> Callable[[Result], float]:
    """The slowest of all widths of states."""
    return lambda found: max(size[percentile] for size in found["fetch_and_score"].values())


def _slowest_mask(found: Result) -> float:
    return max(kind[step]["p50"] for kind in found["mask"].values() for step in ("allow_and_root_ms", "node_ms"))


GOALS = (
    Goal(
        "/recommend, user with 5,000 events against 10",
        "service",
        lambda found: found["history"]["ratio"],
        1.15,
        unit="×",
    ),
    Goal("against HF generate, 100 items in the prompt, 0.5b", "engine 0.5b", _peer("hf_100"), at_least=8, unit="×"),
    Goal("against HF generate, 10 items in the prompt, 0.5b", "engine 0.5b", _peer("hf_10"), at_least=4, unit="×"),
    Goal("against HF generate, 10 items in the prompt, demo", "engine demo", _peer("hf_10"), at_least=4, unit="×"),
    Goal(
        "engine against its floor, 0.5b, batch of 8",
        "engine 0.5b",
        lambda found: found["recommend"]["batch_8"]["times_floor"],
        2,
        unit="×",
    ),
    Goal(
        "one request, 90 memories, 20 beams, the shape of the recipe smollm2, bfloat16, p50",
        "engine smollm2",
        lambda found: found["precision"]["bfloat16"]["one_ms"],
        400,
        unit="ms",
    ),
    *(
        Goal(f"{precision}: {what}, trained demo", "precision", _agreement(precision, key), at_least=least)
        for precision in ("bfloat16", "int8")
        for what, key, least in (("same best item", "top1_same", 0.99), ("shared of 10 items", "top10_shared", 0.98))
    ),
    Goal("saturated throughput against one client", "service", _best_against_one, at_least=4, unit="×"),
    Goal(
        "p99 at twice the capacity, against the deadline",
        "service",
        lambda found: found["overloaded"]["p99_ms"] / found["overloaded"]["deadline_ms"],
        1,
        unit="×",
    ),
    Goal("  share of them answered by the model or refused with 429", "service", _refused_alone, at_least=1),
    *(
        Goal(
            f"good answers/s at 1 to 8 × capacity, lowest / best, {size}",
            "overload",
            _least_to_best(size),
            at_least=0.75,
        )
        for size in ("demo", "large")
    ),
    Goal(
        "HTTP + store + policy over engine time, p50",
        "service",
        lambda found: found["alone"]["overhead_p50_ms"],
        5,
        unit="ms",
    ),
    Goal("90 memories fetched and scored, p50", "store", _slowest_fetch("p50_ms"), 2, unit="ms"),
    Goal("90 memories fetched and scored, p99", "store", _slowest_fetch("p99_ms"), 10, unit="ms"),
    Goal(
        "ingest acknowledged durably, by 100",
        "service",
        lambda found: found["ingest_events_per_s"],
        at_least=3000,
        unit="events/s",
    ),
    Goal(
        "ingest to visible at half the capacity, p99",
        "service",
        lambda found: found["encoding"]["visible_p99_ms"] / 1000,
        2,
        unit="s",
    ),
    Goal("annotation against one pass per element", "annotation", _least_annotation, at_least=20, unit="×"),
    Goal("grounding, 1 M items × 256", "catalogue", lambda found: found["grounding"]["search_ms"]["p50"], 5, unit="ms"),
    Goal("  recall@10 against Flat", "catalogue", lambda found: found["grounding"]["recall_at_10"], at_least=0.98),
    Goal("trie of 1 M titles, built", "catalogue", lambda found: found["trie"]["trie_s"], 60, unit="s"),
    Goal("trie of 1 M titles, size", "catalogue", lambda found: found["trie"]["trie_mib"], 1024, unit="MiB"),
    Goal("  mask step", "catalogue", _slowest_mask, 1, unit="ms"),
    Goal(
        "start to ready, 1 M items",
        "catalogue",
        lambda found: found["server"]["start_to_ready_s"],
        20,
        unit="s",
    ),
)


def goals_table(found: Mapping[str, Result]) -> list[tuple[str, str, str, str]]:
    rows = [("row", "goal", "measured", "reached")]
    for goal in GOALS:
        figure = _figure(goal, found)
        verdict = "not measured" if figure is None else "yes" if goal.is_reached(figure) else "no"
        rows.append((goal.row, goal.wanted, cell(figure), verdict))
    return rows


def _figure(goal: Goal, found: Mapping[str, Result]) -> float | None:
    try:
        return float(goal.measured(found[goal.benchmark]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def run(name: str) -> bool:
    """Run a benchmark and print its output at once. Keep the output if the benchmark succeeds."""
    script, *options = BENCHMARKS[name]
    if not (ROOT / "tests/benchmarks" / script).is_file():
        print(f"--- {name}: there is no {script}", flush=True)
        return False
    print(f"--- {name}", flush=True)
    command = [sys.executable, f"tests/benchmarks/{script}", *options]
    lines = []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or []:
            lines.append(line)
            print(line, end="", flush=True)
    if process.returncode == 0:
        KEPT.mkdir(parents=True, exist_ok=True)
        _file(name).write_text("".join(lines), encoding="utf-8")
    return process.returncode == 0


def kept() -> dict[str, Result]:
    return {name: json.loads(_printed(name)[-1]) for name in BENCHMARKS if _file(name).is_file()}


def _printed(name: str) -> list[str]:
    return _file(name).read_text(encoding="utf-8").rstrip().splitlines()


def _file(name: str) -> Path:
    return KEPT / f"{name.replace(' ', '-')}.txt"


def markdown(found: Mapping[str, Result]) -> str:
    head, *rows = goals_table(found)
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    for name, result in found.items():
        machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
        lines += ["", f"**{name}** ({machine})", "", "```text", *_printed(name)[:-1], "```"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    failed: list[str] = []
    if not (arguments.show or arguments.markdown):
        started = time.perf_counter()
        failed = [name for name in arguments.names or BENCHMARKS if not run(name)]
        print(f"--- all: {time.perf_counter() - started:.0f} s", *(f"; failed: {name}" for name in failed))
    found = kept()
    print(markdown(found) if arguments.markdown else table(goals_table(found)))
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main())
