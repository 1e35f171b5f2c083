"""Takes interactions, stores the valid ones, and makes them visible in memory.

An accepted event is durable: it is in the event log, and its user is in the encode queue. A worker (`encode.py`) in
this process or in another one empties the queue. Knows neither HTTP nor JSON: the caller checks each event,
and for an event that it refuses, it passes the reason (a text) instead.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from model_store.view import BundleView
from service.background import Repeated
from service.ending import cancel_and_wait
from service.engine.turns import EVENTS_PER_PLACE, Turns
from service.errors import DeadlineExceeded, Overloaded, RecordsSealed, Rejected, StoreCorrupt, UserDeleted
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.deadletters import DeadLetters
from service.store.durability import Durability
from service.store.events import Appended, Event
from service.tracing.spans import span
from service.usecases.encode import Worker
from service.usecases.items import Items

log = structlog.get_logger("service.usecases.ingest")

Wait = Literal["durable", "visible"]

_MEASURE_EVERY_S = 1.0
_CHECKED_AT_ONCE = 50
_USERS_AT_ONCE, _USERS_PER_PLACE = 32, 4  # whose memory is made while a caller waits
_REST_OF_READING = 4.0  # one of 75,000 unknown fields holds up the event loop for 18 ms
_STORED_AT_ONCE = 50  # while recommendations are in work
_CONFLICT = (
    "event_id: another event is stored under this id, and stays; correct it with"
    " PUT /users/{user_id}/interactions/{event_id}, or send a new event_id"
)
DELETED = (
    "user_id: the user was deleted, and the event is not newer than that; it is not stored. If the user agreed to it"
    " again, call POST /users/{user_id}:recreate first"
)
_DAMAGED = (
    "user_id: what the store holds about this user is damaged; the event is not stored. Send it again when the operator"
    " has mended or deleted the user"
)
_UNKNOWN_ITEM = "item_id: the catalogue does not know this item; add it with PUT /items/{item_id}"


@dataclass(frozen=True)
class Outcome:
    """What became of one element. A rejected one and a conflict have a reason; a rejected one has no event id."""

    status: Literal["accepted", "duplicate", "conflict", "rejected"]
    event_id: str | None = None
    reason: str | None = None


def _outcome(appended: Appended | None, event_id: str) -> Outcome:
    if appended is None:
        return Outcome("rejected", reason=_DAMAGED)
    if appended == "deleted":
        return Outcome("rejected", reason=DELETED)
    return Outcome(appended, event_id, _CONFLICT if appended == "conflict" else None)


async def _in_pieces(check: Callable[[Any], Event | str], elements: Sequence[Any]) -> list[Event | str]:
    """Lets requests run between two pieces."""
    checked: list[Event | str] = []
    for start in range(0, len(elements), _CHECKED_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        checked += map(check, elements[start : start + _CHECKED_AT_ONCE])
    return checked


class Ingest:
    def __init__(self, view: BundleView, store: MemoryStore, items: Items, worker: Worker, metrics: Metrics) -> None:
        self.view, self.store, self.items, self.worker, self.metrics = view, store, items, worker, metrics
        self._dead_letters = DeadLetters(store.run, is_cluster=store.is_cluster)
        self.turns = Turns(lambda: worker.engine.admission.is_reading)
        self._showing = Turns(lambda: worker.engine.admission.is_reading)  # of users whose memory a caller waits for
        self.reading = Turns(self.turns.is_reading, rest=_REST_OF_READING)  # of large bodies
        self._measuring = Repeated("encode-queue", self._measure_backlog, every_s=_MEASURE_EVERY_S, at_once=True)
        self._encoding: asyncio.Task[None] | None = None

    async def start(self, *, with_worker: bool) -> None:
        """Starts to measure the encode queue; `with_worker` also starts a worker that empties it."""
        self._measuring.start()
        if with_worker:
            self._encoding = asyncio.create_task(self.worker.run(), name="encode-worker")

    async def stop(self) -> None:
        """Entries that the worker has not acknowledged stay in the queue for the next worker."""
        await self._measuring.stop()
        if self._encoding is not None:
            await cancel_and_wait(self._encoding)

    async def submit(
        self,
        elements: Sequence[Any],
        wait: Wait,
        *,
        check: Callable[[Any], Event | str] = lambda element: element,
        timeout_s: float | None = None,
        durability: Durability | None = None,
    ) -> list[Outcome]:
        """One outcome for each element, in order. `check`: makes the event of an element, or says why it is refused.

        Writes take turns (see `engine/turns.py`), checking included. Raises Overloaded when too many wait.
        With `wait="visible"` it returns when memory holds the events. `timeout_s` limits that wait: DeadlineExceeded
        says that the events are durable, but not yet visible. StoreUnavailable promises nothing; a retry is safe.
        NotDurable: they are stored, but not as durably as `durability` asks (None: as the setting says).
        """
        async with self.turns.turn(len(elements)):
            with span("validate", events=len(elements)):
                checked = await _in_pieces(check, elements)
            checked = await self._without_unknown_items(checked)
            events = [each for each in checked if isinstance(each, Event)]
            appended = iter(await self._append(events, durability))
            outcomes = [
                Outcome("rejected", reason=each) if isinstance(each, str) else _outcome(next(appended), each.event_id)
                for each in checked
            ]
        for outcome in outcomes:
            self.metrics.interactions_total.labels(outcome.status).inc()
        if wait == "visible":
            stored = [each for each, outcome in zip(checked, outcomes, strict=True) if outcome.status != "rejected"]
            await self._make_visible([each for each in stored if isinstance(each, Event)], timeout_s)
        return outcomes

    async def _append(self, events: Sequence[Event], durability: Durability | None) -> list[Appended | None]:
        """In pieces while recommendations are in work, which would wait for the event loop and the store otherwise.

        None for events of users whose stored keys are damaged. Raises StoreCorrupt if nothing can be stored.
        """
        appended: list[Appended | None] = []
        damaged: StoreCorrupt | None = None
        while piece := events[len(appended) :][: _STORED_AT_ONCE if self.turns.is_reading() else None]:
            try:
                appended += await self.store.append(piece, durability=durability)
            except RecordsSealed:  # a master key is missing, which concerns more than one user
                raise
            except StoreCorrupt as error:
                damaged = error
                appended += await self._append_by_user(piece, durability)
        if damaged is not None and not any(appended):
            raise damaged
        return appended

    async def _append_by_user(self, events: Sequence[Event], durability: Durability | None) -> list[Appended | None]:
        """One user with damaged keys does not cost the others theirs."""
        appended: dict[int, Appended] = {}
        for user_id in {event.user_id for event in events}:
            places = [place for place, event in enumerate(events) if event.user_id == user_id]
            with suppress(StoreCorrupt):
                own = await self.store.append([events[place] for place in places], durability=durability)
                appended |= dict(zip(places, own, strict=True))
        return [appended.get(place) for place in range(len(events))]

    async def correct(self, event: Event) -> Literal["created", "replaced", "unchanged"]:
        """Stores the event in the place of the one with its id.

        Raises Rejected for an unknown item, UserDeleted for an event that is not newer than the deletion of its user.

        Memory and counts follow from the events: a worker makes again what depended on the event before.
        """
        (checked,) = await self._without_unknown_items([event])
        if isinstance(checked, str):
            raise Rejected(checked)
        replaced = await self.store.replace(event)
        if replaced == "deleted":
            raise UserDeleted(DELETED)
        return replaced

    async def _without_unknown_items(self, elements: Sequence[Event | str]) -> list[Event | str]:
        """Events of unknown items are replaced by the reason."""
        if any(self._is_unknown(each) for each in elements):
            await self.items.catch_up()  # another replica may know the item already
        return [_UNKNOWN_ITEM if self._is_unknown(each) else each for each in elements]

    def _is_unknown(self, element: Event | str) -> bool:
        return isinstance(element, Event) and element.item_id not in self.view.catalogue.rows

    async def _make_visible(self, events: Sequence[Event], timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                users = sorted({event.user_id for event in events})
                for start in range(0, len(users), _USERS_AT_ONCE):
                    some = users[start : start + _USERS_AT_ONCE]
                    async with self._showing.turn(EVENTS_PER_PLACE * len(some) // _USERS_PER_PLACE):
                        await self.worker.reconcile(some)
        except (TimeoutError, Overloaded):
            raise DeadlineExceeded(
                "The events are durable, but memory does not hold them yet: it follows. Do not send them again."
            ) from None

    async def _measure_backlog(self) -> None:
        self.metrics.store_breaker_open.set(self.store.breaker.is_open)
        self.metrics.encode_backlog.set(await self.store.backlog())
        self.metrics.encode_lag_seconds.set(await self.store.backlog_age_s())
        self.metrics.workers.set(await self.store.num_workers())
        self.metrics.dead_letters.set(await self._dead_letters.count())
