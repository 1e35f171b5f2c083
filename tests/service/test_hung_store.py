"""A store that hangs, over HTTP, with a real server: requests do not wait for it. `pytest -s` shows the figures."""

import os
import signal
import statistics
import time
from pathlib import Path

from service.store.embedded.server import EmbeddedServer
from tests.benchmarks.serving import Server, running_server
from tests.service.real import history

TIMES = 30
SLACK_S = 0.1  # of a busy machine; each request would take longer if it waited for the store


def answered_s(server: Server, fallback: str | None, **body: object) -> float:
    began = time.perf_counter()
    answer = server.post("/recommend", {"k": 3, **body})
    seconds = time.perf_counter() - began
    assert answer["fallback"] == fallback and len(answer["items"]) == 3, answer
    return seconds


def test_requests_do_not_wait_for_a_store_that_hangs(bundle_path: Path, tmp_path: Path) -> None:
    """A known user gets popular items as quickly as a caller without a user, whom the store is not asked for."""
    quick = {"AUTOMR_STORE_TIMEOUT_S": "0.5", "AUTOMR_LAME_DUCK_S": "0"}
    with EmbeddedServer(tmp_path) as store, running_server(bundle_path, store_url=store.url, **quick) as server:
        server.post("/interactions", {"interactions": history(9), "wait": "visible"})
        well = statistics.median(answered_s(server, None, user_id="u", deadline_ms=60_000) for _ in range(TIMES))
        os.kill(store.pid, signal.SIGSTOP)
        try:
            ends = time.monotonic() + 60
            while not server.metrics()["store_breaker_open"]:
                assert time.monotonic() < ends, "the breaker does not open"
                server.post("/recommend", {"user_id": "u", "deadline_ms": 60_000})
            pairs = [
                (answered_s(server, "memory_unavailable", user_id="u"), answered_s(server, "cold_start"))
                for _ in range(TIMES)
            ]
        finally:
            os.kill(store.pid, signal.SIGCONT)
        while server.metrics()["store_breaker_open"]:
            assert time.monotonic() < ends, "the breaker does not close"
            time.sleep(0.05)
        answered_s(server, None, user_id="u", deadline_ms=60_000)
    hung, without = map(statistics.median, zip(*pairs, strict=True))
    figures = {"while it hangs": hung, "without a user": without, "before": well}
    print({name: f"p50 {1000 * seconds:.1f} ms" for name, seconds in figures.items()})
    assert hung < 3 * without + SLACK_S, "requests wait for a store that hangs"
