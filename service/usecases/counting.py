"""What the events of one user add to the live counts: a function of the event log alone.

So the order in which events arrive does not matter, and a deleted event adds nothing any more. A user counts once for
each item and day, and once for each pair of items and day, by the newest `NUM_COUNTED` events: nobody can own the
counts by sending more than others. An event counts its weight in the table of event types, a pair the geometric mean of
the weights of its events, as in training; of several the largest. Knows neither Redis nor torch.
"""

import math
from collections.abc import Callable, Sequence

from model_store.event_types import EventTypes
from service.store.counts import cell, day_of, record
from service.store.events import Event, item_digest

NUM_COUNTED = 100  # newest events of a user
SPAN = 10  # events: a pair is counted if its events are at most so far apart


def record_of(events: Sequence[Event], is_new: Callable[[str], bool], types: EventTypes) -> bytes:
    """The record of a user with these events, oldest first.

    An event counts its item on its day if its type counts for popularity. A pair of items counts on the day of its
    later event, if the types of both events count for neighbours and at least one of the items `is_new`: the tables of
    the bundle know nothing of it. A negative weight counts nothing.
    """
    newest = events[-NUM_COUNTED:]
    rules = [types.rule(event.type, event.value) for event in newest]
    weights = [max(rule.weight, 0.0) for rule in rules]
    days = [day_of(event.timestamp) for event in newest]
    digests = [item_digest(event.item_id) for event in newest]
    new = [is_new(event.item_id) for event in newest]
    found: dict[bytes, float] = {}

    def count(day: int, first: bytes, second: bytes, weight: float) -> None:
        name = cell(day, first, second)
        if name is not None:
            found[name] = max(found.get(name, 0.0), weight)

    for day, digest, weight, rule in zip(days, digests, weights, rules, strict=True):
        if rule.popularity:
            count(day, digest, digest, weight)
    near = [place for place, rule in enumerate(rules) if rule.neighbors]
    for place, later in enumerate(near):
        for earlier in near[max(0, place - SPAN) : place]:
            if (new[earlier] or new[later]) and digests[earlier] != digests[later]:
                count(days[later], digests[earlier], digests[later], math.sqrt(weights[earlier] * weights[later]))
    return record(found)
