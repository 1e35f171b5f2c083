"""What the store holds about one user: show it, export it, delete it. Knows no HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from model_store.view import BundleView
from service.engine.engine import Engine
from service.errors import BadRequest, NoWords, UnknownUser
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.erasure.deletions import Receipt
from service.store.events import Event, UserCounts
from service.store.feedback.merge import Merged, merge
from service.usecases.shown import ShownLists
from service.usecases.timeline import Timeline, events_with_states
from service.usecases.words import NO_WORDS, NUM_EVENTS, ShownEntry, known_in_words, queries_of, show_entries

_EVENTS_PER_PAGE = 500

Settle = Callable[[Sequence[str]], Awaitable[object]]
Erase = Callable[[str], Awaitable[Receipt]]


class TitledEvent(NamedTuple):
    """An event and the title of its item; None when the catalogue does not know the item."""

    event_id: str
    item_id: str
    title: str | None
    timestamp: int
    type: str
    value: float | None
    query: str | None
    session_id: str | None
    context: Mapping[str, Any] | None
    recommendation_id: str | None = None


class UserPage(NamedTuple):
    """`recent` is one page of events, newest first; `memory` are the events whose states are memory, oldest first."""

    counts: UserCounts
    recent: list[TitledEvent]
    memory: list[TitledEvent]
    next_cursor: str | None


class Users:
    def __init__(
        self,
        view: BundleView,
        store: MemoryStore,
        engine: Engine,
        shown: ShownLists,
        *,
        settle: Settle,
        erase: Erase,
        metrics: Metrics,
    ) -> None:
        """`settle` counts what users did with lists, before they are merged. `erase` deletes what the store holds."""
        self.view, self.store, self.engine, self.shown = view, store, engine, shown
        self.settle, self.erase, self.metrics = settle, erase, metrics

    async def get(self, user_id: str, cursor: str | None, limit: int) -> UserPage:
        """Raises UnknownUser when the store holds no event, BadRequest for a cursor that this service did not make."""
        space = self.view.manifest.space
        counts, (events, next_cursor), remembered = await asyncio.gather(
            self.store.counts(user_id, space),
            self.store.events(user_id, before=cursor, limit=limit),
            self.store.recall(user_id, space, events_with_states(self.view)),
        )
        if not counts.events:
            raise _unknown()
        memory = Timeline(remembered, self.view).memory().events
        return UserPage(counts, self._titled(events), self._titled(memory), next_cursor)

    async def memory_in_words(self, user_id: str) -> list[ShownEntry]:
        """Local memory: records (newest first), patterns (most events first), one profile; as a query would read it.

        Raises NoWords and UnknownUser.
        """
        if self.view.manifest.words is None:
            raise NoWords(NO_WORDS)
        remembered = await self.store.recall(user_id, self.view.manifest.space, NUM_EVENTS)
        if not remembered:
            raise _unknown()
        known = known_in_words(remembered, self.view, int(time.time()))
        return show_entries(await self.engine.read_memory(known.past, queries_of(known.past_events)), known)

    async def forget(self, user_id: str) -> Receipt:
        """Deletes everything, in all spaces. An unknown user is no error, so that the call can be repeated."""
        self.shown.forget(user_id)
        return await self.erase(user_id)

    async def merge(self, user_id: str, guest_id: str) -> Merged:
        """Moves all events of the guest to the user; the guest is gone when it is complete. Safe to repeat.

        Raises BadRequest for the same user.
        """
        if guest_id == user_id:
            raise BadRequest("`from_user_id` must be another user than the one in the path.")
        self.shown.forget(guest_id)
        merged = await merge(self.store, guest_id, user_id, self.settle)
        self.metrics.merged_events_total.inc(merged.moved)
        return merged

    async def forget_event(self, user_id: str, event_id: str) -> bool:
        """Deletes an event; False if it is unknown.

        A worker encodes the windows that contained it again. Until then their states are stale and are not used. It is
        asked also if the event is unknown: perhaps an earlier call deleted it, and failed before it could ask.
        """
        was_there = await self.store.forget_event(user_id, event_id)
        await self.store.request_encoding([user_id])
        return was_there

    async def export(self, user_id: str) -> AsyncIterator[TitledEvent]:
        """Every event, newest first. Raises UnknownUser. States are left out, because they follow from the events."""
        cursor: str | None = None
        is_first = True
        while is_first or cursor is not None:
            events, cursor = await self.store.events(user_id, before=cursor, limit=_EVENTS_PER_PAGE)
            if is_first and not events:
                raise _unknown()
            is_first = False
            for event in self._titled(events):
                yield event

    def _titled(self, events: Sequence[Event]) -> list[TitledEvent]:
        titles = self.view.catalogue.titles([event.item_id for event in events])
        return [
            TitledEvent(
                event_id=event.event_id,
                item_id=event.item_id,
                title=title or None,
                timestamp=event.timestamp,
                type=event.type,
                value=event.value,
                query=event.query,
                session_id=event.session_id,
                context=event.context,
                recommendation_id=event.recommendation_id,
            )
            for event, title in zip(events, titles, strict=True)
        ]


def _unknown() -> UnknownUser:
    return UnknownUser("The service holds nothing about this user.")
