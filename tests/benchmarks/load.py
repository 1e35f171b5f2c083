"""HTTP/1.1 load generator for one path of a server on this machine.

`generate(load)` runs this file as a program, so that clients and server share no interpreter. The load goes in and the
outcome comes back as JSON. The generator is cheap: requests are rendered before the load starts, and connections are
asyncio protocols that stay open. It also measures its own delay (`Outcome.lags_s`), because on a small machine it
competes with the server for the cores.
"""

import asyncio
import gc
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import uvloop

PATIENCE_S = 30.0  # how long a client waits for an answer
MAX_CONNECTIONS = 2000
MAX_REQUESTS = 500_000  # of one open loop
_LEAST_SLEEP_S = 0.001  # uvloop's timers count milliseconds
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """`bodies` are posted to `path` in turn for `seconds`; the paths `gets` are read instead, if there are any.

    Closed loop (`rate` = 0): each of `num_clients` sends its next request when it has its answer.
    Open loop (`rate` > 0, requests/s): the times of all requests are drawn before the load starts, so they do not
    depend on the answers. `lead_s` seconds of the same load come before and after `seconds`; their requests are sent
    but not counted, so that the counted ones see a steady state.

    `deadline_s` says which answers count as good; None: all answers of the model. `key`: API key of the requests.
    `pause_s`: how long a client of a closed loop waits after a refusal, which takes the generator's processor, too.
    """

    port: int
    path: str
    bodies: list[dict[str, Any]]
    seconds: float
    num_clients: int = 1
    rate: float = 0.0
    lead_s: float = 0.0
    deadline_s: float | None = None
    key: str = ""
    pause_s: float = 0.0
    gets: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What happened to the counted requests. All times are in seconds, from the time at which the request was due.

    `elapsed_s`: closed loop, from the first request to the last answer; open loop, `Load.seconds`.
    `lost`: requests without a complete answer. `num_late`: answers of the model after the deadline.
    """

    elapsed_s: float = 0.0
    lost: int = 0
    num_late: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    answered_s: list[float] = field(default_factory=list)  # status 2xx, fallbacks included
    good_s: list[float] = field(default_factory=list)  # status 2xx, no fallback, within the deadline
    refused_s: list[float] = field(default_factory=list)  # any other status
    lags_s: list[float] = field(default_factory=list)  # delay of the generator itself, for each request of an open loop

    @property
    def num_requests(self) -> int:
        return len(self.answered_s) + len(self.refused_s) + self.lost

    @property
    def rate(self) -> float:
        """Answers of the model (no fallbacks) per second."""
        return (len(self.answered_s) - sum(self.fallbacks.values())) / self.elapsed_s

    @property
    def good_rate(self) -> float:
        """Good answers per second."""
        return len(self.good_s) / self.elapsed_s

    def count(self, reply: "Reply | None", seconds: float, deadline_s: float | None) -> None:
        """None: no complete answer came."""
        if reply is None:
            self.lost += 1
            return
        _add(self.statuses, str(reply.status))
        if reply.status >= 300:
            self.refused_s.append(seconds)
            return
        self.answered_s.append(seconds)
        if b'"fallback":null' not in reply.body and b'"fallback":' in reply.body:
            _add(self.fallbacks, json.loads(reply.body)["fallback"])
        elif deadline_s is None or seconds <= deadline_s:
            self.good_s.append(seconds)
        else:
            self.num_late += 1


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def generate(load: Load) -> Outcome:
    """Run the load in a process of its own. Raises RuntimeError with its stderr when it fails."""
    limit_s = load.seconds + 2 * load.lead_s + 2 * PATIENCE_S
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "outcome.json"
        command, text = [sys.executable, __file__, str(found)], json.dumps(asdict(load))
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=limit_s)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return Outcome(**json.loads(found.read_text()))


# --- one connection ---------------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    status: int
    body: bytes


def rendered(method: str, path: str, body: bytes = b"", *, key: str = "") -> bytes:
    """A whole HTTP request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"X-API-Key: {key}\r\n" if key else ""
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """A connection that stays open, with one request at a time. Answers must have a Content-Length."""

    def __init__(self) -> None:
        self.is_open = False  # false again as soon as the server has closed it
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._on_reply: Callable[[Reply | None], None] | None = None

    @classmethod
    async def open(cls, port: int) -> "Connection":
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    def send(self, request: bytes, on_reply: Callable[[Reply | None], None] | None = None) -> None:
        """`on_reply` is called once: with the answer, or with None when the connection ends before it is complete."""
        self._on_reply = on_reply
        if self._transport is None or not self.is_open:
            self._finish(None)
        else:
            self._transport.write(request)

    async def ask(self, request: bytes) -> Reply | None:
        """None when no complete answer comes within `PATIENCE_S`; the connection is closed then."""
        answered: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        self.send(request, lambda reply: None if answered.done() else answered.set_result(reply))
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await answered
        except TimeoutError:
            self.close()
            return None

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = cast(asyncio.Transport, transport), True  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = _CONTENT_LENGTH.search(data, 0, end)
        if length is None:
            self.close()
        elif len(data) >= end + int(length[1]):
            self._buffer = b""
            self._finish(Reply(int(data[9:12]), data[end:]))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._finish(None)

    def _finish(self, reply: Reply | None) -> None:
        on_reply, self._on_reply = self._on_reply, None
        if on_reply is not None:
            on_reply(reply)


# --- the load ---------------------------------------------------------------------------------------------------------


class Arrival(NamedTuple):
    """A request of an open loop: seconds after the start of the load, and whether it is counted."""

    at_s: float
    is_counted: bool


def arrivals(load: Load) -> list[Arrival]:
    """All requests of an open loop, in order; the same for every load of equal rate and length.

    Each of the three parts (lead, counted, lead) has exactly rate × length requests at uniformly random times: a
    Poisson process whose count is given. So two runs at one rate offer the same number of requests.
    """
    rng = random.Random(0)
    found: list[Arrival] = []
    start = 0.0
    for length, is_counted in ((load.lead_s, False), (load.seconds, True), (load.lead_s, False)):
        times = sorted(start + length * rng.random() for _ in range(round(load.rate * length)))
        found += [Arrival(at_s, is_counted) for at_s in times]
        start += length
    if len(found) > MAX_REQUESTS:
        raise ValueError(f"{len(found)} requests are too many for one load; at most {MAX_REQUESTS}")
    return found


class Generator:
    """Runs one load in the current event loop."""

    def __init__(self, load: Load) -> None:
        self.load, self.outcome = load, Outcome()
        bodies = (json.dumps(body).encode() for body in load.bodies)
        posts = (rendered("POST", load.path, body, key=load.key) for body in bodies)
        self._requests = [rendered("GET", path, key=load.key) for path in load.gets] or list(posts)
        self._number = 0
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._waiting: deque[tuple[float, bool]] = deque()  # (due, is_counted) of requests without a connection
        self._unanswered = 0  # counted requests
        self._connecting: set[asyncio.Task[None]] = set()
        self._is_over = False

    async def run(self) -> Outcome:
        started = time.perf_counter()
        if self.load.rate:
            await self._open_loop(arrivals(self.load))
            self.outcome.elapsed_s = self.load.seconds
        else:
            ends = started + self.load.seconds
            await asyncio.gather(*(self._client(ends) for _ in range(self.load.num_clients)))
            self.outcome.elapsed_s = time.perf_counter() - started
        self._close()
        return self.outcome

    def _close(self) -> None:
        self._is_over = True
        for connection in self._open:
            connection.close()
        for task in self._connecting:
            task.cancel()

    def _next_request(self) -> bytes:
        self._number += 1
        return self._requests[self._number % len(self._requests)]

    async def _client(self, ends: float) -> None:
        connection = await self._opened()
        while (now := time.perf_counter()) < ends:
            if not connection.is_open:
                connection = await self._opened()
            reply = await connection.ask(self._next_request())
            self.outcome.count(reply, time.perf_counter() - now, self.load.deadline_s)
            if self.load.pause_s and reply is not None and reply.status == 429:
                await asyncio.sleep(self.load.pause_s)

    async def _opened(self) -> Connection:
        connection = await Connection.open(self.load.port)
        self._open.add(connection)
        return connection

    async def _open_loop(self, planned: Sequence[Arrival]) -> None:
        self._unanswered = sum(arrival.is_counted for arrival in planned)
        started = time.perf_counter()
        for at_s, is_counted in planned:
            while (wait_s := started + at_s - time.perf_counter()) > 0:
                await asyncio.sleep(max(wait_s, _LEAST_SLEEP_S))
            if is_counted:
                self.outcome.lags_s.append(-wait_s)
            self._start(started + at_s, is_counted)
        ends = time.perf_counter() + PATIENCE_S
        while self._unanswered and time.perf_counter() < ends:
            await asyncio.sleep(0.01)
        self.outcome.lost += self._unanswered

    def _start(self, due: float, is_counted: bool) -> None:
        """Send the request on an idle connection, or open one, or let it wait for one."""
        connection = self._idle_connection()
        if connection is None and len(self._open) + len(self._connecting) >= MAX_CONNECTIONS:
            self._waiting.append((due, is_counted))
            return
        if connection is not None:
            self._send(connection, due, is_counted)
            return
        task = asyncio.get_running_loop().create_task(self._connect(due, is_counted))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _idle_connection(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._open.discard(connection)
        return None

    async def _connect(self, due: float, is_counted: bool) -> None:
        try:
            connection = await self._opened()
        except OSError:
            self._count(None, due, is_counted)
        else:
            self._send(connection, due, is_counted)

    def _send(self, connection: Connection, due: float, is_counted: bool) -> None:
        def on_reply(reply: Reply | None) -> None:
            self._count(reply, due, is_counted)
            self._release(connection)

        connection.send(self._next_request(), on_reply)

    def _release(self, connection: Connection) -> None:
        """Give the connection to a request that waits for one."""
        self._idle.append(connection)
        if self._waiting and not self._is_over:
            self._start(*self._waiting.popleft())

    def _count(self, reply: Reply | None, due: float, is_counted: bool) -> None:
        if is_counted and not self._is_over:
            self._unanswered -= 1
            self.outcome.count(reply, time.perf_counter() - due, self.load.deadline_s)


def main() -> int:
    load = Load(**json.load(sys.stdin))
    gc.disable()  # a collection would delay requests; the process ends soon
    Path(sys.argv[1]).write_text(json.dumps(asdict(uvloop.run(Generator(load).run()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
