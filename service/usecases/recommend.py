"""What to show a user now, in the order of the paper:

    recall → encode → retrieve → combine → generate → ground → answer

`Recommender.recommend` recalls the user from the store, sends one job to the model, and makes the answer. The five
steps between run in the process of the model, for a batch of users at once: `model_store.inference.recommend`. When the
store does not answer, nothing is known of the user, time runs out or the model fails, the answer gives the reason and
contains what is still possible, often popular items.

Knows neither HTTP nor torch.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.answers import GROUNDED, Answer, Ranked, Source, popular
from model_store.view import BundleView
from service.engine.engine import Engine
from service.errors import DeadlineExceeded, ModelFailed, ModelUnavailable, ServiceError, StoreCorrupt, StoreUnavailable
from service.logs import RepeatedWarnings
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.usecases.repair import Repair
from service.usecases.seen import SeenRows
from service.usecases.timeline import Memory, Timeline, events_needed

log = structlog.get_logger("service.usecases.recommend")
repeated = RepeatedWarnings(log)

Fallback = Literal["cold_start", "memory_unavailable", "deadline", "engine_error"]

_RESERVE_S = 0.02  # of the time of a request, kept for writing and sending the answer
_NO_ROWS = np.zeros(0, dtype=np.int64)


class SessionItem(NamedTuple):
    """An item of the caller's session. Without a timestamp it is newer than all stored events."""

    item_id: str
    timestamp: int | None = None


@dataclass(frozen=True)
class Request:
    """Who asks for what. `user_id` None is an anonymous session, described by `recent` (oldest first)."""

    user_id: str | None = None
    k: int = 10
    exclude_seen: bool = True
    explain: bool = True
    recent: Sequence[SessionItem] = ()
    candidates: Sequence[str] | None = None
    filter: Mapping[str, Any] | None = None
    deadline_ms: int | None = None


class ShownItem(NamedTuple):
    """`score`: log-probability of the title, None unless generated. `distance`: see `model_store.answers.Ranked`."""

    rank: int
    item_id: str
    title: str
    score: float | None
    source: Source
    distance: float | None


class UsedMemory(NamedTuple):
    """An event whose state reached the top half of the model; `weight` is the retriever's probability."""

    event_id: str
    item_id: str
    title: str
    timestamp: int
    weight: float


class ServedModel(NamedTuple):
    """The name of the bundle, and the space of its hidden states."""

    bundle: str
    space: str


@dataclass(frozen=True)
class Recommendation:
    """`timings_ms` maps a stage to its milliseconds; the stages of the model are those of its whole batch."""

    recommendation_id: str
    user_id: str | None
    items: list[ShownItem]
    memory: list[UsedMemory]
    fallback: Fallback | None
    model: ServedModel
    timings_ms: dict[str, float]


class Context(NamedTuple):
    """What is known of the user at this moment. `recent`: titles, oldest first, at most K; `seen`: catalogue rows."""

    recent: list[str]
    memory: Memory
    seen: NDArray[np.int64]
    fallback: Fallback | None


class Recommender:
    def __init__(
        self, view: BundleView, engine: Engine, store: MemoryStore, metrics: Metrics, *, default_deadline_ms: int
    ) -> None:
        self.view, self.engine, self.store, self.metrics = view, engine, store, metrics
        self._default_deadline_ms = default_deadline_ms
        self._num_events = events_needed(view)
        self._repair = Repair(store)
        self._seen_rows = SeenRows(view.catalogue)

    async def stop(self) -> None:
        await self._repair.stop()

    async def recommend(self, request: Request) -> Recommendation:
        """Raises Overloaded and Draining; every other failure becomes a fallback."""
        deadline = self._deadline(request)
        with self.engine.admission.admitted(deadline):
            return await self._recommend(request, deadline)

    async def _recommend(self, request: Request, deadline: float) -> Recommendation:
        started = time.perf_counter()
        timings_s: dict[str, float] = {}
        context: Context | None = None
        answer: Answer | None = None
        failure: Fallback | None = None
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                context = await self._recall(request)
                timings_s["memory"] = time.perf_counter() - started
                if context.recent:
                    answer = await self._ask_model(request, context, deadline)
                    timings_s |= _timings_of(answer, time.perf_counter() - started - timings_s["memory"])
        except (TimeoutError, DeadlineExceeded):
            failure = "deadline"
        except (ModelFailed, ModelUnavailable):
            failure = "engine_error"
        recommendation = self._answer(request, context or self._context(request), answer, failure)
        return self._timed(recommendation, {**timings_s, "total": time.perf_counter() - started})

    def _deadline(self, request: Request) -> float:
        """The time by which the answer must be ready, on the clock of `time.monotonic()`; nothing else sets it."""
        seconds = (request.deadline_ms or self._default_deadline_ms) / 1000
        return time.monotonic() + seconds - min(_RESERVE_S, seconds / 10)

    async def _recall(self, request: Request) -> Context:
        """Recent window, memory and seen items: from the store, with the items of the session on top."""
        if request.user_id is None:
            return self._context(request)
        space, limit = self.view.manifest.space, self._num_events
        try:
            events, digests = await self.store.recall_and_seen(request.user_id, space, limit)
        except (StoreUnavailable, StoreCorrupt):
            return self._context(request, fallback="memory_unavailable")
        timeline = Timeline(events, self.view)
        if timeline.is_incomplete:
            self._repair.request(request.user_id)
        return self._context(request, timeline, self._seen_rows.of(digests, self.view.catalogue))

    def _context(
        self,
        request: Request,
        timeline: Timeline | None = None,
        seen: NDArray[np.int64] = _NO_ROWS,
        fallback: Fallback | None = None,
    ) -> Context:
        """The recent window is the last K of stored events and session items, by time."""
        length = self.view.manifest.prompt.recent_length
        timeline = timeline or Timeline([], self.view)
        if not request.recent:
            return Context(timeline.titles[-length:], timeline.memory(), seen, fallback)
        rows = self.view.catalogue.rows
        session = [item for item in request.recent if item.item_id in rows]
        window = _window(timeline, session, length)
        num_stored = sum(is_stored for _, is_stored in window)
        return Context(
            recent=self.view.catalogue.titles(item_id for item_id, _ in window),
            memory=timeline.memory(num_recent=num_stored),
            seen=self._seen_rows.with_session(seen, [item.item_id for item in session], self.view.catalogue),
            fallback=fallback,
        )

    async def _ask_model(self, request: Request, context: Context, deadline: float) -> Answer:
        """Encode, retrieve, combine, generate, ground: one job for the model, in a batch with others.

        Raises ServiceError only.
        """
        memory = context.memory.states
        try:
            allowed = self._allowed(request, context)
            return await self.engine.recommend(context.recent, memory, allowed, request.k, deadline=deadline)
        except ServiceError:
            raise
        except Exception as error:
            log.exception("the engine failed")
            raise ModelFailed("The engine failed.") from error

    def _allowed(self, request: Request, context: Context) -> NDArray[np.bool_]:
        """(N,) what may be shown: available, among the candidates, matching the filter, not seen."""
        return self.view.catalogue.allowed(
            time.time(),
            candidates=request.candidates,
            attributes=request.filter,
            without=context.seen if request.exclude_seen else None,
        )

    def _answer(
        self,
        request: Request,
        context: Context,
        answer: Answer | None,
        failure: Fallback | None,
    ) -> Recommendation:
        """The model's answer; without one, popular items and the reason as `fallback`."""
        fallback = failure or context.fallback
        if answer is None:
            fallback = fallback or "cold_start"
            ranked = popular(self.view.catalogue, self._allowed(request, context), request.k)
        else:
            ranked = answer.items
            self.metrics.memory_elements.observe(len(answer.chosen))
        self._observe(ranked, fallback)
        return Recommendation(
            recommendation_id=secrets.token_hex(16),
            user_id=request.user_id,
            items=self._shown(ranked),
            memory=self._used(context.memory, answer) if request.explain and answer is not None else [],
            fallback=fallback,
            model=ServedModel(self.view.manifest.name, self.view.manifest.space),
            timings_ms={},
        )

    def _shown(self, ranked: Sequence[Ranked]) -> list[ShownItem]:
        items = self.view.catalogue.items.at([item.row for item in ranked])
        return [
            ShownItem(rank, item.item_id, item.title, _rounded(found.score), found.source, _rounded(found.distance))
            for rank, (item, found) in enumerate(zip(items, ranked, strict=True), start=1)
        ]

    def _used(self, memory: Memory, answer: Answer) -> list[UsedMemory]:
        """The memories that reached the top half, the largest weight first."""
        chosen = sorted(answer.chosen, key=lambda index: -answer.weights[index])
        return [
            UsedMemory(event.event_id, event.item_id, memory.titles[index], event.timestamp, round(float(weight), 4))
            for index in chosen
            for event, weight in [(memory.events[index], answer.weights[index])]
        ]

    def _timed(self, recommendation: Recommendation, timings_s: Mapping[str, float]) -> Recommendation:
        for stage, seconds in timings_s.items():
            self.metrics.stage_seconds.labels(stage).observe(seconds)
            recommendation.timings_ms[stage] = round(1000 * seconds, 3)
        return recommendation

    def _observe(self, ranked: Sequence[Ranked], fallback: Fallback | None) -> None:
        for source, count in Counter(item.source for item in ranked).items():
            self.metrics.source_total.labels(source).inc(count)
        for item in ranked:
            if item.source == GROUNDED and item.distance is not None:
                self.metrics.grounding_distance.observe(item.distance)
        if fallback is not None:
            self.metrics.fallback_total.labels(fallback).inc()
        if fallback not in (None, "cold_start"):
            repeated.warning("answered with a fallback", reason=fallback)


def _window(timeline: Timeline, session: Sequence[SessionItem], length: int) -> list[tuple[str, bool]]:
    """(item id, whether it is a stored event), oldest first, at most `length`. Equal times keep the store's order."""
    stored = {(event.item_id, event.timestamp) for event in timeline.events}
    timed = [(float(event.timestamp), event.item_id, True) for event in timeline.events[-length:]]
    timed += [
        (float("inf") if timestamp is None else timestamp, item_id, False)
        for item_id, timestamp in session
        if (item_id, timestamp) not in stored
    ]
    timed.sort(key=lambda place: place[0])
    return [(item_id, is_stored) for _, item_id, is_stored in timed[-length:]]


def _timings_of(answer: Answer, at_model_s: float) -> dict[str, float]:
    """The stages of the model, and `queue`: the rest of the time in which the request was at the model."""
    return {"queue": max(0.0, at_model_s - sum(answer.timings_s.values())), **answer.timings_s}


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)
