"""The use case: what to show a user now. Reads like the paper; each step is one collaborator.

    recent + memory (store) → encode, score, combine, generate, ground (engine) → answer

Knows neither HTTP nor torch. When the store is away, or nothing is known, or time runs out, it says so and answers with
what it has.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.answers import Answer, Query, Ranked, Stopwatch, popular
from model_store.bundle import Bundle
from service.engine.batching import Admission
from service.engine.engine import Engine
from service.errors import DeadlineExceeded, StoreUnavailable
from service.http.schemas import MemoryElement, RecommendRequest, RecommendResponse
from service.metrics import Metrics
from service.settings import Settings
from service.store.client import MemoryStore
from service.store.events import Remembered
from service.usecases.deferred import Afterwards
from service.usecases.seen import SeenRows
from service.usecases.timeline import Memory, Timeline, events_needed, title_of, titles_of

log = structlog.get_logger("service.usecases.recommend")

_RESERVE_S = 0.02  # of the time a caller gives, kept to write and send the answer

Fallback = Literal["cold_start", "memory_unavailable", "deadline"]

_NO_ROWS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Context:
    """What is known about the user at this moment: titles, oldest first, at most K; memory; rows of seen items."""

    recent: list[str]
    memory: Memory
    seen: NDArray[np.int64]
    fallback: Fallback | None = None


class Recommender:
    def __init__(
        self, bundle: Bundle, engine: Engine, store: MemoryStore, metrics: Metrics, settings: Settings
    ) -> None:
        self.bundle, self.engine, self.store, self.metrics = bundle, engine, store, metrics
        self._deadline_ms = settings.deadline_ms
        self._afterwards = Afterwards(store)
        self._seen_rows = SeenRows(bundle.catalogue)

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Raises Overloaded and Draining; everything else that can go wrong becomes a fallback."""
        deadline_s = (request.deadline_ms or self._deadline_ms) / 1000
        patience_s = deadline_s - min(_RESERVE_S, deadline_s / 10) - self.engine.delay_s
        with self.engine.admission(patience_s) as admission:
            return await self._recommend(request, admission, patience_s=patience_s)

    async def _recommend(
        self, request: RecommendRequest, admission: Admission, *, patience_s: float
    ) -> RecommendResponse:
        watch = Stopwatch()
        context: Context | None = None
        try:
            async with asyncio.timeout(patience_s):
                context = await self._remember(request)
                watch.lap("memory")
                if not context.recent:
                    return self._popular(request, context, context.fallback or "cold_start", watch)
                query = self._query(request, context)
                watch.lap("prepare")
                answer = await self.engine.recommend(query, timeout_s=max(0.001, patience_s - watch.elapsed_s))
        except (TimeoutError, DeadlineExceeded):
            admission.has_missed = True
            return self._popular(request, context or self._context(request), "deadline", watch)
        watch.lap("queue")
        watch.laps["queue"] = max(0.0, watch.laps["queue"] - sum(answer.timings_s.values()))
        watch.laps |= answer.timings_s
        memory = self._explain(request, context, answer)
        return self._respond(request, answer.items, watch, memory=memory, fallback=context.fallback)

    async def stop(self) -> None:
        await self._afterwards.stop()

    async def _remember(self, request: RecommendRequest) -> Context:
        """Recent items and memory from the store, with the request's own recent items on top."""
        if request.user_id is None:
            return self._context(request)
        try:
            remembered, seen = await self._recall(request.user_id, with_seen=request.exclude_seen)
        except StoreUnavailable:
            log.warning("store away, answering without memory")
            return self._context(request, fallback="memory_unavailable")
        timeline = Timeline(remembered, self.bundle)
        if timeline.is_incomplete():
            self._afterwards.request_encoding(request.user_id)
        return self._context(request, timeline, self._seen_rows.of(seen, self.bundle.catalogue))

    async def _recall(self, user_id: str, *, with_seen: bool) -> tuple[list[Remembered], bytes]:
        space, limit = self.bundle.manifest.space, events_needed(self.bundle)
        if with_seen:
            return await self.store.recall_and_seen(user_id, space, limit)
        return await self.store.recall(user_id, space, limit), b""

    def _context(
        self,
        request: RecommendRequest,
        timeline: Timeline | None = None,
        seen: NDArray[np.int64] = _NO_ROWS,
        *,
        fallback: Fallback | None = None,
    ) -> Context:
        """The last K of stored events and session items by time; session items without a time are the newest."""
        timeline = timeline or Timeline([], self.bundle)
        rows = self.bundle.catalogue.rows
        session = [(item.timestamp, item.item_id) for item in request.recent if item.item_id in rows]
        recent = _newest(timeline, session, self.bundle.prompt.spec.recent_length)
        return Context(
            recent=titles_of([item_id for item_id, _ in recent], self.bundle),
            memory=timeline.memory(num_recent=sum(is_stored for _, is_stored in recent)),
            seen=np.append(seen, [rows[item_id] for _, item_id in session]).astype(np.int64) if session else seen,
            fallback=fallback,
        )

    def _query(self, request: RecommendRequest, context: Context) -> Query:
        return Query(
            prompt=self.bundle.prompt.tokens(context.recent),
            memory=context.memory.states,
            allowed=self._allowed(request, context),
            num_results=request.k,
        )

    def _allowed(self, request: RecommendRequest, context: Context) -> NDArray[np.bool_]:
        """(N,) what may be shown: available, asked for, not seen."""
        catalogue = self.bundle.catalogue
        allowed = catalogue.available(time.time())
        if request.candidates is not None:
            wanted = np.zeros(len(catalogue), dtype=bool)
            wanted[[catalogue.rows[item_id] for item_id in request.candidates if item_id in catalogue.rows]] = True
            allowed &= wanted
        if request.filter:
            allowed &= catalogue.matching(request.filter)
        if request.exclude_seen:
            allowed[context.seen] = False
        return allowed

    def _popular(
        self, request: RecommendRequest, context: Context, fallback: Fallback, watch: Stopwatch
    ) -> RecommendResponse:
        ranked = popular(self.bundle.catalogue, self._allowed(request, context), request.k)
        return self._respond(request, ranked, watch, memory=[], fallback=fallback)

    def _explain(self, request: RecommendRequest, context: Context, answer: Answer) -> list[MemoryElement]:
        """The memories that reached the top half, most weighty first."""
        self.metrics.memory_elements.observe(len(answer.chosen))
        if not request.explain:
            return []
        chosen = sorted(answer.chosen, key=lambda index: -answer.weights[index])
        return [
            MemoryElement(
                event_id=event.event_id,
                item_id=event.item_id,
                title=title_of(event.item_id, self.bundle),
                timestamp=event.timestamp,
                weight=round(float(answer.weights[index]), 4),
            )
            for index in chosen
            for event in [context.memory.events[index]]
        ]

    def _respond(
        self,
        request: RecommendRequest,
        ranked: list[Ranked],
        watch: Stopwatch,
        *,
        memory: list[MemoryElement],
        fallback: Fallback | None,
    ) -> RecommendResponse:
        timings = {**watch.laps, "total": watch.elapsed_s}
        self._observe(ranked, fallback, timings)
        manifest = self.bundle.manifest
        answer = {
            "recommendation_id": secrets.token_hex(16),
            "user_id": request.user_id,
            "items": [self._item(rank, item) for rank, item in enumerate(ranked, start=1)],
            "memory": memory,
            "fallback": fallback,
            "model": {"bundle": manifest.name, "space": manifest.space},
            "timings_ms": {name: round(1000 * seconds, 3) for name, seconds in timings.items()},
        }
        return RecommendResponse.model_validate(answer)  # all of it at once: a model for each item takes far longer

    def _item(self, rank: int, ranked: Ranked) -> dict[str, Any]:
        """A `RecommendedItem`."""
        item = self.bundle.catalogue.items[ranked.row]
        return {
            "rank": rank,
            "item_id": item.item_id,
            "title": item.title,
            "score": None if ranked.score is None else round(ranked.score, 4),
            "source": ranked.source,
            "distance": None if ranked.distance is None else round(ranked.distance, 4),
        }

    def _observe(self, ranked: list[Ranked], fallback: Fallback | None, timings: Mapping[str, float]) -> None:
        for stage, seconds in timings.items():
            if stage != "queue":  # the engine observes it for all jobs
                self.metrics.stage_seconds.labels(stage).observe(seconds)
        for source, count in Counter(item.source for item in ranked).items():
            self.metrics.source_total.labels(source).inc(count)
        for item in ranked:
            if item.distance is not None:
                self.metrics.grounding_distance.observe(item.distance)
        if fallback is not None:
            self.metrics.fallback_total.labels(fallback).inc()


def _newest(timeline: Timeline, session: list[tuple[int | None, str]], count: int) -> list[tuple[str, bool]]:
    """Item ids, oldest first, and whether each is a stored event, at most `count`."""
    stored = {(event.item_id, event.timestamp) for event in timeline.events} if session else set()
    placed = [(float(event.timestamp), event.item_id, True) for event in timeline.events[-count:]]
    placed += [
        (float("inf") if timestamp is None else timestamp, item_id, False)
        for timestamp, item_id in session
        if (item_id, timestamp) not in stored
    ]
    placed.sort(key=lambda place: place[0])  # stable: equal times keep the documented order of the store
    return [(item_id, is_stored) for _, item_id, is_stored in placed[-count:]]
