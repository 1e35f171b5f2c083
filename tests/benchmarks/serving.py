"""A real server process for benchmarks: started on a bundle with a store of its own, asked, looked at, stopped."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis.asyncio

from service.server import bound_socket
from service.store.embedded import EmbeddedServer
from service.store.keys import user_prefix

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120
ENCODE_TIMEOUT_S = 120


class Server:
    """A running server, and one client that costs as little as one can."""

    def __init__(self, port: int, pid: int, store_url: str) -> None:
        self.port, self.pid, self.store_url = port, pid, store_url
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Status and body; asks again where the server had hung up on an idle connection."""
        content = None if body is None else json.dumps(body).encode()
        for is_last in (False, True):
            try:
                self._connection.request(method, path, content, {"Content-Type": "application/json"})
                answer = self._connection.getresponse()
                return answer.status, answer.read()
            except ConnectionError:
                self._connection.close()
                if is_last:
                    raise
        raise AssertionError("unreachable")

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        status, content = self.ask("POST", path, body)
        if status >= 300:
            raise RuntimeError(f"{path}: {status} {content.decode()}")
        answer: dict[str, Any] = json.loads(content)
        return answer

    def metrics(self) -> dict[str, float]:
        """Prometheus samples by name with labels, without the prefix."""
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.removeprefix("automr_"): float(value) for name, value in pairs}

    @property
    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@contextmanager
def running_server(bundle: Path, **environment: str) -> Iterator[Server]:
    """A server that is ready, with a store of its own; both are gone afterwards. `environment`: AUTOMR_X and others."""
    with bound_socket("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory)) as store:
        command = [sys.executable, "-m", "service", "serve", "--bundle", str(bundle), "--store", store.url]
        command += ["--port", str(port), "--log-level", "warning"]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment)
        try:
            server = Server(port, process.pid, store.url)
            _wait_until_ready(server, process)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def _wait_until_ready(server: Server, process: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends and process.poll() is None:
        try:
            if server.ask("GET", "/readyz")[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def demo_events(bundle: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (bundle / "demo-interactions.jsonl").read_text().splitlines()]


def ingest(server: Server, events: Sequence[Mapping[str, Any]], *, size: int = 100) -> float:
    """Events acknowledged per second, in batches of `size`."""
    started = time.perf_counter()
    for start in range(0, len(events), size):
        server.post("/interactions", {"interactions": events[start : start + size]})
    return len(events) / (time.perf_counter() - started)


def wait_until_encoded(server: Server) -> None:
    """Until nobody waits for memory to be encoded."""
    asyncio.run(_wait_until_encoded(server.store_url))


async def _wait_until_encoded(store_url: str) -> None:
    from service.store.client import MemoryStore

    store = await MemoryStore.connect(store_url, timeout_s=10)
    try:
        async with asyncio.timeout(ENCODE_TIMEOUT_S):
            while await store.backlog():
                await asyncio.sleep(0.01)
    finally:
        await store.close()


async def bytes_per_element(store_url: str, space: str, user_id: str) -> float:
    """What the store says a user's states take, by element, overhead included."""
    client = redis.asyncio.Redis.from_url(store_url)
    key = f"{user_prefix(user_id)}states:{space}"
    total, count = await client.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0), await client.hlen(key)
    await client.aclose()
    return float(total) / int(count)


def quantile_between(before: Mapping[str, float], after: Mapping[str, float], name: str, share: float) -> float:
    """Of what a histogram without labels observed between two looks; within a bucket it is taken as even."""
    counts = {
        float(key.split('"')[1]): value - before.get(key, 0.0)
        for key, value in after.items()
        if key.startswith(f"{name}_bucket")
    }
    steps = [(0.0, 0.0), *sorted(counts.items())]
    wanted = share * steps[-1][1]
    for (low, below), (high, upto) in pairwise(steps):
        if upto >= wanted and upto > below:
            return low if high == float("inf") else low + (high - low) * (wanted - below) / (upto - below)
    return float("nan")
