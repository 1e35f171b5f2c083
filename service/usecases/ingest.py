"""Events in: each checked, the good ones durable at once, encoded right after.

An acknowledged event is in the log and its user in the encode queue, which a worker (`worker.py`), here or in another
process, empties.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import structlog
from pydantic import ValidationError

from model_store.bundle import Bundle
from model_store.text.history import derived_event_id
from service.errors import SettingsError, StoreUnavailable
from service.http.fields import reason
from service.http.schemas import Interaction, InteractionResult, InteractionsResponse
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.events import Event
from service.tasks import stopped
from service.usecases.encode import Worker
from service.usecases.items import Items

log = structlog.get_logger("service.usecases.ingest")

Wait = Literal["durable", "visible"]
T = TypeVar("T")
Submit = Callable[[list[Any], Wait], Awaitable[InteractionsResponse]]

_WATCH_EVERY_S = 1.0
_ELEMENTS_PER_IMPORT = 500


class Ingest:
    def __init__(self, bundle: Bundle, store: MemoryStore, items: Items, worker: Worker, metrics: Metrics) -> None:
        self.bundle, self.store, self.items, self.worker, self.metrics = bundle, store, items, worker, metrics
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, with_worker: bool) -> None:
        """The backlog is watched from now on; `with_worker`, it is also worked off here."""
        self._tasks.append(asyncio.create_task(self._watch(), name="encode-watch"))
        if with_worker:
            self._tasks.append(asyncio.create_task(self.worker.run(), name="encode-worker"))

    async def stop(self) -> None:
        """What the worker had not acknowledged stays in the queue for the next one."""
        await stopped(*self._tasks)

    async def submit(self, elements: list[Any], wait: Wait) -> InteractionsResponse:
        """One result per element, in order. Raises StoreUnavailable; then nothing is promised and a retry is safe."""
        checked = [_check(element) for element in elements]
        events = [event for event in checked if isinstance(event, Event)]
        if any(self._is_unknown(event) for event in events):
            await self.items.catch_up()  # another replica may have just been told of the item
        checked = [_UNKNOWN if isinstance(each, Event) and self._is_unknown(each) else each for each in checked]
        events = [event for event in checked if isinstance(event, Event)]
        is_new = iter(await self.store.append(events) if events else [])
        results = [_result(index, outcome, is_new) for index, outcome in enumerate(checked)]
        for result in results:
            self.metrics.interactions_total.labels(result.status).inc()
        if wait == "visible":
            await self.worker.reconcile_all(event.user_id for event in events)
        return InteractionsResponse(results=results)

    def _is_unknown(self, event: Event) -> bool:
        return event.item_id not in self.bundle.catalogue.rows

    async def _watch(self) -> None:
        while True:
            try:
                self.metrics.encode_backlog.set(await self.store.backlog())
                self.metrics.encode_lag_seconds.set(await self.store.backlog_age_s())
            except StoreUnavailable:
                log.debug("store away, the backlog is not known")
            await asyncio.sleep(_WATCH_EVERY_S)


_UNKNOWN = "item_id: the catalogue does not know this item; add it with PUT /items/{item_id}"


def _check(element: Any) -> Event | str:
    """The event, or why there is none."""
    try:
        interaction = Interaction.model_validate(element)
    except ValidationError as error:
        return reason(error)
    facts = (interaction.user_id, interaction.item_id, interaction.timestamp, interaction.type)
    return Event(interaction.event_id or derived_event_id(*facts), *facts, interaction.value)


def _result(index: int, outcome: Event | str, is_new: Iterator[bool]) -> InteractionResult:
    if isinstance(outcome, str):
        return InteractionResult(index=index, event_id=None, status="rejected", reason=outcome)
    status: Literal["accepted", "duplicate"] = "accepted" if next(is_new) else "duplicate"
    return InteractionResult(index=index, event_id=outcome.event_id, status=status)


async def import_file(submit: Submit, path: Path, report: Callable[[str], None] | None = None) -> int:
    """Sends a file of interactions, one JSON object a line, and returns when memory holds them. Safe to repeat.

    Raises SettingsError, naming the line, at the first one that is refused.
    """
    num_events = 0
    with path.open("rb") as file:
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


def _pieces(elements: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(elements)
    while piece := list(islice(iterator, size)):
        yield piece


def _parse(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SettingsError([f"{path}:{number}: not JSON: {error}"]) from None
