"""Keeps stored states and live counts right: the same as if all were computed again from the event log (a backfill).

A worker takes users from the encode queue and reconciles them: states that are missing or stale are made anew from the
log, and so is what the user adds to the live counts. So retries, late events and crashes all end in the same memory and
counts. Any number of workers may run, in servers or on their own.
"""

import asyncio
import os
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import structlog

from model_store.view import BundleView
from service.background import Repeated
from service.engine.engine import Engine
from service.errors import ServiceError, StoreUnavailable, Unavailable
from service.logs import RepeatedWarnings
from service.metrics import Metrics
from service.store.client import CLAIM_AFTER_MS, MemoryStore
from service.store.deadletters import DeadLetter, DeadLetters
from service.store.events import Recalled, Saved, UserStates
from service.store.keys import tenant_of
from service.tracing.spans import root
from service.usecases.counting import NUM_COUNTED, record_of
from service.usecases.items import Items
from service.usecases.timeline import MissingState, Timeline, events_with_states

log = structlog.get_logger("service.usecases.encode")
repeated = RepeatedWarnings(log)

_USERS_PER_ROUND = 32
_POLL_MS = 1000
_BACKOFF_S = 1.0
_MOST_LOOKS = 3  # at a user whose log changes all the time; then it is the turn of others
_MOST_TRIES = 3  # of a user who cannot be encoded; `CLAIM_AFTER_MS` lies between two
_MOST_FAILING = 10_000  # users whose failures are remembered: another worker may have encoded them since
_RENEW_EVERY_S = CLAIM_AFTER_MS / 3000


class UserWork(NamedTuple):
    """The missing states of one user, given the events that `log_digest` names (see `Recalled`).

    States of the newest `num_kept` events are kept.
    """

    user_id: str
    missing: Sequence[MissingState]
    num_kept: int
    log_digest: bytes


class Worker:
    """For one event loop."""

    def __init__(
        self,
        view: BundleView,
        engine: Engine,
        store: MemoryStore,
        items: Items,
        metrics: Metrics,
        *,
        counts_events: bool = True,
    ) -> None:
        self.view, self.engine, self.store, self.items, self.metrics = view, engine, store, items, metrics
        self.counts_events = counts_events
        self.others: Sequence[Worker] = ()  # workers of other open bundles: they get each user, too
        self._num_recalled = max(events_with_states(view), NUM_COUNTED)
        self._consumer = f"{socket.gethostname()}-{os.getpid()}"
        self._has_unfinished = False  # whether a round was broken off, so that its entries are still this worker's
        self._failures: OrderedDict[str, int] = OrderedDict()  # of users who could not be encoded, the last one last

    async def run(self) -> None:
        """Runs until cancelled. Waits while the store or the model is unavailable."""
        must_tidy = True
        while True:
            try:
                await self.work(block_ms=_POLL_MS)
                if must_tidy:
                    await self.store.remove_idle_consumers()
                    must_tidy = False
            except StoreUnavailable:
                repeated.warning("store unavailable: encoding waits")
                await asyncio.sleep(_BACKOFF_S)
            except Unavailable:
                repeated.warning("model unavailable: encoding waits")
                await asyncio.sleep(_BACKOFF_S)
            except Exception:  # a worker that stops would be noticed too late
                log.exception("encoding failed, trying again")
                await asyncio.sleep(_BACKOFF_S)

    async def work(self, *, block_ms: int) -> int:
        """One round; returns the number of entries that are done.

        Entries are acknowledged when their users are done, so after a crash another worker takes them. A round that
        was broken off, because the store was unavailable, starts again with its own entries.
        """
        entries = await self.store.next_encodings(
            self._consumer, count=_USERS_PER_ROUND, block_ms=block_ms, unfinished=self._unfinished()
        )
        done = []
        if entries:
            with root("encode round", entries=len(entries)):
                done = await self._encode_round(entries)
        self._has_unfinished = False
        for entry_id in done:
            queued_at_s = int(entry_id.partition("-")[0]) / 1000  # a stream id begins with the server's clock
            self.metrics.ingest_visible_lag_seconds.observe(max(0.0, time.time() - queued_at_s))
        return len(done)

    async def _encode_round(self, entries: Sequence[tuple[str, str]]) -> list[str]:
        """Returns the entries that are done, when the queue has let go of them."""
        waiting: set[str] = set()
        async with self._renewed([entry_id for entry_id, _ in entries]):
            for worker in (self, *self.others):
                await worker.items.catch_up()  # an event may name an item that was added a moment ago
                waiting |= await worker.settle({user_id for _, user_id in entries})
        done = [entry_id for entry_id, user_id in entries if user_id not in waiting]
        await self.store.encoded(done)
        return done

    def _unfinished(self) -> bool:
        """Whether the round before was broken off. If this one is, even while entries are read, it was as well."""
        was_broken_off, self._has_unfinished = self._has_unfinished, True
        return was_broken_off

    @asynccontextmanager
    async def _renewed(self, entry_ids: Sequence[str]) -> AsyncIterator[None]:
        """Keeps other workers from claiming the entries while this worker is alive, however long the round takes."""
        renew = partial(self.store.renew_encodings, self._consumer, entry_ids)
        renewing = Repeated("renew-encodings", renew, every_s=_RENEW_EVERY_S)
        renewing.start()
        try:
            yield
        finally:
            await renewing.stop()

    async def settle(self, user_ids: Collection[str]) -> set[str]:
        """Reconciles users; returns those who could not be encoded and are to be tried again later.

        A user who fails `_MOST_TRIES` times becomes a dead letter. The next event of the user asks again.
        """
        try:
            await self.reconcile(user_ids)
        except Unavailable:
            raise
        except Exception as error:
            if len(user_ids) == 1:
                return await self._failed(next(iter(user_ids)), error)
            return set().union(*[await self.settle([user_id]) for user_id in user_ids])
        for user_id in user_ids:
            self._failures.pop(user_id, None)
        return set()

    async def _failed(self, user_id: str, error: Exception) -> set[str]:
        num_failures = self._failures.pop(user_id, 0) + 1
        if num_failures < _MOST_TRIES:
            self._failures[user_id] = num_failures
            if len(self._failures) > _MOST_FAILING:  # whoever is left out has further tries
                self._failures.popitem(last=False)
            log.warning("a user could not be encoded, trying again later", error=type(error).__name__)
            return {user_id}
        log.error("a user could not be encoded and is a dead letter now", exc_info=error)
        letter = DeadLetter(user_id, _reason(error), int(time.time()))
        if not await DeadLetters(self.store.run, is_cluster=self.store.is_cluster).add(letter):
            log.error("there are too many dead letters, this one is not kept")
        return set()

    async def reconcile_all(self, user_ids: Iterable[str]) -> int:
        """`reconcile` for any number of users."""
        return sum([await self.reconcile(users) for users in _rounds(sorted(set(user_ids)))])

    async def reconcile(self, user_ids: Collection[str]) -> int:
        """Makes the missing states of these users and counts their events; returns how many states were written.

        Looks again at a user whose log changed until the states were written: events that came meanwhile make some of
        these states stale, and the last writer must see that. A changed catalogue has the same effect. A user whose log
        has changed at each of `_MOST_LOOKS` looks goes to the end of the encode queue, so that no user makes others
        wait.
        """
        waiting, num_written = list(user_ids), 0
        for _ in range(_MOST_LOOKS):
            if not waiting:
                break
            catalogue = self.view.catalogue
            found = await self.store.recall_many(waiting, self.view.manifest.space, self._num_recalled)
            recalled = dict(zip(waiting, found, strict=True))
            counted = await self._count(recalled)
            work = [each for pair in recalled.items() if (each := await self._work_of(*pair)).missing]
            saved = await self._encode(work)
            is_same = self.view.catalogue is catalogue
            again = {
                each.user_id
                for each, now in zip(work, saved, strict=True)
                if now.num_states and not (is_same and now.log_digest == each.log_digest)
            }
            again |= await self._changed_since({user_id: recalled[user_id].log_digest for user_id in counted - again})
            waiting = [user_id for user_id in waiting if user_id in again]
            num_written += sum(each.num_states for each in saved)
        if waiting:
            await self.store.request_encoding(waiting)
        return num_written

    async def _count(self, recalled: Mapping[str, Recalled]) -> set[str]:
        """Brings the live counts up to date; returns the users whose counts have changed."""
        if not self.counts_events:
            return set()
        records = {}
        for user_id, each in recalled.items():
            await asyncio.sleep(0)  # lets requests run between two users
            # What users of one tenant choose must not show in the lists of another, so they are not counted.
            events = [] if tenant_of(user_id) else [part.event for part in each.events]
            records[user_id] = record_of(events, self._is_new, self.view.event_types)
        changes = dict(zip(records, await self.store.count(records), strict=True))
        self.metrics.live_counts_changed_total.inc(sum(changes.values()))
        return {user_id for user_id, num_changed in changes.items() if num_changed}

    def _is_new(self, item_id: str) -> bool:
        """Whether the tables of the bundle know nothing of an item."""
        catalogue = self.view.catalogue
        row = catalogue.rows.get(item_id)
        return row is None or not catalogue.popularity[row]

    async def _changed_since(self, digests: Mapping[str, bytes]) -> set[str]:
        """The users whose events are no longer those of `digests`."""
        now = await self.store.log_digests(list(digests), self._num_recalled) if digests else []
        return {user_id for (user_id, digest), newer in zip(digests.items(), now, strict=True) if newer != digest}

    async def _work_of(self, user_id: str, recalled: Recalled) -> UserWork:
        await asyncio.sleep(0)  # lets requests run between two users
        timeline = Timeline(recalled.events, self.view)
        return UserWork(user_id, timeline.missing_states(), timeline.num_kept, recalled.log_digest)

    async def _encode(self, work: Sequence[UserWork]) -> list[Saved]:
        """Encodes the missing windows, the shortest first, so that windows of equal length share a batch."""
        if not work:
            return []
        missing = [each for user in work for each in user.missing]
        self.metrics.stale_states_total.inc(sum(each.is_stale for each in missing))
        order = sorted(range(len(missing)), key=lambda place: len(missing[place].titles))
        states = np.empty((len(missing), self.view.manifest.backbone.hidden_size), dtype=np.float16)
        states[order] = await self.engine.encode([missing[place].titles for place in order])
        records = iter(self.view.codec.encode_many(states, [each.fingerprint for each in missing]))
        saves = [
            UserStates(user.user_id, {each.event.event_id: next(records) for each in user.missing}, user.num_kept)
            for user in work
        ]
        return await self.store.save_states(self.view.manifest.space, saves, self._num_recalled)


def _reason(error: Exception) -> str:
    """The kind of an error; only texts of our own are kept, because others may hold data of the user."""
    return f"{type(error).__name__}: {error}" if isinstance(error, ServiceError) else type(error).__name__


async def backfill(worker: Worker) -> dict[str, int]:
    """Reconciles every user of the store. May be interrupted: what is done is not done again."""
    num_users = num_states = 0
    async for user_ids in user_rounds(worker.store.users(), _USERS_PER_ROUND):
        num_states += await worker.reconcile(user_ids)
        num_users += len(user_ids)
        log.info("backfill", users=num_users, states=num_states)
    return {"users": num_users, "states": num_states}


async def user_rounds(users: AsyncIterator[str], size: int) -> AsyncIterator[set[str]]:
    """The users in rounds of `size`."""
    round_: set[str] = set()
    async for user_id in users:
        round_.add(user_id)
        if len(round_) >= size:
            yield round_
            round_ = set()
    if round_:
        yield round_


def _rounds(users: Sequence[str]) -> Iterator[Sequence[str]]:
    return (users[start : start + _USERS_PER_ROUND] for start in range(0, len(users), _USERS_PER_ROUND))
