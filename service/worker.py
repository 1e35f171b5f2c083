"""Makes stored states equal to what a backfill of the log would make, whatever happened before.

Takes users from the encode queue and reconciles each: states that are missing or stale are made anew from the log, so
retries, late events and crashes all end in the same memory. Any number of workers may run, in servers or on their own.
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import structlog

from model_store.bundle import Bundle
from service.engine import Engine
from service.errors import StoreUnavailable, Unavailable
from service.items import Items
from service.memory import MemoryStore
from service.metrics import Metrics
from service.timeline import Timeline, Unencoded, events_needed

log = structlog.get_logger("service.worker")

T = TypeVar("T")

_USERS_PER_ROUND = 32
_POLL_MS = 1000
_BACKOFF_S = 1.0


class Worker:
    def __init__(self, bundle: Bundle, engine: Engine, store: MemoryStore, items: Items, metrics: Metrics) -> None:
        self.bundle, self.engine, self.store, self.items, self.metrics = bundle, engine, store, items, metrics
        self._consumer = f"{socket.gethostname()}-{os.getpid()}"

    async def run(self) -> None:
        """Until cancelled. A store that is away is waited for."""
        while True:
            try:
                await self.work(block_ms=_POLL_MS)
            except StoreUnavailable:
                log.warning("store away, encoding waits")
                await asyncio.sleep(_BACKOFF_S)
            except Exception:  # a worker that stops would be noticed too late
                log.exception("encoding failed, trying again")
                await asyncio.sleep(_BACKOFF_S)

    async def work(self, *, block_ms: int) -> int:
        """One round: entries are acknowledged when their users are done, so a crash leaves them to the next worker."""
        entries = await self.store.next_encodings(self._consumer, count=_USERS_PER_ROUND, block_ms=block_ms)
        if entries:
            by_user: dict[str, list[str]] = {}
            for entry_id, user_id in entries:
                by_user.setdefault(user_id, []).append(entry_id)
            await self.items.catch_up()  # an event may speak of an item that is a moment old
            await _all(self._settle(user_id, entry_ids) for user_id, entry_ids in by_user.items())
        return len(entries)

    async def _settle(self, user_id: str, entry_ids: Sequence[str]) -> None:
        """A user that cannot be encoded is logged and let go: the next event or request asks again."""
        try:
            await self.reconcile(user_id)
        except Unavailable:
            raise
        except Exception:
            log.exception("a user could not be encoded")
        await self.store.encoded(entry_ids)
        for entry_id in entry_ids:
            queued_at_s = int(entry_id.partition("-")[0]) / 1000  # a stream id begins with the server's clock
            self.metrics.ingest_visible_lag_seconds.observe(max(0.0, time.time() - queued_at_s))

    async def reconcile_all(self, user_ids: Iterable[str]) -> int:
        return sum(await _all(self.reconcile(user_id) for user_id in sorted(set(user_ids))))

    async def reconcile(self, user_id: str) -> int:
        """Encodes what is missing or stale; returns how many states were written.

        Looks again after writing: events that came meanwhile make some of these states stale, and whoever writes last
        must be the one to see it.
        """
        space, limit = self.bundle.manifest.space, events_needed(self.bundle)
        num_written = 0
        while True:
            timeline = Timeline(await self.store.recall(user_id, space, limit), self.bundle)
            todo = timeline.unencoded()
            written = await self._encode(user_id, todo, timeline.num_kept) if todo else 0
            if not written:
                return num_written
            num_written += written

    async def _encode(self, user_id: str, todo: Sequence[Unencoded], num_kept: int) -> int:
        self.metrics.stale_states_total.inc(sum(part.is_stale for part in todo))
        states = await self.engine.encode([self.bundle.prompt.tokens(part.titles) for part in todo])
        codec = self.bundle.codec
        pairs = zip(todo, states, strict=True)
        records = {part.event.event_id: codec.encode(state, part.fingerprint) for part, state in pairs}
        return await self.store.save_states(user_id, self.bundle.manifest.space, records, keep=num_kept)


async def backfill(worker: Worker) -> dict[str, int]:
    """Every user of the store, one round at a time. Interrupt it as you like: what is done is not done again."""
    num_users = num_states = 0
    async for user_ids in _rounds(worker.store.users()):
        num_states += await worker.reconcile_all(user_ids)
        num_users += len(user_ids)
        log.info("backfill", users=num_users, states=num_states)
    return {"users": num_users, "states": num_states}


async def _rounds(users: AsyncIterator[str]) -> AsyncIterator[set[str]]:
    round_: set[str] = set()
    async for user_id in users:
        round_.add(user_id)
        if len(round_) >= _USERS_PER_ROUND:
            yield round_
            round_ = set()
    if round_:
        yield round_


async def _all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results when all are done; the first error only then, so that one failure stops no other."""
    results: list[T] = []
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results
