"""The commands that the store sends, and what their answers mean. Pure, but for a warning of unreadable events."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from model_store.event_types import EventTypes
from service.store.events import (
    Appended,
    Event,
    Recalled,
    UserStates,
    decode_events,
    decode_remembered,
    encode_text,
    is_same_event,
    item_digest,
    order_member,
)
from service.store.keys import QUEUE_KEYS, user_keys
from service.store.lua import queue, scripts
from service.store.sealing.records import Records
from service.store.sealing.sealing import Sealing

log = structlog.get_logger("service.store.client")

Command = tuple[Any, ...]
Sorting = tuple[str, str]  # see `sorting.sorting_of`
NUM_AGAINST = 50  # newest events against items that a reader gets
SEEN_BYTES = 120_000  # of `seen` in one answer


class SeenFrom(NamedTuple):
    """What a caller knows of `seen`: the name of its state, how many bytes, and the last of them."""

    name: bytes
    size: int
    end: bytes


NOTHING_SEEN = SeenFrom(b"", 0, b"")


def eval_command(script: str, keys: Sequence[str], *args: Any) -> Command:
    """The connection sends the text only where the server does not know it (see `servers/texts.py`)."""
    return ("EVAL", script, len(keys), *keys, *args)


def append_command(
    sorting: Sorting,
    tombstone: str,
    records: Records,
    events: Sequence[Event],
    *,
    types: EventTypes,
    with_request: bool,
) -> Command:
    """`events` are of one user, whose tombstone has that key, and whose records are `records`.

    `with_request`: the user enters the encode queue, too.
    """
    user_id = events[0].user_id
    args: list[Any] = [*sorting, encode_text(user_id), records.wrapped, int(records.is_new)]
    for event in events:
        args += append_arguments(event, records.body(event, types))
    queue_keys = QUEUE_KEYS if with_request else []
    return eval_command(scripts.APPEND, [*user_keys(user_id), tombstone, *queue_keys], *args)


def appended_of(
    events: Sequence[Event],
    by_user: Mapping[str, Sequence[int]],
    answers: Sequence[Sequence[int | bytes]],
    records: Mapping[str, Records],
) -> dict[int, Appended]:
    """What became of events, by place; `answers` of APPEND for each user. Without those of users with another key."""
    return {
        place: _appended(found, events[place], records[user_id])
        for (user_id, places), answer in zip(by_user.items(), answers, strict=True)
        for place, found in zip(places, answer, strict=False)  # no answer where the user has another key
    }


def _appended(found: int | bytes, event: Event, records: Records) -> Appended:
    if isinstance(found, bytes):  # stored under its id
        (body,) = records.open_bodies([encode_text(event.event_id)], [found])
        return "duplicate" if is_same_event(body or b"", event) else "conflict"
    names: dict[int, Appended] = {1: "accepted", 0: "duplicate", -1: "deleted"}
    return names[found]


def append_arguments(event: Event, body: bytes) -> tuple[Any, ...]:
    return encode_text(event.event_id), body, event.timestamp, order_member(event), item_digest(event.item_id)


def stored_arguments(event: Event | None, body: bytes | None) -> tuple[bytes, bytes, bytes]:
    """Body, member and item digest of a stored event; the last two are empty where it cannot be read."""
    return (body or b"", b"", b"") if event is None else (body or b"", order_member(event), item_digest(event.item_id))


def recall_command(
    user_id: str,
    space: str,
    limit: int,
    sorting: Sorting,
    *,
    num_states: int | None = None,
    with_seen: bool = False,
    seen_from: SeenFrom = NOTHING_SEEN,
) -> Command:
    most = limit if num_states is None else num_states
    args = *sorting, max(limit, 0), max(most, 0), int(with_seen), NUM_AGAINST, *seen_from, SEEN_BYTES
    return eval_command(scripts.RECALL, user_keys(user_id, space), *args)


def decode_recalled(user_id: str, answer: Sequence[Any], sealing: Sealing) -> Recalled:
    """`answer` of RECALL has the newest event first; its part of `seen` is the whole. Raises RecordsSealed."""
    ids, bodies, records, log_digest, seen, against_ids, against, wrapped = answer
    own = sealing.of(user_id, wrapped)
    bodies, against = own.open_bodies(ids, bodies), own.open_bodies(against_ids, against)
    records = list(own.open_states(ids[: len(records)], records))
    records += [None] * (len(ids) - len(records))  # older events, of which no state was asked for
    events = decode_remembered(user_id, ids[::-1], bodies[::-1], records[::-1])
    warn_of_unreadable(len(ids) - len(events), len(ids))
    not_wanted = [event for event in decode_events(user_id, against_ids, against) if event is not None]
    return Recalled(events, log_digest, seen[0] or b"" if seen else b"", not_wanted)


def warn_of_unreadable(num_unreadable: int, num_events: int) -> None:
    if num_unreadable:
        log.warning("skipped stored events that are not readable", skipped=num_unreadable, events=num_events)


def save_states_command(states: UserStates, space: str, limit: int, records: Records) -> Command:
    keep = max(states.keep, 1)
    args: list[Any] = [keep, space, max(limit, keep), records.wrapped]
    for event_id, record in states.records.items():
        args += (encode_text(event_id), records.state(event_id, record))
    return eval_command(scripts.SAVE_STATES, user_keys(states.user_id, space), *args)


def encoding_command(user_ids: Iterable[str], *, only_with_events: bool = False) -> Command:
    """`only_with_events`: not for users who were deleted meanwhile; the keys are in different slots then."""
    users = list(user_ids)
    events = [user_keys(user_id)[0] for user_id in users] if only_with_events else []
    return eval_command(queue.REQUEST_ENCODING, [*QUEUE_KEYS, *events], *map(encode_text, users))
