"""What is broken on purpose in a store: killed, hung, full, read-only, cut, poisoned, flooded. Each is mended again."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from redis.asyncio import Redis

from service.store.embedded.server import EmbeddedServer
from tests.chaos.traffic import POISONED, Traffic

Fault = Callable[[], Awaitable[None]]


class StoreFaults:
    """Of a store that belongs to an `EmbeddedServer` of this process."""

    def __init__(self, server: EmbeddedServer, traffic: Traffic) -> None:
        self.server, self.traffic = server, traffic

    def all(self) -> dict[str, Fault]:
        return {
            "store": self.kill_store, "watcher": self.kill_watcher, "hung": self.hung, "full": self.full,
            "read-only": self.read_only, "cut": self.cut, "poisoned": self.poisoned, "flooded": self.flooded,
        }  # fmt: skip

    async def kill_store(self) -> None:
        await self._kill(self.server.pid, "store")

    async def kill_watcher(self) -> None:
        watcher = watcher_of(self.server.pid)
        assert watcher is not None, "the store has no watcher"
        await self._kill(watcher, "watcher")

    async def _kill(self, pid: int, name: str) -> None:
        before = self.server.pid
        os.kill(pid, signal.SIGKILL)
        self.traffic.tally.kills[name] += 1
        async with asyncio.timeout(60):
            while self.server.pid == before or not await self.answers():
                await asyncio.sleep(0.05)

    async def hung(self) -> None:
        pid = self.server.pid
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1.5)
        os.kill(pid, signal.SIGCONT)

    async def full(self) -> None:
        await self._set_for_a_while("maxmemory", "1mb", "0")

    async def read_only(self) -> None:
        await self._set_for_a_while("min-replicas-to-write", "9", "0")

    async def cut(self) -> None:
        async with Redis.from_url(self.server.url) as client:
            await client.execute_command("CLIENT KILL TYPE normal SKIPME yes")

    async def poisoned(self) -> None:
        """A user with keys of a wrong type waits for encoding, and an entry of the queue is not ours."""
        async with Redis.from_url(self.server.url) as client:
            await client.set(f"automr:{{{POISONED}}}:order", "text")
            await client.set(f"automr:{{{POISONED}}}:events", "text")
            await client.xadd("automr:encode", {"user": POISONED})
            await client.xadd("automr:encode", {"something": b"\xff\xfe"})

    async def flooded(self) -> None:
        """Many requests with thousands of unknown fields, at once."""
        body = {"interactions": [{f"field{number}": number for number in range(3000)}]}
        await asyncio.gather(*(self.traffic.ask("POST", "/interactions", body) for _ in range(40)))

    async def answers(self) -> bool:
        try:
            async with Redis.from_url(self.server.url, socket_timeout=1) as client:
                return bool(await client.ping())
        except Exception:  # whatever it is, it does not answer
            return False

    async def _set_for_a_while(self, option: str, bad: str, good: str) -> None:
        async with Redis.from_url(self.server.url) as client:
            await client.config_set(option, bad)
            await asyncio.sleep(0.7)
            await client.config_set(option, good)


def watcher_of(store: int) -> int | None:
    """None for a store whose watcher has ended: it has another parent then."""
    watcher = parent_of(store)
    return watcher if b"watch.py" in Path(f"/proc/{watcher}/cmdline").read_bytes() else None


def parent_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("PPid")).split()[1])
