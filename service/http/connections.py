"""Bounds of the connections of a server: how many there may be, and how long each may take to send a request.

Uvicorn limits only the time between two requests. Here a connection that sends no whole request in time, or does not
read its answer, is closed, so that silent callers cannot keep others out. Connections over the bound are refused when
their request comes; so many that files would run out are dropped at once.
"""

import os
import resource
from collections.abc import Collection
from functools import partial
from typing import Any, Protocol

import structlog

from service.background import Repeated
from service.logs import RepeatedWarnings
from service.metrics import Metrics

log = structlog.get_logger("service.connections")
repeated = RepeatedWarnings(log)

_LOOK_EVERY_S = 1.0
_COUNT_FILES_EVERY = 10  # looks
_PATIENCE_WHEN_FULL_S = 1.0
_SURPLUS = 64  # connections over the bound that are answered with a refusal
_OTHER_FILES = 128  # connections to the store, the socket of the model, log, bundle
_FEW_FILES = 0.9
_MANY_FILES = 1 << 20  # stands for an unlimited number


class Connection(Protocol):
    def waits_for(self) -> float | None:
        """Seconds for which the caller has owed the rest of a request, or has not read its answer; None for neither."""

    def give_up(self) -> None:
        """Closes the connection because the caller is late."""


class ConnectionLimits:
    """For one event loop."""

    def __init__(self, metrics: Metrics, *, most: int, receive_s: float, max_files: int = _MANY_FILES) -> None:
        """`most` connections. `receive_s`: time in which a request must arrive whole. `max_files`: of this process."""
        self.receive_s, self._metrics, self._max_files = receive_s, metrics, max_files
        self._looks = 0
        self.most = min(most, max(1, max_files - _SURPLUS - _OTHER_FILES))
        if self.most < most:
            log.warning("few open files are allowed: the bound of connections is lower", bound=self.most, asked=most)

    def is_surplus(self, number: int) -> bool:
        """The `number`-th connection is over the bound: its request is refused."""
        return number > self.most

    def is_dropped(self, number: int) -> bool:
        return number > self.most + _SURPLUS

    def count(self, reason: str) -> None:
        """Of a connection that is closed: silent, late, unread, large, refused or dropped."""
        self._metrics.closed_connections_total.labels(reason).inc()
        repeated.warning("connections closed", reason=reason)

    def watched(self, connections: Collection[Any]) -> Repeated:
        """Looks at the connections again and again, when started. Each is a `Connection`; uvicorn has the list."""
        self._metrics.connections.set_function(lambda: len(connections))
        self._metrics.max_connections.set(self.most)
        self._metrics.max_open_files.set(self._max_files)
        return Repeated("connections", partial(self._look, connections), every_s=_LOOK_EVERY_S, at_once=True)

    async def _look(self, connections: Collection[Connection]) -> None:
        self.look(connections)
        if self._looks % _COUNT_FILES_EVERY == 0:
            self._count_files()
        self._looks += 1

    def look(self, connections: Collection[Connection]) -> None:
        """Closes the connections whose caller is late. When there are too many, nobody may take long."""
        patience_s = min(self.receive_s, _PATIENCE_WHEN_FULL_S) if len(connections) >= self.most else self.receive_s
        for connection in list(connections):
            waited_s = connection.waits_for()
            if waited_s is not None and waited_s > patience_s:
                connection.give_up()

    def _count_files(self) -> None:
        num_files = len(os.listdir("/dev/fd"))
        self._metrics.open_files.set(num_files)
        if num_files > _FEW_FILES * self._max_files:
            repeated.warning("open files run out")


def raise_file_limit() -> int:
    """Allows this process as many open files as the system lets it have; returns their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard if hard != resource.RLIM_INFINITY else _MANY_FILES, _MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as error:  # macOS allows fewer than its hard limit says
            log.warning("the limit of open files cannot be raised", limit=soft, reason=str(error))
    return soft if soft != resource.RLIM_INFINITY else _MANY_FILES
