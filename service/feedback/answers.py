"""What `POST /recommend` does around an answer: a variant answers, the list is remembered, and a share of the
requests is answered by a second variant as well, for comparison only.

Knows no HTTP.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from service.ending import cancel_and_wait
from service.errors import ServiceError, StoreCorrupt, StoreUnavailable
from service.feedback.experiments import DEFAULT, Experiments, Shadow, Variant
from service.feedback.pages import Pages
from service.identity.principal import caller
from service.metrics import Metrics
from service.store.shown import ShownList
from service.usecases.ranking.draft import distinct_pages
from service.usecases.ranking.requests import Progress, Recommendation, Request
from service.usecases.ranking.rules import Exploration
from service.usecases.recommend import Recommender
from service.usecases.shown import ShownLists
from service.usecases.warned import Warned

_NOT_PAGED = Warned("paged", "the store does not answer, so there are no further pages")
_MOST_SHADOWS = 2  # at a time
_SHADOW_DEADLINE_MS = 2000


class Answers:
    """For one event loop. `recommender_of` gives the recommender of a loaded bundle by its name, or None."""

    def __init__(
        self,
        recommender: Recommender,
        shown: ShownLists,
        pages: Pages,
        *,
        experiments: Experiments,
        metrics: Metrics,
        recommender_of: Callable[[str], Recommender | None],
    ) -> None:
        self.recommender, self.shown, self.pages = recommender, shown, pages
        self.experiments, self.metrics = experiments, metrics
        self._recommender_of = recommender_of
        self._shadows: set[asyncio.Task[None]] = set()
        self._random = random.Random()

    async def recommend(self, request: Request) -> Recommendation:
        """Raises as `Recommender.recommend` does."""
        recommender, name, request = self._chosen(await self._with_shown(request))
        answer = replace(await recommender.recommend(request), variant=name)
        self.shown.remember(_shown_list(answer))
        self._compare(request, answer)
        return await self._with_cursor(answer) if request.rules.is_paged else answer

    async def next_page(self, cursor: str) -> Recommendation:
        """Raises as `Pages.read` does."""
        page = await self.pages.read(cursor, self.recommender.view.catalogue)
        answer = replace(page.recommendation, next_cursor=page.next_cursor)
        shown = _shown_list(answer)
        self.shown.remember(
            shown._replace(
                item_ids=(*page.item_ids_before, *shown.item_ids),
                explored=(*page.explored_before, *shown.explored),
            )
        )
        return answer

    async def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        """One answer for each, in order. Requests of different users with the same `k` and rules.

        They are answered as if no experiment ran. With `is_distinct` no item is in two of the answers. Raises as
        `Recommender.recommend` does, if one of them does.
        """
        begun = [asyncio.create_task(self._begin(request)) for request in requests]
        try:
            started = await asyncio.gather(*begun)
        finally:
            for task in begun:
                task.cancel()
        answers = self._distinct(started) if requests[0].rules.is_distinct else map(self.recommender.finish, started)
        found = list(answers)
        for answer in found:
            self.shown.remember(_shown_list(answer))
        return found

    def _distinct(self, started: Sequence[Progress]) -> list[Recommendation]:
        drafts = [self.recommender.draft(progress) for progress in started]
        pages = distinct_pages(drafts, started[0].request.k)
        return [self.recommender.finish(progress, page) for progress, page in zip(started, pages, strict=True)]

    async def _begin(self, request: Request) -> Progress:
        return await self.recommender.begin(await self._with_shown(request))

    async def _with_shown(self, request: Request) -> Request:
        """With what the user was shown lately, if the request rotates items."""
        rotation = request.rules.rotation
        if rotation is None or request.user_id is None:
            return request
        try:
            lists = await self.shown.recent(request.user_id)
        except (StoreUnavailable, StoreCorrupt):
            return request
        since = time.time() - rotation.time_s
        shown_at: dict[str, int] = {}
        for shown in lists:  # newest first
            if shown.time > since:
                shown_at = {**dict.fromkeys(shown.item_ids, shown.time), **shown_at}
        return replace(request, rules=replace(request.rules, shown_at=shown_at))

    async def _with_cursor(self, answer: Recommendation) -> Recommendation:
        try:
            return replace(answer, next_cursor=await self.pages.keep(answer))
        except (StoreUnavailable, StoreCorrupt):
            return replace(answer, warnings=[*answer.warnings, _NOT_PAGED])

    async def stop(self) -> None:
        await cancel_and_wait(*self._shadows)

    def _chosen(self, request: Request) -> tuple[Recommender, str, Request]:
        """Who answers, under which name, and what is asked. A variant whose bundle is not loaded here cannot answer."""
        experiment = self.experiments.current
        if experiment is None or request.user_id is None:
            return self.recommender, DEFAULT, request
        variant = experiment.variant_of(request.user_id)
        recommender = None if variant is None else self._of(variant)
        if variant is None or recommender is None:
            return self.recommender, DEFAULT, request
        return recommender, f"{experiment.name}/{variant.name}", _asked(request, variant)

    def _of(self, variant: Variant) -> Recommender | None:
        return self.recommender if variant.bundle is None else self._recommender_of(variant.bundle)

    def _compare(self, request: Request, answer: Recommendation) -> None:
        """Starts a shadow, unless two run already or a request waits for its model: it must not slow answers."""
        experiment = self.experiments.current
        shadow = experiment.shadow if experiment is not None else None
        if shadow is None or self._random.random() >= shadow.share:
            return
        recommender = self._of(shadow.variant)
        if recommender is None or len(self._shadows) >= _MOST_SHADOWS or recommender.engine.admission.expected_wait_s:
            self.metrics.shadows_total.labels("skipped").inc()
            return
        task = asyncio.create_task(self._shadow(recommender, request, shadow, answer), name="shadow")
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _shadow(self, recommender: Recommender, request: Request, shadow: Shadow, answer: Recommendation) -> None:
        asked = replace(_asked(request, shadow.variant), deadline_ms=_SHADOW_DEADLINE_MS)
        began = time.perf_counter()
        try:
            other = await recommender.recommend(asked)
        except ServiceError:
            self.metrics.shadows_total.labels("failed").inc()
            return
        self.metrics.shadow_seconds.observe(time.perf_counter() - began)
        self.metrics.shadow_overlap.observe(overlap(answer, other))
        self.metrics.shadows_total.labels("compared").inc()


def overlap(one: Recommendation, other: Recommendation) -> float:
    """Share of the items of the longer list that both lists have; 1 for two empty lists."""
    items = [{item.item_id for item in each.items} for each in (one, other)]
    return len(items[0] & items[1]) / max(1, *map(len, items)) if any(items) else 1.0


def _asked(request: Request, variant: Variant) -> Request:
    asked = replace(request, memory=variant.memory, is_popular=variant.arm == "popular", voices=variant.voices)
    if variant.exploration is None:
        return asked
    exploration = request.rules.exploration or Exploration(0.0)
    explores = exploration._replace(share=variant.exploration) if variant.exploration else None
    return replace(asked, rules=replace(request.rules, exploration=explores))


def _shown_list(answer: Recommendation) -> ShownList:
    items = tuple(item.item_id for item in answer.items)
    explored = tuple(item.item_id for item in answer.items if item.explored)
    return ShownList(
        answer.recommendation_id,
        answer.user_id,
        items,
        answer.variant or DEFAULT,
        answer.model.bundle,
        int(time.time()),
        tenant=caller.get().tenant if answer.user_id is None else "",
        explored=explored,
        num_explored=len(explored),
    )
