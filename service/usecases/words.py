"""Queries in words: what the model is told of a user, and what an answer shows of local memory and reasoning.

Local memory is a function of the event log, computed anew for each answer; nothing of it is stored. Knows neither HTTP
nor torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.answers import FOUND, PastRows, Ranked, popular
from model_store.catalogue.catalogue import Catalogue
from model_store.view import BundleView
from model_store.words.memory import MemoryLimits
from service.engine.messages import MemoryEntry, WordsAnswered, WordsLevel
from service.store.events import Event, Remembered
from service.usecases.explain import UsedMemory
from service.usecases.timeline import Known, SessionItem, empty_memory, merged

Reasoning = Literal["off", "retrieve", "full"]
Degraded = Literal["no_second_round", "no_reasoning", "lexical_only"]
NUM_EVENTS = MemoryLimits().events  # newest events of a user that local memory is made of
NO_WORDS = "The served bundle cannot answer queries in words: it was made from data without queries."
_MOST_LISTED = 20  # events
_DEGRADED: dict[WordsLevel, Degraded] = {
    "retrieve": "no_second_round",
    "off": "no_reasoning",
    "lexical": "lexical_only",
}


@dataclass(frozen=True)
class ShownEntry:
    """An entry of local memory. `event_ids`: its newest events that the store has, newest first."""

    id: str
    level: str
    scenario: str
    text: str
    event_ids: list[str]
    count: int
    first: int
    last: int


class ShownAspect(NamedTuple):
    """What matters to people who ask so; `entries`: ids of the entries of local memory that it fetched."""

    name: str
    scenario: str
    description: str
    num_users: int
    entries: list[str]


class ShownReasoning(NamedTuple):
    """`fetched`: entries of local memory. `used`: ids of those that count in the ranking."""

    level: WordsLevel
    aspects: list[ShownAspect]
    fetched: list[ShownEntry]
    used: list[str]
    profile: str | None


def known_in_words(
    remembered: Sequence[Remembered], view: BundleView, now: int, session: Sequence[SessionItem] = ()
) -> Known:
    """The events as the past, without window and states. Events of unknown items are left out."""
    rows = view.catalogue.rows
    stored = [each.event for each in remembered if each.event.item_id in rows]
    times, events = merged(stored, [item for item in session if item.item_id in rows], now)
    times, events = times[-NUM_EVENTS:], events[-NUM_EVENTS:]
    past = PastRows([rows[event.item_id] for event in events], times, now)
    return Known([], empty_memory(view), past, events, is_incomplete=False)


def queries_of(events: Sequence[Event | SessionItem]) -> list[str]:
    """What the user wrote for each event; "" for nothing."""
    return [(event.query or "") if isinstance(event, Event) else "" for event in events]


def degraded(asked: Reasoning, reached: WordsLevel) -> Degraded | None:
    """What is missing when an answer went less far than it was asked to."""
    return None if asked == reached else _DEGRADED[reached]


def ranked_items(
    answer: WordsAnswered, catalogue: Catalogue, allowed: NDArray[np.bool_], num_results: int
) -> list[Ranked]:
    """What was found; if that is too little, popular items until the list is full."""
    ranked = [Ranked(row, FOUND, score, None) for row, score in zip(answer.rows, answer.scores, strict=True)]
    if len(ranked) < num_results:
        others = allowed.copy()
        others[answer.rows] = False
        ranked += popular(catalogue, others, num_results - len(ranked))
    return ranked


def show_reasoning(
    answer: WordsAnswered, known: Known, catalogue: Catalogue
) -> tuple[list[UsedMemory], ShownReasoning]:
    """The stored events behind the entries that were used, and the reasoning."""
    by_id = {entry.id: entry for entry in answer.fetched}
    places = dict.fromkeys(place for entry_id in answer.used for place in by_id[entry_id].events)
    stored = [event for place in places if isinstance(event := known.past_events[place], Event)][:_MOST_LISTED]
    titles = catalogue.titles([event.item_id for event in stored])
    memory = [
        UsedMemory(event.event_id, event.item_id, title, event.timestamp, None, None)
        for event, title in zip(stored, titles, strict=True)
    ]
    reasoning = ShownReasoning(
        level=answer.level,
        aspects=[ShownAspect(a.name, a.scenario, a.description, a.num_users, a.entries) for a in answer.aspects],
        fetched=show_entries(answer.fetched, known),
        used=answer.used,
        profile=answer.profile,
    )
    return memory, reasoning


def show_entries(entries: Sequence[MemoryEntry], known: Known) -> list[ShownEntry]:
    return [
        ShownEntry(
            id=entry.id,
            level=entry.level,
            scenario=entry.scenario,
            text=entry.text,
            event_ids=[e.event_id for place in entry.events if isinstance(e := known.past_events[place], Event)],
            count=entry.count,
            first=entry.t_first,
            last=entry.t_last,
        )
        for entry in entries
    ]
