"""What an answer shows: its items, why each of them is there, and which older events count in it. Knows no HTTP."""

from collections.abc import Sequence
from typing import NamedTuple

from model_store.answers import Answer, Ranked, Reason, Source
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from service.store.events import Event
from service.usecases.ranking.draft import Listed
from service.usecases.ranking.moves import Move
from service.usecases.timeline import Known

_LEAST_SHARE = 0.01  # of an event that is listed because it voted
_MOST_LISTED = 20


class ShownReason(NamedTuple):
    """The voice that gives an item most, its share of what all voices give, and the item and event behind it.

    `item_id` is None where no event is behind the voice, `event_id` also where the event is an item of the session.
    """

    voice: str
    share: float
    item_id: str | None
    event_id: str | None


class ShownItem(NamedTuple):
    """`score`: log-probability of the title, None unless generated. `distance`: see `model_store.answers.Ranked`.

    `moves`: what the rules of the request did to its place. `explored`: exploration put it there.
    """

    rank: int
    item_id: str
    title: str
    score: float | None
    source: Source
    distance: float | None
    reason: ShownReason | None = None
    moves: list[Move] = []  # noqa: RUF012 - nobody changes it
    explored: bool = False


class UsedMemory(NamedTuple):
    """An older event that counts in the answer: its state reached the top half of the model, or it voted for items.

    `weight`: the retriever's probability, None if the state was not used. `share`: the event's part in the mixture of
    all voices, None where the bundle has no voices.
    """

    event_id: str
    item_id: str
    title: str
    timestamp: int
    weight: float | None
    share: float | None


def show(
    catalogue: Catalogue, pages: Sequence[Listed], known: Known, answer: Answer | None
) -> tuple[list[list[ShownItem]], list[UsedMemory]]:
    """The items of each page, ranked through, and the older events that count. `answer` None: without reasons."""
    shown: list[list[ShownItem]] = []
    rank = 1
    for page in pages:
        reasons = [None if answer is None else _shown(reason, known) for reason in page.reasons]
        items = catalogue.items.at([found.row for found in page.ranked])
        columns = zip(items, page.ranked, reasons, page.moves, page.explored, strict=True)
        shown.append(
            [
                _item(rank + place, item, found, reason)._replace(moves=moves, explored=explored)
                for place, (item, found, reason, moves, explored) in enumerate(columns)
            ]
        )
        rank += len(items)
    return shown, [] if answer is None else _memory(catalogue, known, answer)


def _item(rank: int, item: Item, found: Ranked, reason: ShownReason | None) -> ShownItem:
    score, distance = _rounded(found.score), _rounded(found.distance)
    return ShownItem(rank, item.item_id, item.title, score, found.source, distance, reason)


def _memory(catalogue: Catalogue, known: Known, answer: Answer) -> list[UsedMemory]:
    used = _used(known, answer)
    if not used:
        return []
    titles = catalogue.titles([event.item_id for event, _, _ in used])
    return [
        UsedMemory(event.event_id, event.item_id, title, event.timestamp, _rounded(weight), _rounded(share))
        for (event, weight, share), title in zip(used, titles, strict=True)
    ]


def _shown(reason: Reason | None, known: Known) -> ShownReason | None:
    if reason is None:
        return None
    event = None if reason.event is None else known.past_events[reason.event]
    return ShownReason(
        voice=reason.voice,
        share=reason.share,
        item_id=event.item_id if event else None,
        event_id=event.event_id if isinstance(event, Event) else None,
    )


def _used(known: Known, answer: Answer) -> list[tuple[Event, float | None, float | None]]:
    """Events with weight and share, the one with the largest of its two numbers first."""
    weights = {known.memory.events[index]: float(answer.weights[index]) for index in answer.chosen}
    shares = _older_shares(known, answer, least=0.0 if weights else _LEAST_SHARE)
    voted = [event for event, share in shares.items() if share >= _LEAST_SHARE and event not in weights]
    without = 0.0 if known.past_events else None
    found = [(event, weights.get(event), shares.get(event, without)) for event in [*weights, *voted]]
    found.sort(key=lambda each: max(each[1] or 0.0, each[2] or 0.0), reverse=True)
    return found[:_MOST_LISTED]


def _older_shares(known: Known, answer: Answer, *, least: float) -> dict[Event, float]:
    """The stored events before the window whose part in the mixture is at least `least`, and their parts."""
    num_older = max(0, len(known.past_events) - len(known.recent))
    pairs = zip(known.past_events[:num_older], answer.event_shares[:num_older].tolist(), strict=True)
    return {event: share for event, share in pairs if share >= least and isinstance(event, Event)}


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)
