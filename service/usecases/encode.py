"""Makes stored states equal to what a backfill of the log would make, whatever happened before.

Takes users from the encode queue and reconciles each: states that are missing or stale are made anew from the log, so
retries, late events and crashes all end in the same memory. Any number of workers may run, in servers or on their own.
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import structlog

from model_store.bundle import Bundle
from service.engine.engine import Engine
from service.errors import StoreUnavailable, Unavailable
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.events import Recalled, Saved, UserStates
from service.usecases.items import Items
from service.usecases.timeline import Timeline, Unencoded, events_needed

log = structlog.get_logger("service.usecases.encode")

_USERS_PER_ROUND = 32
_POLL_MS = 1000
_BACKOFF_S = 1.0


class Todo(NamedTuple):
    """Windows of one user that have no state of today, of the events that `log` names; see `Recalled`.

    States are kept of its newest `num_kept` events.
    """

    user_id: str
    windows: Sequence[Unencoded]
    num_kept: int
    log: bytes = b""


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
            await self.items.catch_up()  # an event may speak of an item that is a moment old
            await self._settle({user_id for _, user_id in entries})
            await self.store.encoded([entry_id for entry_id, _ in entries])
            for entry_id, _ in entries:
                queued_at_s = int(entry_id.partition("-")[0]) / 1000  # a stream id begins with the server's clock
                self.metrics.ingest_visible_lag_seconds.observe(max(0.0, time.time() - queued_at_s))
        return len(entries)

    async def _settle(self, user_ids: Collection[str]) -> None:
        """A user that cannot be encoded is logged and let go: the next event or request asks again."""
        try:
            await self.reconcile(user_ids)
        except Unavailable:
            raise
        except Exception:
            if len(user_ids) == 1:
                log.exception("a user could not be encoded")
                return
            for user_id in user_ids:
                await self._settle([user_id])

    async def reconcile_all(self, user_ids: Iterable[str]) -> int:
        """As `reconcile`, for any number of users."""
        return sum([await self.reconcile(users) for users in _pieces(sorted(set(user_ids)), _USERS_PER_ROUND)])

    async def reconcile(self, user_ids: Collection[str]) -> int:
        """Encodes what is missing or stale of these users, all windows together; returns how many states were written.

        Looks again where the log had changed when the states were written: events that came meanwhile make some of
        these states stale, and whoever writes last must be the one to see it. So does a changed catalogue.
        """
        space, limit = self.bundle.manifest.space, events_needed(self.bundle)
        waiting, num_written = list(user_ids), 0
        while waiting:
            catalogue = self.bundle.catalogue
            recalled = zip(waiting, await self.store.recall_many(waiting, space, limit), strict=True)
            todo = [each for pair in recalled if (each := await self._todo(*pair)).windows]
            saved = await self._encode(todo)
            is_same = self.bundle.catalogue is catalogue
            pairs = zip(todo, saved, strict=True)
            waiting = [
                each.user_id
                for each, now in pairs
                if now.num_states and not (is_same and now.log_digest == each.log)
            ]
            num_written += sum(each.num_states for each in saved)
        return num_written

    async def _todo(self, user_id: str, recalled: Recalled) -> Todo:
        await asyncio.sleep(0)  # others wait for the event loop, too
        timeline = Timeline(recalled.events, self.bundle)
        return Todo(user_id, timeline.unencoded(), timeline.num_kept, recalled.log_digest)

    async def _encode(self, todo: Sequence[Todo]) -> list[Saved]:
        """What was written of each user. Short windows go first, so that equal lengths meet in a batch."""
        if not todo:
            return []
        windows = [window for each in todo for window in each.windows]
        self.metrics.stale_states_total.inc(sum(window.is_stale for window in windows))
        prompts = [self.bundle.prompt.tokens(window.titles) for window in windows]
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        states = np.empty((len(prompts), self.bundle.manifest.backbone.hidden_size), dtype=np.float16)
        states[order] = await self.engine.encode([prompts[place] for place in order])
        records = iter(self.bundle.codec.encode_many(states, [window.fingerprint for window in windows]))
        saves = [
            UserStates(each.user_id, {window.event.event_id: next(records) for window in each.windows}, each.num_kept)
            for each in todo
        ]
        return await self.store.save_states(self.bundle.manifest.space, saves, events_needed(self.bundle))


async def backfill(worker: Worker) -> dict[str, int]:
    """Every user of the store, one round at a time. Interrupt it as you like: what is done is not done again."""
    num_users = num_states = 0
    async for user_ids in _rounds(worker.store.users()):
        num_states += await worker.reconcile(user_ids)
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


def _pieces(users: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (users[start : start + size] for start in range(0, len(users), size))
