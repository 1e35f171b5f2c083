"""A real server process for benchmarks, with a store of its own: start, requests, metrics, memory, stop."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis.asyncio

from service.server import bound_socket
from service.store.embedded.server import EmbeddedServer
from service.store.keys import user_prefix

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 600
STOP_TIMEOUT_S = 60
ENCODE_TIMEOUT_S = 120
STORE_PROCESSES = ("valkey-server", "redis-server")  # their names in /proc/PID/stat


class Server:
    """A running server, with a cheap client for one request at a time."""

    def __init__(self, port: int, pid: int, store_url: str) -> None:
        self.port, self.pid, self.store_url = port, pid, store_url
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Status and body. Repeats the request once if the server had closed an idle connection."""
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

    def close(self) -> None:
        self._connection.close()

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        status, content = self.ask("POST", path, body)
        if status >= 300:
            raise RuntimeError(f"{path}: {status} {content.decode()}")
        answer: dict[str, Any] = json.loads(content)
        return answer

    def metrics(self) -> dict[str, float]:
        """Prometheus samples. Keys are names with labels, without the prefix `automr_`."""
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.removeprefix("automr_"): float(value) for name, value in pairs}

    @property
    def resident_mib(self) -> float:
        """Resident memory of all processes of the service. Pages that they share count once for each process."""
        return sum(memory_mib(pid, "VmRSS") for pid in service_processes(self.pid))

    @property
    def anonymous_mib(self) -> float:
        """The part of `resident_mib` that is no mapped file."""
        return sum(memory_mib(pid, "RssAnon") for pid in service_processes(self.pid))


def service_processes(pid: int) -> list[int]:
    """The process and all its descendants, without store servers and what they started."""
    children: dict[int, list[int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            name, facts = (directory / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            if name not in STORE_PROCESSES:
                children.setdefault(int(facts.split()[1]), []).append(int(directory.name))
    found = [pid]
    for parent in found:  # grows while it is read
        found += children.get(parent, [])
    return found


def memory_mib(pid: int, name: str) -> float:
    """A line of /proc/PID/status; 0 for a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return int(status.split(f"{name}:")[1].split()[0]) / 1024 if f"{name}:" in status else 0.0


@contextlib.contextmanager
def running_server(bundle: Path, *, store_url: str | None = None, **environment: str) -> Iterator[Server]:
    """A server that is ready, with a store of its own unless `store_url` is given; both are stopped afterwards.

    `environment`: more variables. Raises SystemExit when the server does not become ready.
    """
    with bound_socket("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    with contextlib.ExitStack() as stack:
        if store_url is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            store_url = stack.enter_context(EmbeddedServer(Path(directory))).url
        command = [sys.executable, "-m", "service", "serve", "--bundle", str(bundle), "--store", store_url]
        command += ["--port", str(port), "--log-level", "warning"]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment)
        server = Server(port, process.pid, store_url)
        stack.callback(server.close)
        try:
            _wait_until_ready(server, process)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


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
    """Send the events in batches of `size`; returns acknowledged events per second."""
    started = time.perf_counter()
    for start in range(0, len(events), size):
        server.post("/interactions", {"interactions": events[start : start + size]})
    return len(events) / (time.perf_counter() - started)


def wait_until_encoded(server: Server) -> None:
    """Wait until the memory of all users is encoded. Raises TimeoutError after `ENCODE_TIMEOUT_S`."""
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
    """Bytes of a user's states in the store for each element, the store's overhead included."""
    client = redis.asyncio.Redis.from_url(store_url)
    key = f"{user_prefix(user_id)}states:{space}"
    total, count = await client.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0), await client.hlen(key)
    await client.aclose()
    return float(total) / int(count)


def quantile_between(before: Mapping[str, float], after: Mapping[str, float], name: str, share: float) -> float:
    """The `share` quantile of what a histogram without labels observed between two calls of `Server.metrics`.

    Values are taken as evenly spread within a bucket. NaN when there are none.
    """
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
