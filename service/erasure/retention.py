"""Deletes events that are too old, and of each user all but the newest ones.

In: the store, a time, a number. Out: how many events of how many users went. Each event is deleted as a caller would do
it, in small steps, so servers go on. After a kill, the next run deletes what is left. Knows `MemoryStore` alone.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import structlog

from service.store.client import MemoryStore
from service.store.events import make_cursor

_PER_STEP = 100  # events
_TELL_EVERY_S = 5.0

log = structlog.get_logger("service.erasure.retention")


class Pruned(NamedTuple):
    """`events`: deleted, or to be deleted; `users`: those whose events they are; `looked_at`: users in all."""

    looked_at: int = 0
    users: int = 0
    events: int = 0


async def prune(store: MemoryStore, *, before: int | None, most: int | None, is_trial: bool = False) -> Pruned:
    """Of each user, deletes events that are earlier than `before` (Unix seconds) and all but the newest `most` (≥ 1).

    None: no such limit. A user without any event left is gone. `is_trial`: counts, and deletes nothing.
    """
    total, told_at = Pruned(), time.monotonic()
    async for user_id in store.users():
        number = 0
        async for event_ids in _superfluous(store, user_id, before, most):
            number += len(event_ids)
            if not is_trial:
                await asyncio.gather(*(store.forget_event(user_id, event_id) for event_id in event_ids))
                await store.request_encoding([user_id])
        total = Pruned(total.looked_at + 1, total.users + (number > 0), total.events + number)
        if time.monotonic() - told_at > _TELL_EVERY_S:
            log.info("pruning", **total._asdict())
            told_at = time.monotonic()
    return total


async def _superfluous(
    store: MemoryStore, user_id: str, before: int | None, most: int | None
) -> AsyncIterator[list[str]]:
    """Ids of events, newest first, a step at a time. The caller may delete those of a step before it asks on."""
    cursor = await _first_place(store, user_id, before, most)
    while cursor is not None:
        events, cursor = await store.events(user_id, before=cursor, limit=_PER_STEP)
        if events:
            yield [event.event_id for event in events]


async def _first_place(store: MemoryStore, user_id: str, before: int | None, most: int | None) -> str | None:
    """The cursor before which, in time, all events are superfluous. None: all are kept."""
    by_time = None if before is None else make_cursor(str(before).encode(), b"")
    if most is None:
        return by_time
    num_kept, cursor = 0, None
    while num_kept < most:
        events, cursor = await store.events(user_id, before=cursor, limit=min(_PER_STEP, most - num_kept))
        if cursor is None or (before is not None and any(event.timestamp < before for event in events)):
            return by_time
        num_kept += len(events)
    return cursor
