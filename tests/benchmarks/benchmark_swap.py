"""A switch of bundles and a rollback under load: errors, mixed answers, and the tail of latency against none.

Starts a real server on a small bundle with random weights and a second bundle beside it, in another space. Phases, each
under the same load: nothing happens; the second bundle is loaded and its memory filled; then, several times, nothing
and switches with rollbacks. Other clients compare every answer with that of its bundle alone. Prints a table, the
median of the ratios of p99 and, last, one line of JSON. Three minutes.

    python tests/benchmarks/benchmark_swap.py [--rate 20] [--seconds 10] [--rounds 5]
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.benchmarks.load import Load, generate
from tests.benchmarks.machine import last_line, percentile_ms, table
from tests.benchmarks.serving import Server, ingest, running_server, wait_until_encoded
from tests.conftest import write_bundle

NUM_CLIENTS = 64
USERS = [f"u{number}" for number in range(200)]
NOW = 1_700_000_000
NUM_CHECKERS = 2


def essence(answer: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must come from one bundle. Scores of a batch differ from those of one query in the last digits."""
    items = [(item["item_id"], item["score"] and round(item["score"], 2)) for item in answer["items"]]
    return answer["model"]["bundle"], answer["model"]["space"], items


class Checker(threading.Thread):
    """Asks for one user after the other and keeps the answers until `is_over`."""

    def __init__(self, port: int, users: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self._connection, self._users = HTTPConnection("127.0.0.1", port, timeout=60), users
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.num_errors = 0
        self.is_over = False

    def run(self) -> None:
        while not self.is_over:
            for user_id in self._users:
                body = json.dumps({"user_id": user_id, "k": 5, "deadline_ms": 30_000})
                self._connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
                answer = self._connection.getresponse()
                content = json.loads(answer.read())
                self.num_errors += answer.status != 200
                if answer.status == 200:
                    self.answers.append((user_id, content))


def under_load(server: Server, load: Load, work: Callable[[], None]) -> dict[str, Any]:
    """`work` runs while the load does."""
    thread = threading.Thread(target=work)
    thread.start()
    outcome = generate(load)
    thread.join()
    errors = sum(count for status, count in outcome.statuses.items() if status != "200") + outcome.lost
    return {
        "requests": outcome.num_requests,
        "errors": errors,
        "fallbacks": outcome.fallbacks,
        "p50_ms": percentile_ms(outcome.answered_s, 50),
        "p99_ms": percentile_ms(outcome.answered_s, 99),
    }


def measure(rate: float, seconds: float, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for seed, name in enumerate(("first", "second")):
            write_bundle(root / name, seed=seed)
        with running_server(root / "first", AUTOMR_BUNDLES_DIR=directory) as server:
            events = [
                {"user_id": user, "item_id": f"i{(number + place) % 20}", "timestamp": NOW + place}
                for number, user in enumerate(USERS)
                for place in range(12)
            ]
            ingest(server, events, size=500)
            wait_until_encoded(server)
            return _phases(server, rate, seconds, rounds)


def _phases(server: Server, rate: float, seconds: float, rounds: int) -> dict[str, Any]:
    bodies = [{"user_id": user_id, "k": 10} for user_id in USERS]
    load = Load(server.port, "/recommend", bodies, seconds, NUM_CLIENTS, rate=rate, lead_s=1.0)
    found: dict[str, Any] = {"idle": under_load(server, load, lambda: None)}
    found["loading and filling"] = under_load(server, load, lambda: _load(server))
    while _status(server) != "ready":
        time.sleep(0.5)
    alone = _answers(server)
    checkers = [Checker(server.port, USERS[number::NUM_CHECKERS]) for number in range(NUM_CHECKERS)]
    for checker in checkers:
        checker.start()
    ratios = []
    for number in range(1, rounds + 1):
        idle = found[f"idle {number}"] = under_load(server, load, lambda: None)
        switch = found[f"switches {number}"] = under_load(server, load, lambda: _switch(server, seconds))
        ratios.append(round(switch["p99_ms"] / idle["p99_ms"], 2))
    for checker in checkers:
        checker.is_over = True
        checker.join()
    server.post("/bundles/second:activate", {})
    alone |= _answers(server)
    answers = [each for checker in checkers for each in checker.answers]
    mixed = sum(essence(answer) != alone[answer["model"]["bundle"], user_id] for user_id, answer in answers)
    errors = sum(checker.num_errors for checker in checkers)
    served = sorted({answer["model"]["bundle"] for _, answer in answers})
    facts = {"checked": len(answers), "check_errors": errors, "mixed": mixed, "served": served}
    return {**found, **facts, "ratios": ratios, "median_ratio": statistics.median(ratios)}


def _load(server: Server) -> None:
    time.sleep(1)
    _other(server, "POST", "/bundles", {"directory": "second"})


def _switch(server: Server, seconds: float) -> None:
    for call in ("/bundles/second:activate", "/bundles:rollback", "/bundles:rollback", "/bundles:rollback"):
        time.sleep(seconds / 5)
        _other(server, "POST", call)


def _other(server: Server, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
    """On a connection of its own, from any thread."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, json.dumps(body or {}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status >= 300:
        raise RuntimeError(f"{path}: {answer.status} {answer.read().decode()}")
    connection.close()


def _status(server: Server) -> str:
    bundles = json.loads(server.ask("GET", "/bundles")[1])["bundles"]
    return next(str(each["status"]) for each in bundles if each["name"] == "second")


def _answers(server: Server) -> dict[tuple[str, str], tuple[Any, ...]]:
    """(bundle, user) → the answer of the bundle that answers now."""
    found = {}
    for user_id in USERS:
        answer = server.post("/recommend", {"user_id": user_id, "k": 5, "deadline_ms": 30_000})
        found[answer["model"]["bundle"], user_id] = essence(answer)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second; 0: a closed loop of 64 clients")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of a phase without and one with switches")
    args = parser.parse_args(argv)
    result = measure(args.rate, args.seconds, args.rounds)
    phases = [name for name, part in result.items() if isinstance(part, dict)]
    rows: list[tuple[object, ...]] = [("phase", "p50", "p99", "errors")]
    rows += [(name, result[name]["p50_ms"], result[name]["p99_ms"], result[name]["errors"]) for name in phases]
    print(table(rows))
    print(f"checked {result['checked']} answers: {result['mixed']} mixed, {result['check_errors']} errors")
    print(f"p99 with switches ÷ p99 without: median {result['median_ratio']} of {result['ratios']}")
    print(last_line("swap", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
