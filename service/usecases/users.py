"""What is kept about a user: to see, to take along, to forget."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from model_store.bundle import Bundle
from service.errors import UnknownUser
from service.http import schemas
from service.store.client import MemoryStore
from service.store.events import Event
from service.usecases.timeline import Timeline, events_needed, title_of

_EVENTS_PER_PAGE = 500


class Users:
    def __init__(self, bundle: Bundle, store: MemoryStore) -> None:
        self.bundle, self.store = bundle, store

    async def get(self, user_id: str, cursor: str | None, limit: int) -> schemas.UserPage:
        """Raises UnknownUser when nothing is kept."""
        space = self.bundle.manifest.space
        counts, (events, next_cursor), memory = await asyncio.gather(
            self.store.counts(user_id, space),
            self.store.events(user_id, before=cursor, limit=limit),
            self._memory(user_id),
        )
        if not counts.events:
            raise UnknownUser("Nothing is kept about this user.")
        return schemas.UserPage(
            user_id=user_id,
            counts=schemas.Counts(events=counts.events, states=counts.states),
            recent=[self._shown(event) for event in events],
            memory=memory,
            next_cursor=next_cursor,
        )

    async def forget(self, user_id: str) -> schemas.ForgottenUser:
        """Everything, in all spaces; also right for a user who was never there."""
        receipt = await self.store.forget_user(user_id)
        return schemas.ForgottenUser(user_id=user_id, events=receipt.events, states=receipt.states, keys=receipt.keys)

    async def forget_event(self, user_id: str, event_id: str) -> schemas.ForgottenEvent:
        """The windows over it are encoded anew by the worker; until then their states count as stale."""
        was_there = await self.store.forget_event(user_id, event_id)
        if was_there:
            await self.store.request_encoding([user_id])
        return schemas.ForgottenEvent(user_id=user_id, event_id=event_id, forgotten=was_there)

    async def export(self, user_id: str) -> AsyncIterator[dict[str, Any]]:
        """Every event, newest first. States are left out: they follow from the events, and are no less private."""
        cursor: str | None = None
        is_first = True
        while is_first or cursor is not None:
            events, cursor = await self.store.events(user_id, before=cursor, limit=_EVENTS_PER_PAGE)
            if is_first and not events:
                raise UnknownUser("Nothing is kept about this user.")
            is_first = False
            for event in events:
                yield {"user_id": user_id, **self._shown(event).model_dump()}

    async def _memory(self, user_id: str) -> list[schemas.MemoryElement]:
        """Oldest first, with the weights of the last retrieval."""
        space = self.bundle.manifest.space
        remembered, weights = await asyncio.gather(
            self.store.recall(user_id, space, events_needed(self.bundle)), self.store.last_retrieval(user_id, space)
        )
        return [
            schemas.MemoryElement(
                event_id=event.event_id,
                item_id=event.item_id,
                title=title_of(event.item_id, self.bundle) or None,
                timestamp=event.timestamp,
                weight=weights.get(event.event_id),
            )
            for event in Timeline(remembered, self.bundle).memory().events
        ]

    def _shown(self, event: Event) -> schemas.UserEvent:
        return schemas.UserEvent(
            event_id=event.event_id,
            item_id=event.item_id,
            title=title_of(event.item_id, self.bundle) or None,
            timestamp=event.timestamp,
            type=event.type,
            value=event.value,
        )
