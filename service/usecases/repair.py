"""Asks for the encoding of users whose memory lacks states.

A read of a user writes nothing to the store. A user enters the encode queue only when a read finds a missing or stale
state: after a new bundle with another space, after an item was renamed, or after a state was lost. Requests are
collected for a moment and written together, and a user is not asked for again for 30 s, so that reads stay fast and the
queue stays short. A request that is lost while the store is unavailable does no harm: the next recommendation of the
user asks again.
"""

import time

import structlog

from service.background import Deferred
from service.errors import StoreUnavailable
from service.logs import RepeatedWarnings
from service.store.client import MemoryStore

repeated = RepeatedWarnings(structlog.get_logger("service.usecases.repair"))

_COLLECT_S = 0.2
_ASK_AGAIN_S = 30.0


class Repair:
    """For one event loop."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self._users: set[str] = set()
        self._asked: set[str] = set()
        self._clear_asked_at = 0.0
        self._writing = Deferred("repair", self._write, after_s=_COLLECT_S)

    async def stop(self) -> None:
        """Writes the requests that are still waiting."""
        await self._writing.stop()

    def request(self, user_id: str) -> None:
        """Does not wait."""
        if time.monotonic() >= self._clear_asked_at:
            self._asked.clear()
            self._clear_asked_at = time.monotonic() + _ASK_AGAIN_S
        if user_id in self._asked:
            return
        self._asked.add(user_id)
        self._users.add(user_id)
        self._writing.ask()

    async def _write(self) -> None:
        users, self._users = self._users, set()
        try:
            await self.store.request_encoding(users, only_with_events=True)
        except StoreUnavailable:
            repeated.warning("store unavailable: requests for encoding were lost")
