"""Events in, memory grows: durable first, encoded right after.

`submit` checks each element and writes the good ones; an acknowledged event is in the log and its user in the encode
queue. A worker, here or in another process, takes users from the queue and `reconcile`s them: whatever states are
missing or stale are made anew from the log, so retries, late events and crashes all end in the same memory.
"""

import asyncio
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import structlog
from pydantic import ValidationError

from model_store.bundle import Bundle
from model_store.history import derived_event_id
from service.engine import Engine
from service.errors import Overloaded, SettingsError, StoreUnavailable
from service.events import Event
from service.fields import reason
from service.memory import MemoryStore
from service.metrics import Metrics
from service.schemas import Interaction, InteractionResult, InteractionsResponse
from service.timeline import Timeline, Unencoded, events_needed, states_kept

log = structlog.get_logger("service.ingest")

Wait = Literal["durable", "visible"]
T = TypeVar("T")
Submit = Callable[[list[Any], Wait], Awaitable[InteractionsResponse]]

_USERS_PER_ROUND = 32
_POLL_MS = 1000
_BACKOFF_S = 1.0
_ELEMENTS_PER_IMPORT = 500
_ENCODINGS_AT_ONCE = 64


class Ingest:
    def __init__(self, bundle: Bundle, engine: Engine, store: MemoryStore, metrics: Metrics) -> None:
        self.bundle, self.engine, self.store, self.metrics = bundle, engine, store, metrics
        self.worker = Worker(bundle, engine, store, metrics)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The encode worker runs in this process from now on."""
        self._task = asyncio.create_task(self.worker.run(), name="encode-worker")

    async def stop(self) -> None:
        """What the worker had not acknowledged stays in the queue for the next one."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def submit(self, elements: list[Any], wait: Wait) -> InteractionsResponse:
        """One result per element, in order. Raises StoreUnavailable; then nothing is promised and a retry is safe."""
        checked = [self._check(element) for element in elements]
        events = [event for event in checked if isinstance(event, Event)]
        is_new = iter(await self.store.append(events) if events else [])
        results = [_result(index, outcome, is_new) for index, outcome in enumerate(checked)]
        for result in results:
            self.metrics.interactions_total.labels(result.status).inc()
        if wait == "visible":
            await self.worker.reconcile({event.user_id for event in events})
        return InteractionsResponse(results=results)

    def _check(self, element: Any) -> Event | str:
        """The event, or why there is none."""
        try:
            interaction = Interaction.model_validate(element)
        except ValidationError as error:
            return reason(error)
        if interaction.item_id not in self.bundle.catalogue.rows:
            return "item_id: the catalogue does not know this item; add it with PUT /items/{item_id}"
        facts = (interaction.user_id, interaction.item_id, interaction.timestamp, interaction.type)
        return Event(interaction.event_id or derived_event_id(*facts), *facts, interaction.value)


def _result(index: int, outcome: Event | str, is_new: Iterator[bool]) -> InteractionResult:
    if isinstance(outcome, str):
        return InteractionResult(index=index, event_id=None, status="rejected", reason=outcome)
    status: Literal["accepted", "duplicate"] = "accepted" if next(is_new) else "duplicate"
    return InteractionResult(index=index, event_id=outcome.event_id, status=status)


class Worker:
    """Makes stored states equal to what a backfill of the log would make."""

    def __init__(self, bundle: Bundle, engine: Engine, store: MemoryStore, metrics: Metrics) -> None:
        self.bundle, self.engine, self.store, self.metrics = bundle, engine, store, metrics
        self._consumer = f"{socket.gethostname()}-{os.getpid()}"

    async def run(self) -> None:
        """Until cancelled. A store that is away is waited for; a user that cannot be encoded is logged and let go."""
        while True:
            try:
                entries = await self.store.next_encodings(self._consumer, count=_USERS_PER_ROUND, block_ms=_POLL_MS)
                if entries:
                    await self._work_off(entries)
                self.metrics.encode_backlog.set(await self.store.backlog())
            except StoreUnavailable:
                log.warning("store away, encoding waits")
                await asyncio.sleep(_BACKOFF_S)

    async def _work_off(self, entries: Sequence[tuple[str, str]]) -> None:
        try:
            await self.reconcile({user_id for _, user_id in entries})
        except (StoreUnavailable, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("users could not be encoded", num_users=len(entries))
        await self.store.encoded([entry_id for entry_id, _ in entries])
        for entry_id, _ in entries:
            queued_at_s = int(entry_id.partition("-")[0]) / 1000  # a stream id begins with the server's clock
            self.metrics.ingest_visible_lag_seconds.observe(max(0.0, time.time() - queued_at_s))

    async def reconcile(self, user_ids: set[str]) -> int:
        """Encodes what is missing or stale for these users; returns how many states were written."""
        space, limit = self.bundle.manifest.space, events_needed(self.bundle)
        users = sorted(user_ids)
        recalled = await asyncio.gather(*(self.store.recall(user_id, space, limit) for user_id in users))
        todo = [Timeline(events, self.bundle).unencoded() for events in recalled]
        pairs = zip(users, todo, strict=True)
        return sum(await asyncio.gather(*(self._encode(user_id, missing) for user_id, missing in pairs if missing)))

    async def _encode(self, user_id: str, todo: Sequence[Unencoded]) -> int:
        self.metrics.stale_states_total.inc(sum(part.is_stale for part in todo))
        states = await _when_there_is_room(self.engine, [self.bundle.prompt.tokens(part.titles) for part in todo])
        codec = self.bundle.codec
        records = {
            part.event.event_id: codec.encode(state, part.fingerprint) for part, state in zip(todo, states, strict=True)
        }
        return await self.store.save_states(user_id, self.bundle.manifest.space, records, keep=states_kept(self.bundle))


async def _when_there_is_room(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[Any]:
    """In pieces that leave room in the queue; a full queue is waited for, since nobody waits for us."""
    states: list[Any] = []
    for piece in _pieces(prompts, _ENCODINGS_AT_ONCE):
        while True:
            try:
                states += await engine.encode(piece)
                break
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s or _BACKOFF_S)
    return states


def _pieces(elements: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(elements)
    while piece := list(islice(iterator, size)):
        yield piece


async def import_file(submit: Submit, path: Path, report: Callable[[str], None] | None = None) -> int:
    """Sends a file of interactions, one JSON object a line, and returns when memory holds them. Safe to repeat.

    Raises SettingsError, naming the line, at the first one that is refused.
    """
    num_events = 0
    with path.open(encoding="utf-8") as file:
        for lines in _pieces(enumerate(file, start=1), _ELEMENTS_PER_IMPORT):
            elements = {number: _parse(path, number, line) for number, line in lines if line.strip()}
            answer = await submit(list(elements.values()), "visible")
            for number, result in zip(elements, answer.results, strict=True):
                if result.status == "rejected":
                    raise SettingsError([f"{path}:{number}: {result.reason}"])
            num_events += len(elements)
            if report is not None:
                report(f"{num_events} interactions")
    log.info("imported", interactions=num_events)
    return num_events


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise SettingsError([f"{path}:{number}: not JSON: {error}"]) from None


async def backfill(worker: Worker) -> dict[str, int]:
    """Every user of the store, one round at a time. Interrupt it as you like: what is done is not done again."""
    num_users = num_states = 0
    round_: set[str] = set()
    async for user_id in worker.store.users():
        round_.add(user_id)
        if len(round_) >= _USERS_PER_ROUND:
            num_users, num_states = num_users + len(round_), num_states + await worker.reconcile(round_)
            round_ = set()
            log.info("backfill", users=num_users, states=num_states)
    num_states += await worker.reconcile(round_)
    return {"users": num_users + len(round_), "states": num_states}
