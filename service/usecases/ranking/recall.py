"""What is known of a user at the time of a request: recent window, memory, past, and the items seen.

In: a request. Out: its `Context`, read from the store in one round trip, with the items of the session among the
events. When the store does not answer, the context says so and contains the session alone.
"""

import time

import numpy as np
import structlog

from model_store.view import BundleView
from service.errors import StoreCorrupt, StoreUnavailable
from service.store.client import MemoryStore
from service.store.events import NOTHING_RECALLED, Recalled
from service.usecases.ranking.requests import Context, Fallback, Request
from service.usecases.repair import Repair
from service.usecases.seen import SeenRows
from service.usecases.timeline import against_of, events_needed, known_of, recent_only, states_needed
from service.usecases.words import NUM_EVENTS, known_in_words

log = structlog.get_logger("service.usecases.recommend")


class Recall:
    """Reads users of one bundle. Users whose memory lacks states are encoded anew in the background."""

    def __init__(self, view: BundleView, store: MemoryStore) -> None:
        self._view, self._store = view, store
        self._num_events, self._num_states = events_needed(view), states_needed(view)
        self._repair = Repair(store)
        self._seen_rows = SeenRows(view.catalogue)

    async def stop(self) -> None:
        await self._repair.stop()

    async def of(self, request: Request) -> Context:
        if request.user_id is None:
            return self.without_store(request)
        num_events, num_states = self._wanted(request)
        try:
            recalled = await self._store.recall_and_seen(
                request.user_id, self._view.manifest.space, num_events, num_states=num_states
            )
        except (StoreUnavailable, StoreCorrupt):
            return self.without_store(request, fallback="memory_unavailable")
        except Exception:
            log.exception("a user cannot be read")
            return self.without_store(request, fallback="memory_unavailable")
        context = self._context(request, recalled)
        if context.known.is_incomplete:
            self._repair.request(request.user_id)
        return context

    def without_store(self, request: Request, fallback: Fallback | None = None) -> Context:
        """What the request itself tells: the session."""
        return self._context(request, NOTHING_RECALLED, fallback)

    def _wanted(self, request: Request) -> tuple[int, int]:
        """How many events are recalled, and how many of them with states."""
        return (self._num_events, self._num_states) if request.query is None else (NUM_EVENTS, 0)

    def _context(self, request: Request, recalled: Recalled, fallback: Fallback | None = None) -> Context:
        now = int(time.time()) if request.timestamp is None else request.timestamp
        know = known_of if request.query is None else known_in_words
        known = know(recalled.events, self._view, now, request.recent)
        if not request.memory:
            known = recent_only(known, self._view)
        against = against_of(recalled.against, self._view)
        known = known._replace(past=known.past._replace(against=against, voices=request.voices))
        seen = self._seen_rows.of(recalled.seen, self._view.catalogue, now)
        if request.recent:
            names = [item.item_id for item in request.recent]
            seen = self._seen_rows.with_session(seen, names, self._view.catalogue)
        return Context(known, seen, np.array([row for row, _ in against], dtype=np.int64), fallback)
