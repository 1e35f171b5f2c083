"""A circuit breaker: callers do not wait again and again for a store that hangs.

After `MOST_TIMEOUTS` commands in a row that did not answer in time, further ones fail at once. Meanwhile a task asks
the store every `PROBE_EVERY_S`; its first answer lets commands through again. Other errors do not count, because they
come at once. For one event loop. Knows no client.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from service.errors import StoreUnavailable

log = structlog.get_logger("service.breaker")

MOST_TIMEOUTS = 3
PROBE_EVERY_S = 0.5


class Breaker:
    """`probe` asks the store once, and raises StoreUnavailable when it does not answer."""

    def __init__(self, probe: Callable[[], Awaitable[None]]) -> None:
        self._probe = probe
        self._num_timeouts = 0
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._num_timeouts >= MOST_TIMEOUTS

    def check(self) -> None:
        """Raises StoreUnavailable while the store hangs."""
        if self.is_open:
            raise StoreUnavailable("The memory store did not answer several times and is not asked until it does.")

    def answered(self) -> None:
        if self.is_open:
            log.info("the store answers again")
        self._num_timeouts = 0

    def timed_out(self) -> None:
        self._num_timeouts += 1
        if self.is_open and (self._probing is None or self._probing.done()):
            log.error("the store hangs, requests are answered without it until it answers")
            self._probing = asyncio.create_task(self._ask(), name="store-probe")

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])

    async def _ask(self) -> None:
        while self.is_open:
            await asyncio.sleep(PROBE_EVERY_S)
            try:
                await self._probe()
            except StoreUnavailable:
                continue
            self.answered()
