"""The pages of a list after the first: kept when the list is made, so that pages neither repeat nor lose an item.

In: a recommendation with later pages. Out: a cursor, and for a cursor the page behind it. What was ranked stays as it
was; titles are those of today, and an item that may not be shown any more is left out. Knows no HTTP.
"""

import base64
import json
import time
import zlib
from typing import Any, NamedTuple

import structlog

from model_store.catalogue.catalogue import Catalogue
from service.errors import BadRequest, CursorExpired
from service.identity.tenants import is_own, of_tenant
from service.store.events import decode_text, encode_text
from service.store.pages import PageStore
from service.usecases.explain import ShownItem, ShownReason
from service.usecases.ranking.moves import Move
from service.usecases.ranking.requests import Recommendation, ServedModel
from service.usecases.warned import Warned

log = structlog.get_logger("service.feedback.pages")

_FOREIGN = "The cursor was not made by this service."
_EXPIRED = "The list of this cursor is not kept any more; ask for a new one."


class Place(NamedTuple):
    """What a cursor says: `page` counts from 0, and page 0 is the answer that brought the first cursor."""

    user_id: str | None
    recommendation_id: str
    page: int
    expires: int


class Page(NamedTuple):
    """`item_ids_before` and `explored_before`: of the pages before it."""

    recommendation: Recommendation
    next_cursor: str | None
    item_ids_before: list[str]
    explored_before: list[str]


class Pages:
    def __init__(self, store: PageStore) -> None:
        self.store = store

    async def keep(self, answer: Recommendation) -> str | None:
        """The cursor of the second page; None if there is none. Raises StoreUnavailable or StoreCorrupt."""
        if not answer.later:
            return None
        body = {
            "model": answer.model,
            "pages": [[_stored(item) for item in page] for page in (answer.items, *answer.later)],
        }
        packed = zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 1)
        name = of_tenant(answer.recommendation_id) if answer.user_id is None else answer.recommendation_id
        expires = await self.store.save(answer.user_id, name, packed)
        return write_cursor(Place(answer.user_id, answer.recommendation_id, 1, expires))

    async def read(self, cursor: str, catalogue: Catalogue) -> Page:
        """Raises BadRequest for a text that is no cursor, CursorExpired, StoreUnavailable or StoreCorrupt."""
        started = time.perf_counter()
        place = read_cursor(cursor)
        if place.user_id is not None and not is_own(place.user_id):
            raise BadRequest(_FOREIGN)
        name = of_tenant(place.recommendation_id) if place.user_id is None else place.recommendation_id
        packed = await self.store.get(place.user_id, name, place.expires)
        if packed is None:
            raise CursorExpired(_EXPIRED)
        try:
            return self._page(place, packed, catalogue, started)
        except (zlib.error, ValueError, TypeError, KeyError, IndexError):  # another program wrote it
            log.warning("a stored list of later pages cannot be read")
            raise CursorExpired(_EXPIRED) from None

    def _page(self, place: Place, packed: bytes, catalogue: Catalogue, started: float) -> Page:
        body = json.loads(zlib.decompress(packed))
        pages: list[list[list[Any]]] = body["pages"]
        if not 0 < place.page < len(pages):
            raise BadRequest(_FOREIGN)
        is_available = catalogue.available(time.time())
        page, before = pages[place.page], [_shown(fields, "") for each in pages[: place.page] for fields in each]
        kept = [fields for fields in page if (row := catalogue.rows.get(fields[1])) is not None and is_available[row]]
        titles = catalogue.titles([fields[1] for fields in kept])
        gone = len(page) - len(kept)
        message = f"{gone} of this page may not be shown any more and are left out"
        recommendation = Recommendation(
            recommendation_id=place.recommendation_id,
            user_id=place.user_id,
            items=[_shown(fields, title) for fields, title in zip(kept, titles, strict=True)],
            memory=[],
            fallback=None,
            model=ServedModel(*body["model"]),
            timings_ms={"total": round(1000 * (time.perf_counter() - started), 3)},
            warnings=[Warned("items", message)] if gone else [],
        )
        is_last = place.page + 1 == len(pages)
        return Page(
            recommendation,
            None if is_last else write_cursor(place._replace(page=place.page + 1)),
            [item.item_id for item in before],
            [item.item_id for item in before if item.explored],
        )


def write_cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(encode_text(json.dumps(place, separators=(",", ":")))).decode().rstrip("=")


def read_cursor(cursor: str) -> Place:
    """Raises BadRequest for a text that `write_cursor` did not make."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        user_id, recommendation_id, page, expires = json.loads(decode_text(raw))
    except (ValueError, TypeError, RecursionError):
        raise BadRequest(_FOREIGN) from None
    is_ours = isinstance(user_id, str | None) and user_id != "" and isinstance(recommendation_id, str)
    if not is_ours or type(page) is not int or type(expires) is not int:
        raise BadRequest(_FOREIGN)
    return Place(user_id, recommendation_id, page, expires)


def _stored(item: ShownItem) -> list[Any]:
    """Without the title, which the catalogue has."""
    return [
        item.rank,
        item.item_id,
        item.score,
        item.source,
        item.distance,
        item.reason,
        list(item.moves),
        item.explored,
    ]


def _shown(fields: list[Any], title: str) -> ShownItem:
    rank, item_id, score, source, distance, reason, moves, *explored = fields  # an earlier release did not keep it
    because = None if reason is None else ShownReason(*reason)
    return ShownItem(
        rank, item_id, title, score, source, distance, because, [Move(*move) for move in moves], any(explored)
    )
