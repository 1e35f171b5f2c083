"""The commands that the store sends, and what their answers mean. Pure, but for a warning of unreadable events."""

from collections.abc import Iterable, Sequence
from typing import Any

import structlog

from service.store.events import (
    Event,
    Recalled,
    UserStates,
    decode_event,
    decode_events,
    decode_remembered,
    encode_event,
    encode_text,
    item_digest,
    order_member,
)
from service.store.keys import QUEUE_KEYS, user_keys
from service.store.lua import queue, scripts

log = structlog.get_logger("service.store.client")

Command = tuple[Any, ...]
Sorting = tuple[str, str]  # see `sorting.sorting_of`
NUM_AGAINST = 50  # newest events against items that a reader gets


def eval_command(script: str, keys: Sequence[str], *args: Any) -> Command:
    """The text is sent each time, 2 kB at most. The server caches compiled scripts, so EVALSHA is not faster, and it
    needs reloading when the server lost its scripts and is refused by the client's cluster pipelines.
    """
    return ("EVAL", script, len(keys), *keys, *args)


def append_command(events: Sequence[Event], sorting: Sorting, tombstone: str, *, with_request: bool) -> Command:
    """`events` are of one user, whose tombstone has that key. `with_request`: the user enters the encode queue, too."""
    user_id = events[0].user_id
    args: list[Any] = [*sorting, encode_text(user_id)]
    for event in events:
        args += append_arguments(event)
    queue_keys = QUEUE_KEYS if with_request else []
    return eval_command(scripts.APPEND, [*user_keys(user_id), tombstone, *queue_keys], *args)


def append_arguments(event: Event) -> tuple[Any, ...]:
    digest = item_digest(event.item_id)
    return encode_text(event.event_id), encode_event(event), event.timestamp, order_member(event), digest


def stored_arguments(user_id: str, event_id: str, body: bytes | None) -> tuple[bytes, bytes, bytes]:
    """Body, member and item digest of a stored event; the last two are empty where it cannot be read."""
    event = decode_event(user_id, encode_text(event_id), body)
    return (body or b"", b"", b"") if event is None else (body or b"", order_member(event), item_digest(event.item_id))


def recall_command(
    user_id: str, space: str, limit: int, sorting: Sorting, *, num_states: int | None = None, with_seen: bool = False
) -> Command:
    most = limit if num_states is None else num_states
    args = *sorting, max(limit, 0), max(most, 0), int(with_seen), NUM_AGAINST
    return eval_command(scripts.RECALL, user_keys(user_id, space), *args)


def decode_recalled(user_id: str, answer: Sequence[Any]) -> Recalled:
    """`answer` of RECALL has the newest event first."""
    ids, bodies, records, log_digest, seen, *against = answer
    records += [None] * (len(ids) - len(records))  # older events, of which no state was asked for
    events = decode_remembered(user_id, ids[::-1], bodies[::-1], records[::-1])
    warn_of_unreadable(len(ids) - len(events), len(ids))
    not_wanted = [event for event in decode_events(user_id, *against) if event is not None]
    return Recalled(events, log_digest, seen or b"", not_wanted)


def warn_of_unreadable(num_unreadable: int, num_events: int) -> None:
    if num_unreadable:
        log.warning("skipped stored events that are not readable", skipped=num_unreadable, events=num_events)


def save_states_command(states: UserStates, space: str, limit: int) -> Command:
    keep = max(states.keep, 1)
    args: list[Any] = [keep, space, max(limit, keep)]
    for event_id, record in states.records.items():
        args += (encode_text(event_id), record)
    return eval_command(scripts.SAVE_STATES, user_keys(states.user_id, space), *args)


def encoding_command(user_ids: Iterable[str], *, only_with_events: bool = False) -> Command:
    """`only_with_events`: not for users who were deleted meanwhile; the keys are in different slots then."""
    users = list(user_ids)
    events = [user_keys(user_id)[0] for user_id in users] if only_with_events else []
    return eval_command(queue.REQUEST_ENCODING, [*QUEUE_KEYS, *events], *map(encode_text, users))
