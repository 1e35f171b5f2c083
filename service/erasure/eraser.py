"""Deletes users: at once for all readers, then in the files of the store within a stated time.

    mark → keys of the user, tombstone → shared places → receipt  …  files of the store are rewritten
      └──────────── what a request waits for ─────────────────┘      └── within AUTOMR_ERASURE_MINUTES ──┘

Every process with a store looks for deletions that were broken off and finishes them, and one of them has the files
rewritten. Knows no HTTP.
"""

import asyncio
import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import structlog

from service.background import Repeated
from service.ending import cancel_and_wait
from service.errors import StoreUnavailable
from service.logs import RepeatedWarnings
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.erasure.deletions import RENEW_EVERY_S, DeletionStore, Receipt
from service.store.erasure.rewrite import Rewritten, StoreFiles
from service.store.requests import Command
from service.tracing.spans import without_span

log = structlog.get_logger("service.erasure.eraser")
repeated = RepeatedWarnings(log)

_LOOK_EVERY_S = 2.0
_AT_ONCE = 100  # deletions that are finished in one look


class Deletion(NamedTuple):
    """`is_erased`: no file of the store has a byte of it. None if nobody can tell."""

    receipt: Receipt
    is_erased: bool


class Compaction(NamedTuple):
    """`unfinished`: deletions that another look at shared places will finish; only on a cluster, or after a kill."""

    status: Literal["done", "running", "no_files", "not_allowed"]
    nodes: int
    replicas: int
    unfinished: int


class Eraser:
    """For one event loop. `minutes`: within this time the files are rewritten after a deletion; 0: never by itself."""

    def __init__(self, store: MemoryStore, metrics: Metrics, *, minutes: float) -> None:
        self.store, self.metrics, self.minutes = store, metrics, minutes
        self.deletions = DeletionStore(store.run, self._write, is_cluster=store.is_cluster)
        self.files = StoreFiles(store)
        self._owner = secrets.token_hex(8)
        self._rewriting: asyncio.Task[Rewritten] | None = None
        self._following = Repeated("deletions", self.look, every_s=_LOOK_EVERY_S, at_once=True)

    def start(self) -> None:
        self._following.start()

    async def stop(self) -> None:
        """A rewriting goes on in the store; the next process looks after it."""
        await self._following.stop()
        if self._rewriting is not None:
            await cancel_and_wait(self._rewriting)

    async def delete(self, user_id: str) -> Receipt:
        """Deletes everything of the user. An unknown user is no error. After an error, another process goes on."""
        await self.deletions.begin(user_id)
        return await self._finish(user_id)

    async def recreate(self, user_id: str) -> bool:
        """Lets events of any time be stored again for a deleted user. False if that was so already."""
        return await self.store.tombstones.lift(user_id)

    async def page(self, cursor: str | None, limit: int) -> tuple[list[Deletion], str | None]:
        """Deletions, newest first, and the cursor of the next page. Raises BadRequest for a foreign cursor."""
        receipts, next_cursor = await self.deletions.receipts(cursor, limit)
        rewritten_to = (await self.files.look()).rewritten_to
        return [Deletion(each, each.is_before(rewritten_to)) for each in receipts], next_cursor

    async def compact(self, wait_s: float | None) -> Compaction:
        """Has the files rewritten, and waits for the end for at most `wait_s` seconds (None: until the end).

        A call while it runs waits for one that began later, because a deletion may lie in between.
        """
        try:
            async with asyncio.timeout(wait_s):
                if self._rewriting is not None and not self._rewriting.done():
                    await asyncio.wait([self._rewriting])
                await self._settle_due()
                done = await asyncio.shield(self._rewrite())
        except TimeoutError:
            return Compaction("running", 0, 0, await self.deletions.count())
        return Compaction(done.status, done.nodes, done.replicas, await self.deletions.count())

    async def look(self) -> None:
        """Finishes what was broken off, and rewrites the files when it is time. Raises StoreUnavailable."""
        await self.store.tombstones.load()
        await self._settle_due()
        files = await self.files.look()
        lag_s = 0 if files.unwritten_since is None else max(0, files.now - files.unwritten_since)
        self.metrics.erasure_lag_seconds.set(lag_s)
        self.metrics.deletions_unfinished.set(await self.deletions.count())
        is_running = self._rewriting is not None and not self._rewriting.done()
        # Half of the time is for the rewriting itself, and for a process that ends while it waits.
        is_due = self.minutes > 0 and files.unwritten_since is not None and lag_s >= 30 * self.minutes
        if (is_running or is_due) and await self.files.lease(self._owner) and not is_running:
            self._rewrite()

    async def _write(self, commands: Sequence[Command]) -> list[Any]:
        return await self.store.write(commands, self.store.durability)

    async def _finish(self, user_id: str) -> Receipt:
        renewing = Repeated("renew-deletion", partial(self.deletions.renew, user_id), every_s=RENEW_EVERY_S)
        renewing.start()
        try:
            return await self.deletions.finish(user_id, await self.store.forget_user(user_id))
        finally:
            await renewing.stop()

    async def _settle_due(self) -> None:
        for each in await self.deletions.due(_AT_ONCE):
            if not await self.deletions.take(each):
                continue
            if each.is_begun:
                log.warning("a deletion was broken off, finishing it")
                await self._finish(each.user_id)
            else:
                if not (await self.store.counts(each.user_id, "")).events:
                    await self.store.forget_elsewhere(each.user_id)
                await self.deletions.settled(each.user_id)

    def _rewrite(self) -> "asyncio.Task[Rewritten]":
        self._rewriting = asyncio.create_task(self._rewrite_files(), name="rewrite-files", context=without_span())
        return self._rewriting

    async def _rewrite_files(self) -> Rewritten:
        try:
            done = await self.files.rewrite()
        except StoreUnavailable as error:
            repeated.warning("the files of the store could not be rewritten", reason=str(error))
            raise
        if done.status == "not_allowed":
            repeated.warning("the store does not let its files be rewritten: deleted bytes stay in them")
        elif done.status == "done":
            log.info("the files of the store were rewritten", nodes=done.nodes, replicas=done.replicas)
        return done
