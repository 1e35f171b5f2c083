"""A load generator that costs little: HTTP/1.1 over plain asyncio streams, in a process of its own.

`generate(load)` runs this file as a program, so that clients and server share no interpreter; the load goes in and the
outcome comes back as JSON.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import uvloop

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Load:
    """`bodies` are posted to `path` in turn for `seconds`.

    Closed loop: each of `num_clients` asks again when it has its answer. Open loop, where `rate` (requests/s) is given:
    requests come at random times, whether or not earlier ones have been answered.
    """

    port: int
    path: str
    bodies: list[dict[str, Any]]
    seconds: float
    num_clients: int = 1
    rate: float = 0.0


@dataclass
class Outcome:
    """Seconds are counted from the time at which a request was due. `lost` had no complete answer."""

    elapsed_s: float = 0.0
    lost: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    answered_s: list[float] = field(default_factory=list)  # of 2xx, fallbacks included
    refused_s: list[float] = field(default_factory=list)  # of all others

    @property
    def num_full(self) -> int:
        """Answers of the model."""
        return len(self.answered_s) - sum(self.fallbacks.values())

    @property
    def rate(self) -> float:
        """Answers of the model per second."""
        return self.num_full / self.elapsed_s


class Reply(NamedTuple):
    status: int
    body: bytes


class Connection:
    """One request at a time; `reply` raises OSError or EOFError when the answer is cut off."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, method: str, path: str, body: bytes, num_bytes: int | None = None) -> None:
        """`num_bytes` of the body, by default all: a caller who breaks off announces more than it sends."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:num_bytes])

    async def reply(self) -> Reply:
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        if b"\r\ntransfer-encoding: chunked" in head:
            return Reply(status, await self._chunks())
        length = int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
        return Reply(status, await self.reader.readexactly(length))

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            parts.append((await self.reader.readexactly(size + 2))[:-2])
        await self.reader.readuntil(b"\r\n")
        return b"".join(parts)

    async def ask(self, method: str, path: str, body: bytes = b"") -> Reply:
        self.send(method, path, body)
        return await self.reply()

    @property
    def is_open(self) -> bool:
        """False once the server has hung up, as it does with connections that idle."""
        return not self.reader.at_eof()

    def close(self) -> None:
        self.writer.close()


def generate(load: Load) -> Outcome:
    """Runs the load in a process of its own."""
    command, text = [sys.executable, __file__], json.dumps(asdict(load))
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Outcome(**json.loads(done.stdout))


class _Run:
    def __init__(self, load: Load) -> None:
        self.load, self.outcome = load, Outcome()
        self.bodies = [json.dumps(body).encode() for body in load.bodies]
        self.number = 0
        self.idle: list[Connection] = []

    async def run(self) -> Outcome:
        started = time.perf_counter()
        ends = started + self.load.seconds
        if self.load.rate:
            await self._open_loop(ends)
        else:
            await asyncio.gather(*(self._client(ends) for _ in range(self.load.num_clients)))
        self.outcome.elapsed_s = time.perf_counter() - started
        return self.outcome

    async def _client(self, ends: float) -> None:
        while (now := time.perf_counter()) < ends:
            await self._ask(now)

    async def _open_loop(self, ends: float) -> None:
        dice, due = random.Random(0), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while due < ends:
                await asyncio.sleep(due - time.perf_counter())
                group.create_task(self._ask(due))
                due += dice.expovariate(self.load.rate)

    async def _ask(self, due: float) -> None:
        self.number += 1
        connection = await self._connection()
        try:
            async with asyncio.timeout(PATIENCE_S):
                reply = await connection.ask("POST", self.load.path, self.bodies[self.number % len(self.bodies)])
        except (OSError, EOFError):  # a TimeoutError is an OSError
            self.outcome.lost += 1
            connection.close()
            return
        self.idle.append(connection)
        self._count(reply, time.perf_counter() - due)

    async def _connection(self) -> Connection:
        while self.idle:
            if (connection := self.idle.pop()).is_open:
                return connection
        return await Connection.open(self.load.port)

    def _count(self, reply: Reply, seconds: float) -> None:
        _add(self.outcome.statuses, str(reply.status))
        if reply.status >= 300:
            self.outcome.refused_s.append(seconds)
            return
        self.outcome.answered_s.append(seconds)
        if b'"fallback":null' not in reply.body and b'"fallback":' in reply.body:
            _add(self.outcome.fallbacks, json.loads(reply.body)["fallback"])


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def main() -> int:
    load = Load(**json.load(sys.stdin))
    print(json.dumps(asdict(uvloop.run(_Run(load).run()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
