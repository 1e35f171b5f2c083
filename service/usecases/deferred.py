"""What a recommendation leaves behind, written when the answer is out: retrieval weights, requests for encoding.

Collected for a moment and written at once, since each write that the store syncs to disk holds up everybody's reads.
Nobody waits for it, and what is lost with a store that is away does no harm: the next recommendation says it again.
"""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from service.errors import StoreUnavailable
from service.store.client import MemoryStore
from service.store.events import Event

log = structlog.get_logger("service.usecases.deferred")

_COLLECT_S = 0.2
_ASK_AGAIN_S = 30.0


class Afterwards:
    def __init__(self, store: MemoryStore, space: str) -> None:
        self.store, self.space = store, space
        self._weights: dict[str, tuple[Sequence[Event], NDArray[np.float32]]] = {}
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

    def keep_weights(self, user_id: str, events: Sequence[Event], weights: NDArray[np.float32]) -> None:
        """One weight for each event; `GET /users` shows those of the last retrieval."""
        self._weights[user_id] = events, weights
        self._write_soon()

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
        while self._weights or self._unencoded:
            try:
                async with asyncio.timeout(_COLLECT_S):
                    await self._is_stopping.wait()
            except TimeoutError:
                pass
            weights = {user_id: _by_event(*each) for user_id, each in self._weights.items()}
            self._weights = {}
            unencoded, self._unencoded = self._unencoded, set()
            try:
                await self.store.save_retrievals(self.space, weights)
                await self.store.request_encoding(unencoded)
            except StoreUnavailable:
                log.warning("writes that nobody waits for were lost: store away")


def _by_event(events: Sequence[Event], weights: NDArray[np.float32]) -> dict[str, float]:
    return {event.event_id: round(weight, 4) for event, weight in zip(events, weights.tolist(), strict=True)}
