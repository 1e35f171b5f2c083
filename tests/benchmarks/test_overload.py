"""The load generator and the overload benchmark, against a small server with scripted answers."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.benchmarks.load import Connection, Generator, Load, Outcome, arrivals, rendered
from tests.benchmarks.overload import Row, figures_of, markdown, ratios_to_best, summary_of
from tests.benchmarks.serving import memory_mib, service_processes

ANSWER = b'{"items":[],"fallback":null}'
FALLBACK = b'{"items":[],"fallback":"deadline"}'


@asynccontextmanager
async def scripted_server() -> AsyncIterator[int]:
    """The port of a server that treats a request as its body says: `status`, `fallback`, `after_s`, `hang_up`."""

    handlers: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        while head := await _head(reader):
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            order = json.loads(await reader.readexactly(length))
            if order.get("hang_up"):
                break
            await asyncio.sleep(order.get("after_s", 0))
            body = FALLBACK if order.get("fallback") else ANSWER
            writer.write(
                f"HTTP/1.1 {order.get('status', 200)} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*filter(None, handlers))


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def outcome_of(bodies: list[dict[str, Any]], **options: Any) -> Outcome:
    async with scripted_server() as port:
        return await asyncio.wait_for(Generator(Load(port, "/recommend", bodies, **options)).run(), 20)


async def test_an_open_loop_counts_each_kind_of_outcome_once() -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"fallback": True},
        {"status": 429},
        {"status": 500},
        {"hang_up": True},
        {"after_s": 0.3},
    ]
    outcome = await outcome_of(kinds, seconds=0.6, rate=100, deadline_s=0.2)
    assert outcome.num_requests == 60
    assert outcome.statuses == {"200": 30, "429": 10, "500": 10}
    assert (len(outcome.good_s), outcome.num_late, outcome.lost, outcome.fallbacks) == (10, 10, 10, {"deadline": 10})
    assert outcome.good_rate == pytest.approx(10 / 0.6)
    figures = figures_of(outcome)
    shares = [figures[name] for name in ("good", "refused", "fallbacks", "late", "errors")]
    assert shares == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 3])


async def test_an_open_loop_does_not_wait_for_answers_and_measures_its_lag() -> None:
    outcome = await outcome_of([{"after_s": 0.5}], seconds=0.3, rate=100)
    assert outcome.num_requests == len(outcome.lags_s) == 30
    assert max(outcome.lags_s) < 0.3
    assert min(outcome.good_s) >= 0.5


async def test_requests_of_the_lead_are_sent_but_not_counted() -> None:
    outcome = await outcome_of([{}], seconds=0.2, rate=100, lead_s=0.1)
    assert outcome.num_requests == 20
    assert outcome.elapsed_s == 0.2


async def test_a_closed_loop_has_one_request_per_client() -> None:
    outcome = await outcome_of([{"after_s": 0.1}], seconds=0.35, num_clients=3)
    assert outcome.num_requests == len(outcome.good_s) == 3 * 4
    assert outcome.elapsed_s >= 0.4
    assert outcome.lags_s == []


def test_arrivals_are_ordered_and_their_number_does_not_vary() -> None:
    planned = arrivals(Load(0, "/", [], seconds=2.0, rate=50, lead_s=0.5))
    assert [sum(arrival.is_counted for arrival in planned), len(planned)] == [100, 150]
    assert sorted(planned) == planned
    assert all(arrival.is_counted == (0.5 <= arrival.at_s < 2.5) for arrival in planned)


def test_too_many_arrivals_are_refused() -> None:
    with pytest.raises(ValueError, match="too many for one load"):
        arrivals(Load(0, "/", [], seconds=1000.0, rate=1000))


async def test_a_connection_without_an_answer_gives_none_and_is_closed() -> None:
    async with scripted_server() as port:
        connection = await Connection.open(port)
        reply = await connection.ask(rendered("POST", "/", b"{}"))
        assert reply is not None and (reply.status, reply.body) == (200, ANSWER)
        assert await connection.ask(rendered("POST", "/", b'{"hang_up": true}')) is None
        assert not connection.is_open
        assert await connection.ask(rendered("POST", "/", b"{}")) is None


def start_of(*good_per_s: float, lag_ms: float = 1.0) -> Row:
    best = max(good_per_s)
    rows = [
        {
            "factor": float(2**place),
            "good_per_s": rate,
            "to_best": ratio,
            **dict.fromkeys(("good", "refused", "fallbacks", "late", "errors"), 0.2),
            **{"p50_ms": None, "p99_ms": None, "lag_p99_ms": lag_ms, "on_schedule": lag_ms < 25},
        }
        for place, (rate, ratio) in enumerate(zip(good_per_s, ratios_to_best(good_per_s), strict=True))
    ]
    return {"capacity_per_s": best, "deadline_ms": 500, "rows": rows}


def test_each_load_is_compared_with_the_best_of_the_smaller_ones() -> None:
    assert ratios_to_best([50, 100, 80, 90]) == [1, 1, 0.8, 0.9]


def test_a_summary_takes_medians_and_the_worst_start() -> None:
    summary = summary_of([start_of(100, 80), start_of(100, 90), start_of(50, 100)])
    assert summary["capacity_per_s"] == 100
    assert [row["good_per_s"] for row in summary["factors"]] == [100, 90]
    assert [row["least_good_per_s"] for row in summary["factors"]] == [50, 80]
    assert summary["least_to_best"] == 0.8
    assert summary["factors"][0]["p50_ms"] is None


def test_the_tables_show_every_start_and_a_late_generator() -> None:
    starts = [start_of(100, 80), start_of(100, 90, lag_ms=60.0)]
    text = markdown({"demo": {"summary": summary_of(starts), "starts": starts}})
    assert "Lowest ratio to the best of the smaller loads of a start: 0.80 (goal ≥ 0.75, reached)" in text
    assert "| 2 | 100 | 100 | 90 | 0.90 |" in text
    assert "could not keep its schedule: start 2 at 1 × (p99 60 ms), start 2 at 2 × (p99 60 ms)" in text


def test_memory_counts_the_children_of_a_process() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        processes = service_processes(process.pid)
        sizes = [memory_mib(pid, "VmRSS") for pid in processes]
        process.communicate(b"\n")
    assert processes[0] == process.pid and len(processes) == 2
    assert min(sizes) > 1
    assert memory_mib(processes[1], "VmRSS") == 0, "the process has ended"
