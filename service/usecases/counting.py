"""What the events of one user add to the live counts: a function of the event log alone.

So the order in which events arrive does not matter, and a deleted event adds nothing any more. A user counts once for
each item and day, and once for each pair of items and day, by the newest `NUM_COUNTED` events: nobody can own the
counts by sending more than others. Knows neither Redis nor torch.
"""

from collections.abc import Callable, Sequence

from service.store.counts import cell, day_of, record
from service.store.events import Event, item_digest

NUM_COUNTED = 100  # newest events of a user
SPAN = 10  # events: a pair is counted if its events are at most so far apart


def record_of(events: Sequence[Event], is_new: Callable[[str], bool]) -> bytes:
    """The record of a user with these events, oldest first.

    Each event counts its item on its day. A pair of items counts on the day of its later event, if at least one of
    both `is_new`: the tables of the bundle know nothing of it.
    """
    newest = events[-NUM_COUNTED:]
    days = [day_of(event.timestamp) for event in newest]
    digests = [item_digest(event.item_id) for event in newest]
    new = [is_new(event.item_id) for event in newest]
    cells = [cell(day, digest, digest) for day, digest in zip(days, digests, strict=True)]
    for later in range(len(newest)):
        for earlier in range(max(0, later - SPAN), later):
            if (new[earlier] or new[later]) and digests[earlier] != digests[later]:
                cells.append(cell(days[later], digests[earlier], digests[later]))
    return record(cells)
