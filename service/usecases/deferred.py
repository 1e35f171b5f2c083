"""Deferred, best-effort requests for encoding, written to the store after the answer of a recommendation.

Collected for a moment and written together, because each write that the store syncs to disk delays all reads. A request
that is lost while the store is away does no harm: the next recommendation of the user asks again.
"""

import asyncio
import time

import structlog

from service.errors import StoreUnavailable
from service.store.client import MemoryStore

log = structlog.get_logger("service.usecases.deferred")

_COLLECT_S = 0.2
_ASK_AGAIN_S = 30.0


class Afterwards:
    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self._unencoded: set[str] = set()
        self._asked: set[str] = set()
        self._forget_asked_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = asyncio.Event()

    async def stop(self) -> None:
        """Writes what is still to be written."""
        self._is_stopping.set()
        if self._task is not None:
            await self._task

    def request_encoding(self, user_id: str) -> None:
        """Heals a lost state, and fills a new space user by user. Not again for a while: the queue must stay short."""
        if time.monotonic() >= self._forget_asked_at:
            self._asked.clear()
            self._forget_asked_at = time.monotonic() + _ASK_AGAIN_S
        if user_id not in self._asked:
            self._asked.add(user_id)
            self._unencoded.add(user_id)
            self._write_soon()

    def _write_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write(), name="afterwards")

    async def _write(self) -> None:
        while self._unencoded:
            try:
                async with asyncio.timeout(_COLLECT_S):
                    await self._is_stopping.wait()
            except TimeoutError:
                pass
            unencoded, self._unencoded = self._unencoded, set()
            try:
                await self.store.request_encoding(unencoded)
            except StoreUnavailable:
                log.warning("store away, requests for encoding were lost")
