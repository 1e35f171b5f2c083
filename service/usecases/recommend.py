"""What to show a user now, in the order of the paper:

    recall → encode → retrieve → combine → generate → ground → answer

`Recommender.recommend` recalls the user from the store, sends one job to the model, and makes the answer. The five
steps between run in the process of the model, for a batch of users at once: `model_store.inference.recommend`. A query
in words is answered there as well, from its words and local memory (`words.py`). When the store does not answer,
nothing is known of the user, time runs out or the model fails, the answer gives the reason and contains what is still
possible, often the list of `ranking/cold_start.py`.

Knows neither HTTP nor torch.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.answers import GROUNDED, Answer, PastRows, Ranked, Reason, popular
from model_store.catalogue.catalogue import Catalogue
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
)
from service.logs import RepeatedWarnings
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.tracing.spans import span
from service.usecases.explain import show
from service.usecases.ranking.candidates import LEAST, MOST, Candidate, candidates_of, lifted, merged
from service.usecases.ranking.cold_start import ColdStart
from service.usecases.ranking.draft import Draft, Listed, silent
from service.usecases.ranking.exploration import MOST_EXPLORED, little_known, without_idle
from service.usecases.ranking.fitting import fitting
from service.usecases.ranking.recall import Recall
from service.usecases.ranking.requests import Context, Fallback, Progress, Recommendation, Request, ServedModel
from service.usecases.ranking.rules import NO_RULES, Exploration
from service.usecases.warned import NOT_DIVERSE, Warned, of_candidates, of_filter, of_recent, of_rules
from service.usecases.words import (
    NO_WORDS,
    ShownReasoning,
    degraded,
    queries_of,
    ranked_items,
    show_reasoning,
)

log = structlog.get_logger("service.usecases.recommend")
repeated = RepeatedWarnings(log)

_RESERVE_S = 0.02  # of the time of a request, kept for writing and sending the answer
_NO_ROWS = np.zeros(0, dtype=np.int64)


class Recommender:
    def __init__(
        self,
        view: BundleView,
        engine: Engine,
        store: MemoryStore,
        metrics: Metrics,
        *,
        default_deadline_ms: int,
        cold_start: ColdStart,
        explored: Callable[[Catalogue], NDArray[np.int64]] = lambda catalogue: _NO_ROWS,
    ) -> None:
        """`explored`: the rows for which exploration has ended."""
        self.view, self.engine, self.metrics = view, engine, metrics
        self._default_deadline_ms, self._cold_start = default_deadline_ms, cold_start
        voices = view.manifest.voices
        self._has_returns = voices is not None and voices.has_returns
        self._recall = Recall(view, store)
        self._filters = Filters()
        self._explored = explored

    async def stop(self) -> None:
        await self._recall.stop()

    async def recommend(self, request: Request) -> Recommendation:
        """Raises Overloaded, Draining and NoWords; every other failure becomes a fallback."""
        return self.finish(await self.begin(request))

    async def begin(self, request: Request) -> Progress:
        """All of `recommend` that waits for the store and the model. Raises as it does."""
        if request.query is not None and self.view.manifest.words is None:
            raise NoWords(NO_WORDS)
        deadline = self._deadline(request)
        with self.engine.admission.admitted(deadline):
            return await self._begin(request, deadline)

    async def _begin(self, request: Request, deadline: float) -> Progress:
        progress = Progress(request, time.perf_counter())
        if request.rules.exploration is not None:
            rules = without_idle(request.rules, request.k, progress.recommendation_id)
            progress.request = request = replace(request, rules=rules)
        try:
            async with asyncio.timeout(deadline - time.monotonic()), self.engine.admission.line.turn() as has_waited:
                if has_waited:
                    _lap(progress, "line")
                with span("memory"):
                    progress.context = context = await self._recall.of(request)
                    await self._prepare_filters(request)
                _lap(progress, "memory")
                if not request.is_popular and (request.query is not None or context.known.recent):
                    answer = await self._ask_model(progress, context, deadline)
                    at_model_s = _lap(progress, "queue")
                    progress.timings_s |= _timings_of(answer, at_model_s)
                if request.rules.diversity:
                    with span("rules"):
                        rows = [each.ranked.row for each in self._candidates(progress)]
                        progress.vectors = await self.engine.vectors(rows)
                    _lap(progress, "rules")
        except (TimeoutError, DeadlineExceeded):
            progress.failure = "deadline"
        except (ModelFailed, ModelUnavailable):
            progress.failure = "engine_error"
        except (Overloaded, Draining):
            raise
        except Exception:
            log.exception("the engine failed")
            progress.failure = "engine_error"
        return progress

    def finish(self, progress: Progress, page: Listed | None = None) -> Recommendation:
        """`page`: the items to show, if they were chosen together with those of other users (see `draft`)."""
        try:
            recommendation = self._answer(progress, self._pages(progress) if page is None else [page])
        except Exception:
            if progress.answer is None or page is not None:
                raise
            log.exception("the engine failed")  # its answer cannot be shown
            progress.answer, progress.failure = None, "engine_error"
            recommendation = self._answer(progress, self._pages(progress))
        total = time.perf_counter() - progress.started
        return self._timed(recommendation, {**progress.timings_s, "total": total})

    def draft(self, progress: Progress) -> Draft:
        """The candidates in the order of the rules, of which items can be taken."""
        candidates, vectors = self._candidates(progress), progress.vectors
        allowed = self._allowed(progress.request, self._context_of(progress))
        return Draft(
            candidates,
            progress.request.rules,
            self.view.catalogue,
            self._filters.mask,
            allowed=allowed,
            vectors=vectors if vectors is not None and len(vectors) == len(candidates) else None,
            little_known=fitting(progress, self.view.catalogue, partial(self._little_known, allowed=allowed)),
            name=progress.recommendation_id,
        )

    def _pages(self, progress: Progress) -> list[Listed]:
        if progress.request.rules is not NO_RULES and progress.request.rules.change_the_list:
            return self.draft(progress).pages(progress.request.k)
        ranked, reasons = self._listed(progress, progress.answer)
        return [Listed(ranked, reasons, [[] for _ in ranked], [False] * len(ranked))]

    def _candidates(self, progress: Progress) -> list[Candidate]:
        catalogue = self.view.catalogue
        found = candidates_of(catalogue, *self._listed(progress, progress.answer))
        if progress.promoted is None:
            return found
        return merged(found, candidates_of(catalogue, *self._listed(progress, progress.promoted)))

    def _listed(
        self, progress: Progress, answer: Answer | WordsAnswered | None
    ) -> tuple[list[Ranked], list[Reason | None]]:
        """What the model answered; without an answer, the cold start, or popular items where only these are wanted."""
        if isinstance(answer, Answer):
            return answer.items, list(answer.reasons) or [None] * len(answer.items)
        request = progress.request
        allowed = self._allowed(request, self._context_of(progress))
        catalogue, num_results = self.view.catalogue, _num_candidates(request)
        if answer is not None:
            ranked = ranked_items(answer, catalogue, allowed, num_results)
        elif request.is_popular:
            ranked = popular(catalogue, allowed, num_results)
        else:
            ranked = self._cold_start.items(catalogue, allowed, num_results, time.time())
        return ranked, [None] * len(ranked)

    def _context_of(self, progress: Progress) -> Context:
        if progress.context is None:
            progress.context = self._recall.without_store(progress.request)
        return progress.context

    def _deadline(self, request: Request) -> float:
        """The time by which the answer must be ready, on the clock of `time.monotonic()`; nothing else sets it."""
        seconds = (request.deadline_ms or self._default_deadline_ms) / 1000
        return time.monotonic() + seconds - min(_RESERVE_S, seconds / 10)

    async def _prepare_filters(self, request: Request) -> None:
        """Applies conditions that are new to this process in a thread, as a large catalogue takes long."""
        if request.filter is None and not request.rules.boosts:
            return
        catalogue = self.view.catalogue
        for condition in (request.filter, *(boost.condition for boost in request.rules.boosts)):
            if condition is not None and not self._filters.is_cheap(catalogue, condition):
                await asyncio.to_thread(self._filters.mask, catalogue, condition)

    def _little_known(self, exploration: Exploration, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        catalogue = self.view.catalogue
        return little_known(catalogue, exploration, allowed, int(time.time()), without=self._explored(catalogue))

    async def _ask_model(self, progress: Progress, context: Context, deadline: float) -> Answer | WordsAnswered:
        """The best items, those that boosts lift above others, and those that may be explored, which both may be far
        behind: one batch of the model.
        """
        request, exploration, catalogue = progress.request, progress.request.rules.exploration, self.view.catalogue
        allowed = self._allowed(request, context)
        num_results = _num_candidates(request)
        asked = {"answer": (allowed, num_results)}
        if request.rules.boosts:
            masks = [(boost.add, self._filters.mask(catalogue, boost.condition)) for boost in request.rules.boosts]
            asked["promoted"] = lifted(allowed, masks), num_results
        if exploration is not None:
            asked["little_known"] = self._little_known(exploration, allowed), MOST_EXPLORED
        asked = {name: each for name, each in asked.items() if name == "answer" or each[0].any()}
        found = await asyncio.gather(*(self._ask(request, context, *each, deadline) for each in asked.values()))
        for name, answer in zip(asked, found, strict=True):
            setattr(progress, name, answer)
        return found[0]

    async def _ask(
        self, request: Request, context: Context, allowed: NDArray[np.bool_], num_results: int, deadline: float
    ) -> Answer | WordsAnswered:
        """Encode, retrieve, combine, generate, ground: one job for the model, in a batch with others.

        A query in words is another kind of job.
        """
        known = context.known
        if request.query is None:
            return await self.engine.recommend(
                known.recent, known.memory.states, allowed, num_results, deadline=deadline, past=known.past
            )
        return await self.engine.answer_words(
            request.query,
            known.past,
            queries_of(known.past_events),
            allowed,
            reasoning=request.reasoning,
            num_results=num_results,
            deadline=deadline,
        )

    def _allowed(self, request: Request, context: Context) -> NDArray[np.bool_]:
        """(N,) what may be shown: available, among the candidates, matching the filter, not seen.

        Where users come back to items, seen items may be shown, but not those of the current basket: the evaluation
        leaves them out, too. Items that events of the user speak against are shown only to those who ask for them.
        """
        excludes_seen = not self._has_returns if request.exclude_seen is None else request.exclude_seen
        basket = _basket(context.known.past) if self._has_returns else _NO_ROWS
        against = context.against if request.exclude_seen is None else _NO_ROWS
        catalogue = self.view.catalogue
        allowed = catalogue.allowed(
            time.time(),
            candidates=request.candidates,
            among=None if request.filter is None else self._filters.mask(catalogue, request.filter),
            without=context.seen if excludes_seen else np.append(basket, against),
        )
        allowed[[catalogue.rows[item_id] for item_id in request.exclude if item_id in catalogue.rows]] = False
        return allowed

    def _answer(self, progress: Progress, pages: Sequence[Listed]) -> Recommendation:
        """The model's answer; without one, the cold start and the reason as `fallback`."""
        request, context, answer = progress.request, self._context_of(progress), progress.answer
        fallback, catalogue = progress.failure or context.fallback, self.view.catalogue
        reasoning: ShownReasoning | None = None
        explained = answer if request.explain and isinstance(answer, Answer) else None
        items, memory = show(
            catalogue, pages if request.explain else [silent(page) for page in pages], context.known, explained
        )
        if isinstance(answer, Answer):
            self._observe_model(answer, pages[0].reasons)
        elif answer is not None:
            fallback = fallback or degraded(request.reasoning, answer.level)
            self.metrics.queries_total.labels(answer.level).inc()
            if request.explain:
                memory, reasoning = show_reasoning(answer, context.known, catalogue)
        else:
            fallback = fallback or (None if request.is_popular else "cold_start")
        self._observe(pages[0].ranked, fallback)
        self.metrics.explored_total.inc(sum(pages[0].explored))
        return Recommendation(
            recommendation_id=progress.recommendation_id,
            user_id=request.user_id,
            items=items[0],
            memory=memory,
            fallback=fallback,
            model=ServedModel(self.view.manifest.name, self.view.manifest.space),
            timings_ms={},
            reasoning=reasoning,
            warnings=self._warnings(progress, {item.item_id for item in items[0]}),
            later=items[1:],
        )

    def _warnings(self, progress: Progress, shown: set[str]) -> list[Warned]:
        request, catalogue = progress.request, self.view.catalogue
        found = of_candidates(request.candidates, catalogue) if request.candidates else []
        if request.recent:
            found += of_recent([each.item_id for each in request.recent], catalogue)
        if request.filter is not None:
            found += of_filter(request.filter, catalogue)
        if request.rules is not NO_RULES:
            found += of_rules(request.rules, catalogue, request.user_id, shown)
        if request.rules.diversity and progress.vectors is None:
            found.append(NOT_DIVERSE)
        return found

    def _timed(self, recommendation: Recommendation, timings_s: Mapping[str, float]) -> Recommendation:
        for stage, seconds in timings_s.items():
            self.metrics.stage_seconds.labels(stage).observe(seconds)
            recommendation.timings_ms[stage] = round(1000 * seconds, 3)
        return recommendation

    def _observe_model(self, answer: Answer, reasons: Sequence[Reason | None]) -> None:
        self.metrics.memory_elements.observe(len(answer.chosen))
        for voice, count in Counter(reason.voice for reason in reasons if reason is not None).items():
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


def _lap(progress: Progress, stage: str) -> float:
    """The seconds since the start that no earlier stage took are those of `stage`."""
    seconds = time.perf_counter() - progress.started - sum(progress.timings_s.values())
    progress.timings_s[stage] = seconds
    return seconds


def _num_candidates(request: Request) -> int:
    """How many items the model is asked for."""
    rules = request.rules
    if rules is NO_RULES or not rules.need_candidates:
        return request.k
    return MOST if rules.is_paged or rules.is_distinct else max(LEAST, 4 * request.k)


def _basket(past: PastRows) -> NDArray[np.int64]:
    """Catalogue rows of the current basket: what the user had at the time of the request, or later."""
    in_basket = np.array(past.timestamps, dtype=np.int64) >= past.now
    basket: NDArray[np.int64] = np.array(past.rows, dtype=np.int64)[in_basket]
    return basket


def _timings_of(answer: Answer | WordsAnswered, at_model_s: float) -> dict[str, float]:
    """The stages of the model, and `queue`: the rest of the time in which the request was at the model."""
    return {"queue": max(0.0, at_model_s - sum(answer.timings_s.values())), **answer.timings_s}
