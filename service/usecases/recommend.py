"""What to show a user now, in the order of the paper:

    recall → encode → retrieve → combine → generate → ground → answer

`Recommender.recommend` recalls the user from the store, sends one job to the model, and makes the answer. The five
steps between run in the process of the model, for a batch of users at once: `model_store.inference.recommend`. A query
in words is answered there as well, from its words and local memory (`words.py`). When the store does not answer,
nothing is known of the user, time runs out or the model fails, the answer gives the reason and contains what is still
possible, often popular items.

Knows neither HTTP nor torch.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.answers import GROUNDED, Answer, PastRows, Ranked, popular
from model_store.catalogue.conditions import Condition
from model_store.catalogue.filters import Filters
from model_store.view import BundleView
from service.engine.engine import Engine
from service.engine.messages import WordsAnswered
from service.errors import (
    DeadlineExceeded,
    Draining,
    ModelFailed,
    ModelUnavailable,
    NoWords,
    Overloaded,
    StoreCorrupt,
    StoreUnavailable,
)
from service.logs import RepeatedWarnings
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.events import Remembered
from service.usecases.explain import ShownItem, UsedMemory, show
from service.usecases.repair import Repair
from service.usecases.seen import SeenRows
from service.usecases.timeline import Known, SessionItem, events_needed, known_of, states_needed
from service.usecases.warned import Warned, of_candidates, of_filter
from service.usecases.words import (
    NO_WORDS,
    NUM_EVENTS,
    Degraded,
    Reasoning,
    ShownReasoning,
    degraded,
    known_in_words,
    queries_of,
    ranked_items,
    show_reasoning,
)

log = structlog.get_logger("service.usecases.recommend")
repeated = RepeatedWarnings(log)

Fallback = Literal["cold_start", "memory_unavailable", "deadline", "engine_error"] | Degraded

_RESERVE_S = 0.02  # of the time of a request, kept for writing and sending the answer
_NO_ROWS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Request:
    """Who asks for what. `user_id` None is an anonymous session, described by `recent` (oldest first).

    `exclude_seen` None: unless users of the data come back to items. `timestamp`: the time of the request, None for
    now. It is the clock of the past: the age of an event counts from it, and events at this time or later are the
    current basket. Events are read whatever their time, and items are available by the real clock.

    `query`: what the user asks for in words; `reasoning` says how far memory may be used for it.
    """

    user_id: str | None = None
    k: int = 10
    exclude_seen: bool | None = None
    explain: bool = True
    recent: Sequence[SessionItem] = ()
    candidates: Sequence[str] | None = None
    filter: Condition | None = None
    exclude: Sequence[str] = ()
    deadline_ms: int | None = None
    timestamp: int | None = None
    query: str | None = None
    reasoning: Reasoning = "retrieve"


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
    reasoning: ShownReasoning | None = None
    warnings: list[Warned] = field(default_factory=list)


class Context(NamedTuple):
    """What is known of the user at this moment. `seen`: catalogue rows."""

    known: Known
    seen: NDArray[np.int64]
    fallback: Fallback | None


class Recommender:
    def __init__(
        self, view: BundleView, engine: Engine, store: MemoryStore, metrics: Metrics, *, default_deadline_ms: int
    ) -> None:
        self.view, self.engine, self.store, self.metrics = view, engine, store, metrics
        self._default_deadline_ms = default_deadline_ms
        self._num_events, self._num_states = events_needed(view), states_needed(view)
        voices = view.manifest.voices
        self._has_returns = voices is not None and voices.has_returns
        self._repair = Repair(store)
        self._seen_rows = SeenRows(view.catalogue)
        self._filters = Filters()

    async def stop(self) -> None:
        await self._repair.stop()

    async def recommend(self, request: Request) -> Recommendation:
        """Raises Overloaded, Draining and NoWords; every other failure becomes a fallback."""
        if request.query is not None and self.view.manifest.words is None:
            raise NoWords(NO_WORDS)
        deadline = self._deadline(request)
        with self.engine.admission.admitted(deadline):
            return await self._recommend(request, deadline)

    async def _recommend(self, request: Request, deadline: float) -> Recommendation:
        started = time.perf_counter()
        timings_s: dict[str, float] = {}
        context: Context | None = None
        answer: Answer | WordsAnswered | None = None
        failure: Fallback | None = None
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                context = await self._recall(request)
                await self._prepare_filter(request)
                timings_s["memory"] = time.perf_counter() - started
                if request.query is not None or context.known.recent:
                    answer = await self._ask_model(request, context, deadline)
                    timings_s |= _timings_of(answer, time.perf_counter() - started - timings_s["memory"])
        except (TimeoutError, DeadlineExceeded):
            failure = "deadline"
        except (ModelFailed, ModelUnavailable):
            failure = "engine_error"
        except (Overloaded, Draining):
            raise
        except Exception:
            log.exception("the engine failed")
            failure = "engine_error"
        context = context or self._context(request)
        try:
            recommendation = self._answer(request, context, answer, failure)
        except Exception:
            if answer is None:
                raise
            log.exception("the engine failed")  # its answer cannot be shown
            recommendation = self._answer(request, context, None, "engine_error")
        return self._timed(recommendation, {**timings_s, "total": time.perf_counter() - started})

    def _deadline(self, request: Request) -> float:
        """The time by which the answer must be ready, on the clock of `time.monotonic()`; nothing else sets it."""
        seconds = (request.deadline_ms or self._default_deadline_ms) / 1000
        return time.monotonic() + seconds - min(_RESERVE_S, seconds / 10)

    def _wanted(self, request: Request) -> tuple[int, int]:
        """How many events are recalled, and how many of them with states."""
        return (self._num_events, self._num_states) if request.query is None else (NUM_EVENTS, 0)

    async def _recall(self, request: Request) -> Context:
        """Recent window, memory, past and seen items: from the store, with the items of the session among them."""
        if request.user_id is None:
            return self._context(request)
        try:
            num_events, num_states = self._wanted(request)
            events, digests = await self.store.recall_and_seen(
                request.user_id, self.view.manifest.space, num_events, num_states=num_states
            )
        except (StoreUnavailable, StoreCorrupt):
            return self._context(request, fallback="memory_unavailable")
        except Exception:
            log.exception("a user cannot be read")
            return self._context(request, fallback="memory_unavailable")
        context = self._context(request, events, self._seen_rows.of(digests, self.view.catalogue))
        if context.known.is_incomplete:
            self._repair.request(request.user_id)
        return context

    def _context(
        self,
        request: Request,
        events: Sequence[Remembered] = (),
        seen: NDArray[np.int64] = _NO_ROWS,
        fallback: Fallback | None = None,
    ) -> Context:
        now = int(time.time()) if request.timestamp is None else request.timestamp
        know = known_of if request.query is None else known_in_words
        known = know(events, self.view, now, request.recent)
        if request.recent:
            names = [item.item_id for item in request.recent]
            seen = self._seen_rows.with_session(seen, names, self.view.catalogue)
        return Context(known, seen, fallback)

    async def _prepare_filter(self, request: Request) -> None:
        """Applies a filter that is new to this process in a thread, as a large catalogue takes long."""
        condition, catalogue = request.filter, self.view.catalogue
        if condition is not None and not self._filters.is_cheap(catalogue, condition):
            await asyncio.to_thread(self._filters.mask, catalogue, condition)

    async def _ask_model(self, request: Request, context: Context, deadline: float) -> Answer | WordsAnswered:
        """Encode, retrieve, combine, generate, ground: one job for the model, in a batch with others.

        A query in words is another kind of job.
        """
        known = context.known
        allowed = self._allowed(request, context)
        if request.query is None:
            return await self.engine.recommend(
                known.recent, known.memory.states, allowed, request.k, deadline=deadline, past=known.past
            )
        return await self.engine.answer_words(
            request.query,
            known.past,
            queries_of(known.past_events),
            allowed,
            reasoning=request.reasoning,
            num_results=request.k,
            deadline=deadline,
        )

    def _allowed(self, request: Request, context: Context) -> NDArray[np.bool_]:
        """(N,) what may be shown: available, among the candidates, matching the filter, not seen.

        Where users come back to items, seen items may be shown, but not those of the current basket: the evaluation
        leaves them out, too.
        """
        excludes_seen = not self._has_returns if request.exclude_seen is None else request.exclude_seen
        basket = _basket(context.known.past) if self._has_returns else _NO_ROWS
        catalogue = self.view.catalogue
        allowed = catalogue.allowed(
            time.time(),
            candidates=request.candidates,
            among=None if request.filter is None else self._filters.mask(catalogue, request.filter),
            without=context.seen if excludes_seen else basket,
        )
        allowed[[catalogue.rows[item_id] for item_id in request.exclude if item_id in catalogue.rows]] = False
        return allowed

    def _answer(
        self,
        request: Request,
        context: Context,
        answer: Answer | WordsAnswered | None,
        failure: Fallback | None,
    ) -> Recommendation:
        """The model's answer; without one, popular items and the reason as `fallback`."""
        fallback, catalogue = failure or context.fallback, self.view.catalogue
        reasoning: ShownReasoning | None = None
        if isinstance(answer, Answer):
            ranked = answer.items
            self._observe_model(answer)
            items, memory = show(catalogue, ranked, context.known, answer if request.explain else None)
        elif answer is not None:
            fallback = fallback or degraded(request.reasoning, answer.level)
            ranked = ranked_items(answer, catalogue, self._allowed(request, context), request.k)
            self.metrics.queries_total.labels(answer.level).inc()
            items, memory = show(catalogue, ranked, context.known, None)
            if request.explain:
                memory, reasoning = show_reasoning(answer, context.known, catalogue)
        else:
            fallback = fallback or "cold_start"
            ranked = popular(catalogue, self._allowed(request, context), request.k)
            items, memory = show(catalogue, ranked, context.known, None)
        self._observe(ranked, fallback)
        return Recommendation(
            recommendation_id=secrets.token_hex(16),
            user_id=request.user_id,
            items=items,
            memory=memory,
            fallback=fallback,
            model=ServedModel(self.view.manifest.name, self.view.manifest.space),
            timings_ms={},
            reasoning=reasoning,
            warnings=[*of_candidates(request.candidates or (), catalogue), *of_filter(request.filter, catalogue)],
        )

    def _timed(self, recommendation: Recommendation, timings_s: Mapping[str, float]) -> Recommendation:
        for stage, seconds in timings_s.items():
            self.metrics.stage_seconds.labels(stage).observe(seconds)
            recommendation.timings_ms[stage] = round(1000 * seconds, 3)
        return recommendation

    def _observe_model(self, answer: Answer) -> None:
        self.metrics.memory_elements.observe(len(answer.chosen))
        for voice, count in Counter(reason.voice for reason in answer.reasons if reason is not None).items():
            self.metrics.reason_total.labels(voice).inc(count)

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


def _basket(past: PastRows) -> NDArray[np.int64]:
    """Catalogue rows of the current basket: what the user had at the time of the request, or later."""
    in_basket = np.array(past.timestamps, dtype=np.int64) >= past.now
    basket: NDArray[np.int64] = np.array(past.rows, dtype=np.int64)[in_basket]
    return basket


def _timings_of(answer: Answer | WordsAnswered, at_model_s: float) -> dict[str, float]:
    """The stages of the model, and `queue`: the rest of the time in which the request was at the model."""
    return {"queue": max(0.0, at_model_s - sum(answer.timings_s.values())), **answer.timings_s}
