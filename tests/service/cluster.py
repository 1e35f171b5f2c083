"""A Redis Cluster of real servers on loopback: primaries and their replicas. Nodes can be killed and started again.

`ClusterOfServers(directory)` is a context manager. Every acknowledged write is on the disk of its node, so a node that
comes back has all that it confirmed.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError

from service.store.embedded.server import _binary  # noqa: PLC2701

NUM_SLOTS = 16_384
NODE_TIMEOUT_MS = 1000  # a node that does not answer for so long is replaced
OPTIONS = {
    "bind": "127.0.0.1",
    "cluster-enabled": "yes",
    "cluster-node-timeout": str(NODE_TIMEOUT_MS),
    "cluster-require-full-coverage": "no",
    "cluster-replica-validity-factor": "0",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "repl-diskless-sync-delay": "0",
    "loglevel": "warning",
    "logfile": "valkey.log",
}


class Node:
    def __init__(self, directory: Path, port: int, bus_port: int) -> None:
        self.directory, self.port, self.bus_port = directory, port, bus_port
        directory.mkdir(parents=True)
        self.client = Redis(port=port, socket_timeout=5)
        self.start()

    def start(self) -> None:
        options = OPTIONS | {"port": str(self.port), "cluster-port": str(self.bus_port)}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen([_binary(), *arguments], cwd=self.directory, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    @property
    def name(self) -> str:
        return str(self.client.cluster("MYID").decode())

    def replication(self) -> dict[str, Any]:
        return dict(self.client.info("replication"))

    @property
    def is_primary(self) -> bool:
        return self.replication()["role"] == "master"

    def has_replicas(self, number: int) -> bool:
        """Whether it is a primary with so many replicas that have all it has."""
        facts = self.replication()
        states = [facts[f"slave{place}"]["state"] for place in range(facts.get("connected_slaves", 0))]
        return facts["role"] == "master" and states.count("online") == number


class ClusterOfServers:
    """`nodes`: first the primaries that have the slots in equal parts, then their replicas in turn."""

    def __init__(self, directory: Path, *, primaries: int = 3, replicas_of_each: int = 1) -> None:
        self._directory, self._num_primaries, self._replicas_of_each = directory, primaries, replicas_of_each
        self.nodes: list[Node] = []

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def __enter__(self) -> Self:
        ports = iter(free_ports(2 * self._num_primaries * (1 + self._replicas_of_each)))
        try:
            for port in ports:
                self.nodes.append(Node(self._directory / str(port), port, next(ports)))
            self._join()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def primary_of(self, key: str) -> Node:
        slot = self._any().execute_command("CLUSTER KEYSLOT", key)
        for first, last, (_, port, *_), *_ in self._any().execute_command("CLUSTER SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"no node has the slot of {key}")

    def replica_of(self, primary: Node) -> Node:
        port = primary.replication()["slave0"]["port"]
        return next(node for node in self.nodes if node.port == port)

    def fail_over(self, primary: Node) -> Node:
        """Kills a primary; returns the replica that has taken its place."""
        replica = self.replica_of(primary)
        primary.kill()
        until(lambda: replica.is_primary, "no replica has taken over")
        return replica

    def bring_back(self, node: Node, primary: Node) -> None:
        """Starts a killed node again, as a replica of the one that took its place."""
        node.start()
        until(lambda: primary.has_replicas(self._replicas_of_each), "the killed node does not follow")

    def primaries(self) -> list[Node]:
        return [node for node in self.nodes if node.is_primary]

    def _any(self) -> Redis:
        return next(node.client for node in self.nodes if node.process.poll() is None)

    def _join(self) -> None:
        until(lambda: all(node.client.ping() for node in self.nodes), "a node does not start")
        primaries, replicas = self.nodes[: self._num_primaries], self.nodes[self._num_primaries :]
        bounds = [NUM_SLOTS * part // self._num_primaries for part in range(self._num_primaries + 1)]
        for number, (node, first, end) in enumerate(zip(primaries, bounds, bounds[1:], strict=False), start=1):
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", number)
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            self.nodes[0].client.execute_command("CLUSTER MEET", "127.0.0.1", node.port, node.bus_port)
        until(lambda: all(self._knows(node, primaries) for node in self.nodes), "the nodes do not meet")
        for place, node in enumerate(replicas):
            node.client.execute_command("CLUSTER REPLICATE", primaries[place % len(primaries)].name)
        until(lambda: all(node.has_replicas(self._replicas_of_each) for node in primaries), "no replicas")
        size = 3 + self._replicas_of_each  # of a row: two slots, the primary, its replicas
        until(lambda: all(self._is_known(node, size) for node in self.nodes), "not all nodes know the replicas")

    def _knows(self, node: Node, primaries: Sequence[Node]) -> bool:
        return len(node.client.execute_command("CLUSTER SLOTS")) == len(primaries) and self._is_well(node)

    def _is_known(self, node: Node, size: int) -> bool:
        return all(len(row) == size for row in node.client.execute_command("CLUSTER SLOTS")) and self._is_well(node)

    def _is_well(self, node: Node) -> bool:
        info = node.client.execute_command("CLUSTER INFO")
        return bool(info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == len(self.nodes))

    def _stop(self) -> None:
        for node in self.nodes:
            node.client.close()
            node.kill()


def until(condition: Callable[[], bool], otherwise: str, *, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(RedisError):
            if condition():
                return
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def free_ports(count: int) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        ports = [int(probe.getsockname()[1]) for probe in probes]
    return iter(ports)
