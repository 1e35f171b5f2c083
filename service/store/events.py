"""The values that the store takes and gives, and their byte forms in Redis.

Knows neither Redis nor HTTP. The stored bytes may come from another program, so decoding never raises: what is not an
event of ours decodes to None.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import repeat
from math import isfinite
from operator import itemgetter
from types import NoneType
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic_core import from_json

from model_store.event_types import UNTYPED
from model_store.text.history import tie_key
from service.errors import BadRequest

DIGEST_BYTES = 8
SEEN = np.dtype([("digest", "<u8"), ("until", "<u4")])  # an entry of `Recalled.seen`
SEEN_FOR_EVER = 2**32 - 1
_LARGEST_TIME = 2**53  # Redis orders by a double
_FIELDS = itemgetter("item_id", "timestamp", "type", "value")
_OPTIONAL = ("query", "session_id", "context", "recommendation_id")
_SCORE = re.compile(rb"-?(\d+(\.\d+)?(e[+-]?\d+)?|inf)")


class Event(NamedTuple):
    """One interaction. `timestamp` is in seconds, at most 2**53 in size, because Redis orders by a double.

    `query`: what the user wrote before they chose the item; None where they wrote nothing. `session_id` and `context`
    (text, numbers, booleans by name) are the caller's; they are kept and given back, and nothing else reads them.
    `recommendation_id`: of the answer that the user acted on (see `feedback/outcomes.py`).
    """

    event_id: str
    user_id: str
    item_id: str
    timestamp: int
    type: str = UNTYPED
    value: float | None = None
    query: str | None = None
    session_id: str | None = None
    context: Mapping[str, Any] | None = None
    recommendation_id: str | None = None


# What `append` did with an event: stored it; found it stored already; found another event with its id, and kept that;
# refused it, because its user was deleted and it is not newer than the deletion.
Appended = Literal["accepted", "duplicate", "conflict", "deleted"]
# What `replace` did: the event is new; it took the place of another one; it was stored already; refused it, as above.
Replaced = Literal["created", "replaced", "unchanged", "deleted"]


class Remembered(NamedTuple):
    """An event and its state record in one space (see `model_store.memory.codec`); None when there is no record."""

    event: Event
    record: bytes | None


class Recalled(NamedTuple):
    """The newest events of one user that are interest, oldest first.

    `log_digest` changes when these events, their order or what they mean do. `seen`: see `sorting.py`; empty unless it
    was asked for. `against`: the newest events with a negative weight, newest first.
    """

    events: list[Remembered]
    log_digest: bytes
    seen: bytes
    against: Sequence[Event] = ()


NOTHING_RECALLED = Recalled([], b"", b"")


class UserStates(NamedTuple):
    """State records of one user to save: event id -> record. Records of the newest `keep` events are kept."""

    user_id: str
    records: Mapping[str, bytes]
    keep: int


class Saved(NamedTuple):
    """Result of saving one `UserStates`: number of records written, and `Recalled.log_digest` at that moment.

    If the digest has changed since the events were read, the records may be of outdated windows.
    """

    num_states: int
    log_digest: bytes


class UserCounts(NamedTuple):
    """Numbers of stored events and of state records in one space."""

    events: int
    states: int


class Deleted(NamedTuple):
    """What a deletion removed, as numbers; all zero for an unknown user.

    `lists`: lists that the user was shown; `pages`: lists with further pages; `outcomes`: events that were not counted
    yet; `live_counts`: counts of items and pairs that the user was part of; `requests`: entries of the encode queue.
    `at`: Unix seconds by the clock of the store. `shredded`: 1 if the user's data key was destroyed (see `sealing/`).
    """

    events: int
    states: int
    keys: int
    lists: int = 0
    pages: int = 0
    outcomes: int = 0
    live_counts: int = 0
    requests: int = 0
    dead_letters: int = 0
    at: int = 0
    shredded: int = 0


# ---- text


def encode_text(text: str) -> bytes:
    """UTF-8 that also allows lone surrogates, which JSON bodies may contain."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(raw: bytes) -> str:
    """Inverse of `encode_text`. Never raises: invalid bytes become replacement characters."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace")


def read_json(raw: bytes | None) -> dict[str, Any]:
    """The JSON object in `raw`; empty when there is none."""
    try:
        found = json.loads(decode_text(raw or b"{}"))
    except (ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}


# ---- events


def encode_event(event: Event) -> bytes:
    """JSON without the event id and the user id, which are field and key; the last four fields only where given.

    Equal events have equal bytes.
    """
    fields: dict[str, Any] = {
        "item_id": event.item_id,
        "timestamp": event.timestamp,
        "type": event.type,
        "value": event.value,
    }
    if event.query is not None:
        fields["query"] = event.query
    if event.session_id is not None:
        fields["session_id"] = event.session_id
    if event.context:
        fields["context"] = dict(sorted(event.context.items()))
    if event.recommendation_id is not None:
        fields["recommendation_id"] = event.recommendation_id
    return encode_text(json.dumps(fields, ensure_ascii=False, separators=(",", ":")))


def order_member(event: Event) -> bytes:
    """Member of the `order` set: among equal timestamps Redis orders by these bytes."""
    return encode_text(f"{tie_key(event.user_id, event.item_id)}:{event.event_id}")


def item_digest(item_id: str) -> bytes:
    """64 bits of SHA-1 that represent an item id in `seen`. Among a million items a collision is very unlikely."""
    return hashlib.sha1(encode_text(item_id), usedforsecurity=False).digest()[:DIGEST_BYTES]


def decode_remembered(
    user_id: str, event_ids: Sequence[bytes], bodies: Sequence[bytes | None], records: Sequence[bytes | None]
) -> list[Remembered]:
    """Events with their records, in the given order, without unreadable events."""
    events = decode_events(user_id, event_ids, bodies)
    pairs = map(partial(tuple.__new__, Remembered), zip(events, records, strict=True))
    return list(pairs) if all(events) else [pair for pair in pairs if pair.event is not None]


def decode_events(user_id: str, event_ids: Sequence[bytes], bodies: Sequence[bytes | None]) -> list[Event | None]:
    """`decode_event` of each. Decodes column by column, which is three times faster, if every event is well formed."""
    try:
        stored = [from_json(body or b"") for body in bodies]
        item_ids, timestamps, kinds, values = zip(*map(_FIELDS, stored), strict=True)
        queries, sessions, contexts, recommendations = ([each.get(name) for each in stored] for name in _OPTIONAL)
        contexts = list(map(_context, contexts)) if any(contexts) else [None] * len(contexts)
        is_valid = _are(item_ids, str) and _are(timestamps, int) and _are(kinds, str)
        is_valid = is_valid and -_LARGEST_TIME <= min(timestamps) <= max(timestamps) <= _LARGEST_TIME
        is_valid = is_valid and _are(values, NoneType, int, float) and _are(queries, NoneType, str)
        is_valid = is_valid and _are([*sessions, *recommendations], NoneType, str)
        if not is_valid or not all(map(isfinite, filter(None, values))):
            raise ValueError("at least one event is not well formed")
        identities = [event_id.decode("utf-8", "surrogatepass") for event_id in event_ids]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return [decode_event(user_id, *pair) for pair in zip(event_ids, bodies, strict=True)]
    rows = zip(
        identities, repeat(user_id), item_ids, timestamps, kinds, values, queries, sessions, contexts, recommendations
    )
    return list(map(partial(tuple.__new__, Event), rows))


def decode_event(user_id: str, event_id: bytes, body: bytes | None) -> Event | None:
    """None when `body` is not an event of ours.

    A `value` that JSON cannot express (NaN, Infinity), a `query`, `session_id` or `recommendation_id` that is no text
    and a `context` that is no object of plain values become None.
    """
    try:
        stored = _parse(body or b"")
        item_id, timestamp, kind, value = _FIELDS(stored)
        query, session_id, context, shown = (stored.get(name) for name in _OPTIONAL)
        identity = event_id.decode("utf-8", "surrogatepass")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    is_valid = isinstance(item_id, str) and isinstance(kind, str) and _is_number(timestamp, int)
    is_valid = is_valid and abs(timestamp) <= _LARGEST_TIME
    if not is_valid or not (value is None or _is_number(value, (int, float))):
        return None
    asked, session_id, shown = (each if isinstance(each, str) else None for each in (query, session_id, shown))
    return Event(
        identity, user_id, item_id, timestamp, kind, _finite(value), asked, session_id, _context(context), shown
    )


def is_same_event(stored: bytes, event: Event) -> bool:
    """Whether the stored body tells the same as `event`, which has the same id. False where it cannot be read.

    Earlier versions stored an event without a type as a view.
    """
    found = decode_event(event.user_id, encode_text(event.event_id), stored)
    if found is not None and found.type == "view" and event.type == UNTYPED:
        found = found._replace(type=UNTYPED)
    return found is not None and encode_event(found) == encode_event(event)


def _parse(raw: bytes) -> Any:
    try:
        return from_json(raw)  # several times faster than `json`, but it refuses lone surrogates
    except ValueError:
        return json.loads(raw)


def _are(values: Sequence[object], *kinds: type) -> bool:
    """Compares exact types, because JSON's true is not a number but Python's True is an int."""
    return set(map(type, values)) <= set(kinds)


def _context(value: object) -> dict[str, Any] | None:
    """None for everything but an object of text, finite numbers and booleans."""
    if not isinstance(value, dict) or not value:
        return None
    is_plain = (isinstance(each, str | bool) or _is_finite(each) for each in value.values())
    return value if all(is_plain) else None


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and _finite(value) is not None


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _finite(value: float | None) -> float | None:
    """None for NaN, infinities and integers beyond the range of a double."""
    try:
        return value if value is not None and isfinite(value) else None
    except OverflowError:
        return None


# ---- cursors


def make_cursor(score: bytes, member: bytes) -> str:
    """Opaque text for a position in the `order` set."""
    return base64.urlsafe_b64encode(score + b":" + member).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[bytes, bytes]:
    """Score and member. Raises `BadRequest` for a text that `make_cursor` did not make."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except ValueError:
        raw = b""
    score, _, member = raw.partition(b":")
    if not _SCORE.fullmatch(score):
        raise BadRequest("The cursor was not made by this service.")
    return score, member
