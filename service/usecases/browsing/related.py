"""Which items go together with an item: by what users did, and where that says too little, by the words of titles."""

import time
from typing import Literal, NamedTuple

from model_store.view import BundleView
from service.engine.engine import Engine
from service.usecases.items import Items

By = Literal["behaviour", "words"]
Source = Literal["near", "follow", "together", "words"]


class RelatedItem(NamedTuple):
    """`source`: what says that it is related. `score`: by behaviour. `distance`: L2 distance of titles, by words."""

    item_id: str
    title: str
    source: Source
    score: float | None
    distance: float | None


class RelatedItems:
    def __init__(self, view: BundleView, engine: Engine, items: Items) -> None:
        self.view, self.engine, self.items = view, engine, items

    async def of(self, item_id: str, k: int, by: By) -> list[RelatedItem]:
        """Up to `k` available items, best first. Raises UnknownItem and Overloaded.

        With `behaviour`, items that are related by words follow where behaviour knows too few.
        """
        await self.items.get(item_id)
        catalogue = self.view.catalogue
        row, allowed = catalogue.rows[item_id], catalogue.available(time.time())
        allowed[row] = False
        found: list[tuple[int, Source, float | None, float | None]] = []
        if by == "behaviour":
            together = await self.engine.related(row, k, allowed)
            found = [(other, table, round(score, 4), None) for other, score, table in together]
            allowed[[other for other, *_ in found]] = False
        if len(found) < k:
            similar = await self.engine.similar(row, k - len(found), allowed)
            found += [(other, "words", None, round(distance, 4)) for other, distance in similar]
        items = catalogue.items.at(other for other, *_ in found)
        return [
            RelatedItem(item.item_id, item.title, source, score, distance)
            for item, (_, source, score, distance) in zip(items, found, strict=True)
        ]
