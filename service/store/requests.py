"""The commands that the store sends, and what their answers mean. Pure, but for a warning of unreadable events."""

from collections.abc import Iterable, Sequence
from typing import Any

import structlog

from service.store import scripts
from service.store.events import (
    Event,
    Recalled,
    UserStates,
    decode_remembered,
    encode_event,
    encode_text,
    item_digest,
    order_member,
)
from service.store.keys import ENCODE, WAITING, user_keys

log = structlog.get_logger("service.store.client")

Command = tuple[Any, ...]


def eval_command(script: str, keys: Sequence[str], *args: Any) -> Command:
    """The text is sent each time, 2 kB at most. The server caches compiled scripts, so EVALSHA is not faster, and it
    needs reloading when the server lost its scripts and is refused by the client's cluster pipelines.
    """
    return ("EVAL", script, len(keys), *keys, *args)


def append_command(events: Sequence[Event]) -> Command:
    """`events` are of one user."""
    args: list[Any] = []
    for event in events:
        args += append_arguments(event)
    return eval_command(scripts.APPEND, user_keys(events[0].user_id), *args)


def append_arguments(event: Event) -> tuple[Any, ...]:
    digest = item_digest(event.item_id)
    return encode_text(event.event_id), encode_event(event), event.timestamp, order_member(event), digest


def recall_command(
    user_id: str, space: str, limit: int, *, num_states: int | None = None, with_seen: bool = False
) -> Command:
    most = limit if num_states is None else num_states
    return eval_command(scripts.RECALL, user_keys(user_id, space), max(limit, 0), max(most, 0), int(with_seen))


def decode_recalled(user_id: str, answer: Sequence[Any]) -> Recalled:
    """`answer` of RECALL has the newest event first."""
    ids, bodies, records, log_digest, seen = answer
    records += [None] * (len(ids) - len(records))  # older events, of which no state was asked for
    events = decode_remembered(user_id, ids[::-1], bodies[::-1], records[::-1])
    warn_of_unreadable(len(ids) - len(events), len(ids))
    return Recalled(events, log_digest, seen or b"")


def warn_of_unreadable(num_unreadable: int, num_events: int) -> None:
    if num_unreadable:
        log.warning("skipped stored events that are not readable", skipped=num_unreadable, events=num_events)


def save_states_command(states: UserStates, space: str, limit: int) -> Command:
    keep = max(states.keep, 1)
    args: list[Any] = [keep, space, max(limit, keep)]
    for event_id, record in states.records.items():
        args += (encode_text(event_id), record)
    return eval_command(scripts.SAVE_STATES, user_keys(states.user_id, space), *args)


def encoding_command(user_ids: Iterable[str]) -> Command:
    return eval_command(scripts.REQUEST_ENCODING, [ENCODE, WAITING], *map(encode_text, user_ids))
