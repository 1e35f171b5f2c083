"""The front of `POST /recommend`: lets the recommender answer, and remembers what was shown. Knows no HTTP."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from service.errors import StoreCorrupt, StoreUnavailable
from service.feedback.pages import Pages
from service.store.shown import ShownList
from service.usecases.ranking.draft import distinct_pages
from service.usecases.ranking.requests import Progress, Recommendation, Request
from service.usecases.recommend import Recommender
from service.usecases.shown import ShownLists
from service.usecases.warned import Warned

ONLY_VARIANT = "default"  # where no experiment runs
_NOT_PAGED = Warned("paged", "the store does not answer, so there are no further pages")


class Answers:
    """For one event loop."""

    def __init__(self, recommender: Recommender, shown: ShownLists, pages: Pages) -> None:
        self.recommender, self.shown, self.pages = recommender, shown, pages

    async def recommend(self, request: Request) -> Recommendation:
        """Raises as `Recommender.recommend` does."""
        answer = await self.recommender.recommend(await self._with_shown(request))
        self.shown.remember(shown_list(answer, ONLY_VARIANT))
        return await self._with_cursor(answer) if request.rules.is_paged else answer

    async def next_page(self, cursor: str) -> Recommendation:
        """Raises as `Pages.read` does."""
        page = await self.pages.read(cursor, self.recommender.view.catalogue)
        answer = replace(page.recommendation, next_cursor=page.next_cursor)
        shown = shown_list(answer, ONLY_VARIANT)
        self.shown.remember(shown._replace(item_ids=(*page.item_ids_before, *shown.item_ids)))
        return answer

    async def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        """One answer for each, in order. Requests of different users with the same `k` and rules.

        With `is_distinct` no item is in two of the answers. Raises as `Recommender.recommend` does, if one of them
        does.
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
            self.shown.remember(shown_list(answer, ONLY_VARIANT))
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


def shown_list(answer: Recommendation, variant: str) -> ShownList:
    items = tuple(item.item_id for item in answer.items)
    return ShownList(answer.recommendation_id, answer.user_id, items, variant, answer.model.bundle, int(time.time()))
