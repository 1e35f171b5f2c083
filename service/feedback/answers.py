"""The front of `POST /recommend`: lets the recommender answer, and remembers what was shown. Knows no HTTP."""

import time

from service.store.shown import ShownList
from service.usecases.recommend import Recommendation, Recommender, Request
from service.usecases.shown import ShownLists

ONLY_VARIANT = "default"  # where no experiment runs


class Answers:
    """For one event loop."""

    def __init__(self, recommender: Recommender, shown: ShownLists) -> None:
        self.recommender, self.shown = recommender, shown

    async def recommend(self, request: Request) -> Recommendation:
        """Raises as `Recommender.recommend` does."""
        answer = await self.recommender.recommend(request)
        self.shown.remember(shown_list(answer, ONLY_VARIANT))
        return answer


def shown_list(answer: Recommendation, variant: str) -> ShownList:
    items = tuple(item.item_id for item in answer.items)
    return ShownList(answer.recommendation_id, answer.user_id, items, variant, answer.model.bundle, int(time.time()))
