"""Breaks a running service on purpose, and counts what was lost: `make chaos`. Prints a table and one last JSON line.

    python -m tests.chaos.run [--kills 200] [--odd 200] [--seed 1]

Three set-ups, one after the other, with requests all the time:
- a server with its embedded store: kills of the server, of the model's process, of the store and of its watcher;
- a server with a worker and a replicated store: kills of worker, store and watcher, a failover, all of `faults.py`;
- a server with a Redis Cluster of three primaries and three replicas: kills of primaries.

Then ten rolling restarts under load (`tests/service/test_server.py`), and thousands of odd requests to every operation
and to chains of operations (`tests/service/fuzzing.py`). Exit code 0 if nothing was lost, doubled, brought back, harmed
or reset, all odd requests were sent, and none of them was answered with a status of 500 or more.

A kill of the server breaks the requests in work: they are counted by themselves, and senders repeat them. `reset`
counts requests that broke while the server was alive.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
from redis.asyncio import Redis

from service import logs
from service.store.embedded.server import EmbeddedServer
from tests.chaos.faults import StoreFaults, parent_of, watcher_of
from tests.chaos.traffic import Tally, Traffic
from tests.conftest import write_bundle
from tests.service import fuzzing
from tests.service.cluster import ClusterOfServers
from tests.service.test_server import rolling_stops

ROOT = Path(__file__).resolve().parents[2]
ROLLING = 10  # restarts
SHARES = {"store": 0.36, "watcher": 0.34, "model": 0.12, "worker": 0.1, "primary": 0.06, "server": 0.06}  # of the kills
ODD_S = 240.0  # most time for requests to single operations
FAULTS = ("hung", "full", "read-only", "cut", "poisoned", "flooded")


class Program:
    """A process of ours that can be killed and started again."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._command = [sys.executable, "-m", "service", *arguments, "--log-level", "error"]
        self._environment = environment | {"OMP_NUM_THREADS": "1", "AUTOMR_THREADS": "1"}
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        kept = {name: text for name, text in os.environ.items() if not name.startswith("AUTOMR_")}
        return subprocess.Popen(
            self._command, cwd=ROOT, env=kept | self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.process = self._start()

    def child(self, part: str) -> int | None:
        """Process id of a child whose command line has this text."""
        for entry in Path("/proc").iterdir():
            try:
                is_part = entry.name.isdecimal() and part.encode() in (entry / "cmdline").read_bytes()
                if is_part and parent_of(int(entry.name)) == self.process.pid:
                    return int(entry.name)
            except (OSError, StopIteration):
                continue
        return None


class Chaos:
    def __init__(self, tally: Tally, dice: random.Random, bundle: Path, place: Path, kills: int) -> None:
        self.tally, self.dice, self.bundle, self.place = tally, dice, bundle, place
        self.wanted = {name: max(1, round(share * kills)) for name, share in SHARES.items()}

    async def run(self) -> None:
        await self._embedded()
        await self._shared()
        await self._clustered()

    # ---- a server with its embedded store

    async def _embedded(self) -> None:
        directory, port = self.place / "embedded", free_port()
        server = Program("serve", "--bundle", str(self.bundle), "--store", f"embedded:{directory}", "--port", str(port))
        try:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                traffic = Traffic(client, self.tally, self.dice.randrange(1000), "a")
                await self._first_ready(traffic)
                traffic.start()
                counts = {"server": 1.0, "model": 1.0, "store": 0.4, "watcher": 0.4}
                for name in self._order(counts):
                    await self._kill_part(name, server, directory, traffic)
                await traffic.stop()
                await traffic.look()
        finally:
            server.kill()

    async def _kill_part(self, name: str, server: Program, directory: Path, traffic: Traffic) -> None:
        if name == "server":
            traffic.is_killed = True
            server.restart()
        else:
            async with asyncio.timeout(120):
                while not kill_child(name, server, directory):  # it is being started again
                    await asyncio.sleep(0.2)
        self.tally.kills[name] += 1
        await self._ready(traffic)
        await asyncio.sleep(self.dice.random() / 2)
        traffic.is_killed = False

    # ---- a server, a worker, a primary and a replica

    async def _shared(self) -> None:
        port, store_port = free_port(), free_port()
        async with AsyncExitStack() as stack:
            primary = stack.enter_context(EmbeddedServer(self.place / "primary"))
            replica = stack.enter_context(EmbeddedServer(self.place / "replica"))
            await listen(primary, store_port)
            await follow(replica, store_port)
            common = "--bundle", str(self.bundle), "--store", f"redis://127.0.0.1:{store_port}/0"
            asked = {"AUTOMR_DURABILITY": "replicated", "AUTOMR_ENCODE_IN_PROCESS": "false"}
            server = Program("serve", *common, "--port", str(port), **asked)
            stack.callback(server.kill)
            worker = Program("worker", *common)
            stack.callback(lambda: worker.kill())
            client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10)
            await stack.enter_async_context(client)
            traffic = Traffic(client, self.tally, self.dice.randrange(1000), "b")
            await self._first_ready(traffic)
            traffic.start()
            faults = StoreFaults(primary, traffic)
            steps = [*self._order({"worker": 1.0, "store": 0.6, "watcher": 0.6}), *FAULTS]
            self.dice.shuffle(steps)
            for name in steps:
                if name == "worker":
                    worker.restart()
                    self.tally.kills["worker"] += 1
                else:
                    await faults.all()[name]()
                    await listen(primary, store_port)
                    self.tally.faults.update({name} & set(FAULTS))
                await asyncio.sleep(self.dice.random() / 2)
            await self._ready(traffic)
            await self._fail_over(primary, replica, store_port, stack)
            await self._ready(traffic)
            await traffic.stop()
            await traffic.look()

    async def _fail_over(
        self, primary: EmbeddedServer, replica: EmbeddedServer, store_port: int, stack: AsyncExitStack
    ) -> None:
        """The primary is lost for good while its replica lags; the replica takes its place and gets a replica."""
        os.kill(replica.pid, signal.SIGSTOP)
        await asyncio.sleep(1.0)
        os.kill(primary.pid, signal.SIGKILL)
        primary.stop()
        os.kill(replica.pid, signal.SIGCONT)
        async with Redis.from_url(replica.url) as client:
            await client.replicaof("NO", "ONE")
        await listen(replica, store_port)
        await follow(stack.enter_context(EmbeddedServer(self.place / "third")), store_port)
        self.tally.kills["store"] += 1
        self.tally.faults["failed over"] += 1

    # ---- a server, and a cluster whose primaries are killed

    async def _clustered(self) -> None:
        port = free_port()
        async with AsyncExitStack() as stack:
            servers = stack.enter_context(ClusterOfServers(self.place / "cluster"))
            common = "--bundle", str(self.bundle), "--store", servers.url, "--port", str(port)
            server = Program("serve", *common, AUTOMR_DURABILITY="replicated")
            stack.callback(server.kill)
            client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10)
            await stack.enter_async_context(client)
            traffic = Traffic(client, self.tally, self.dice.randrange(1000), "c")
            await self._first_ready(traffic)
            traffic.start()
            for _ in range(self.wanted["primary"]):
                primary = self.dice.choice(servers.primaries())
                promoted = await asyncio.to_thread(servers.fail_over, primary)
                await asyncio.to_thread(servers.bring_back, primary, promoted)
                self.tally.kills["primary"] += 1
                await asyncio.sleep(self.dice.random() / 2)
            await self._ready(traffic)
            await traffic.stop()
            await traffic.look()

    def _order(self, parts: dict[str, float]) -> list[str]:
        """Which part is killed when; `parts`: share of its kills in this set-up."""
        order = [name for name, share in parts.items() for _ in range(round(share * self.wanted[name]))]
        self.dice.shuffle(order)
        return order

    async def _first_ready(self, traffic: Traffic) -> None:
        """Until then nobody listens, and nothing is counted."""
        traffic.is_killed, broken = True, self.tally.broken
        await self._ready(traffic)
        traffic.is_killed, self.tally.broken = False, broken

    async def _ready(self, traffic: Traffic) -> None:
        await traffic.until("GET", "/readyz", None, 200)


def kill_child(name: str, server: Program, directory: Path) -> bool:
    """False if there is no such process at the moment."""
    try:
        store = int((directory / "automr.lock").read_text())
        pid = store if name == "store" else watcher_of(store) if name == "watcher" else server.child("engine.model")
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return False
    return True


async def listen(server: EmbeddedServer, port: int) -> None:
    """The server was started without a port; after each start it needs one again."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with Redis.from_url(server.url, socket_timeout=2) as client:
                    await client.config_set("bind", "127.0.0.1")
                    await client.config_set("protected-mode", "no")
                    await client.config_set("repl-diskless-sync-delay", 0)
                    await client.config_set("port", port)
                    return
            except Exception:  # it is still starting
                await asyncio.sleep(0.05)


async def follow(server: EmbeddedServer, port: int) -> None:
    async with Redis.from_url(server.url) as client:
        await client.replicaof("127.0.0.1", port)
        async with asyncio.timeout(60):
            while (await client.info("replication"))["master_link_status"] != "up":
                await asyncio.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def send_odd_requests(bundle: Path, place: Path, each: int, number: int) -> tuple[Counter[int], bool]:
    """How often each status was the answer, and whether all was sent that should be.

    `each`: requests to every operation; `number`: the seed.
    """
    is_whole = False
    with EmbeddedServer(place / "odd") as server, fuzzing.opened(bundle, server.url) as app:
        try:
            fuzzing.fuzz(app, each=each, within_s=ODD_S, number=number)
            fuzzing.follow(app, chains=each // 4, steps=12, number=number)
            is_whole = True
        except (Exception, BaseExceptionGroup):
            traceback.print_exc()
        return app.statuses, is_whole


def table(tally: Tally, odd: Counter[int], seconds: float) -> str:
    rows = [("kills", sum(tally.kills.values())), *((f"kills of {name}", n) for name, n in sorted(tally.kills.items()))]
    rows += [(f"store {name}", number) for name, number in sorted(tally.faults.items())]
    rows += [("users deleted", len(tally.deleted)), ("acknowledged", tally.num_acknowledged)]
    rows += [("requests broken by kills of the server, repeated", tally.broken), *tally.bad.items()]
    rows += [(f"requests answered during {ROLLING} rolling restarts", tally.served_in_restarts)]
    rows += [("odd requests", odd.total()), ("odd requests answered with 500 or more", num_failed(odd))]
    rows.append(("seconds", round(seconds)))
    return "\n".join(["| what | number |", "|---|---|", *(f"| {name} | {number} |" for name, number in rows)])


def num_failed(statuses: Counter[int]) -> int:
    return sum(number for status, number in statuses.items() if status >= 500)


def main() -> int:
    parser = argparse.ArgumentParser(description="Break the service on purpose and count what was lost.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--odd", type=int, default=200, help="odd requests to each operation")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    tally, started = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="automr-chaos-") as name:
        bundle = Path(name) / "bundle"
        write_bundle(bundle)
        asyncio.run(Chaos(tally, random.Random(args.seed), bundle, Path(name), args.kills).run())
        tally.served_in_restarts, broken = rolling_stops(ROLLING)
        tally.reset += len(broken)
        print(table(tally, Counter(), time.monotonic() - started), flush=True)  # odd requests come next
        logs.configure(level="error")
        odd, is_whole = send_odd_requests(bundle, Path(name), args.odd, args.seed)
    print(table(tally, odd, time.monotonic() - started))
    facts = {"kills": dict(tally.kills), "acknowledged": tally.num_acknowledged, "broken": tally.broken, **tally.bad}
    print(json.dumps({**facts, "odd_requests": odd.total(), "odd_failed": num_failed(odd)}))
    return int(any(tally.bad.values()) or num_failed(odd) > 0 or not is_whole)


if __name__ == "__main__":
    raise SystemExit(main())
