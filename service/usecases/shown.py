"""Remembers what was shown: after an answer its list is kept, and later requests and events can refer to it.

A list is known in this process as soon as it is remembered. It is written to the store within `_COLLECT_S`, together
with others, so no request waits for the write, and a store that syncs each write to its disk syncs a few times a
second, not once for each answer. A list that is lost, because the process was killed or the store was unavailable,
costs its attribution only. Knows no HTTP.
"""

import time
from collections.abc import Iterable

import structlog

from service.background import Deferred
from service.errors import StoreCorrupt, StoreUnavailable
from service.logs import RepeatedWarnings
from service.metrics import Metrics
from service.store.keys import tenant_of
from service.store.shown import ShownList, ShownStore

repeated = RepeatedWarnings(structlog.get_logger("service.usecases.shown"))

_COLLECT_S = 0.05
_MOST_WAITING = 20_000


class ShownLists:
    """For one event loop."""

    def __init__(self, store: ShownStore, metrics: Metrics) -> None:
        self.store, self.metrics = store, metrics
        self._waiting: dict[str, ShownList] = {}
        self._being_written: dict[str, ShownList] = {}
        self._writing = Deferred("shown-lists", self._write, after_s=_COLLECT_S)

    async def stop(self) -> None:
        """Writes the lists that are still waiting."""
        await self._writing.stop()

    def remember(self, shown: ShownList) -> None:
        """Does not wait. Lists without items are not kept."""
        if not shown.item_ids or not self.store.kept_s:
            return
        if len(self._waiting) >= _MOST_WAITING:
            self.metrics.shown_lists_total.labels("lost").inc()
            return
        earlier = self._waiting.get(shown.recommendation_id)  # a page before this one
        if earlier is not None:
            shown = shown._replace(num_explored=min(earlier.num_explored + shown.num_explored, len(shown.explored)))
        self._waiting[shown.recommendation_id] = shown
        self._writing.ask()

    async def recent(self, user_id: str) -> list[ShownList]:
        """The lists that the user was shown lately, newest first. Raises StoreUnavailable or StoreCorrupt."""
        unwritten = [each for each in self._unwritten() if each.user_id == user_id]
        stored = await self.store.recent(user_id, now=int(time.time()))
        known = {each.recommendation_id for each in unwritten}
        return [*reversed(unwritten), *(each for each in stored if each.recommendation_id not in known)]

    async def get(self, recommendation_id: str, user_id: str | None) -> ShownList | None:
        """The list of an answer to this user or to an anonymous session of the same tenant; None if unknown or too old.

        Raises StoreUnavailable or StoreCorrupt.
        """
        tenant = tenant_of(user_id or "")
        for each in self._unwritten():
            is_theirs = each.user_id == user_id if each.user_id is not None else each.tenant == tenant
            if each.recommendation_id == recommendation_id and is_theirs:
                return each
        return await self.store.get(recommendation_id, user_id, now=int(time.time()))

    def forget(self, user_id: str) -> None:
        """Drops the lists of the user that are not written yet."""
        self._waiting = {key: each for key, each in self._waiting.items() if each.user_id != user_id}

    def _unwritten(self) -> Iterable[ShownList]:
        """Oldest first."""
        return [*self._being_written.values(), *self._waiting.values()]

    async def _write(self) -> None:
        self._being_written, self._waiting = self._waiting, {}
        try:
            await self.store.save(list(self._being_written.values()))
            self.metrics.shown_lists_total.labels("kept").inc(len(self._being_written))
        except (StoreUnavailable, StoreCorrupt):
            self.metrics.shown_lists_total.labels("lost").inc(len(self._being_written))
            repeated.warning("store unavailable: shown lists were lost")
        finally:
            self._being_written = {}
