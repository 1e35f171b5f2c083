"""What the store hands out: an event, an event with its state, counts, a receipt; and the byte forms of
these.

Pure values: knows neither Redis nor HTTP. `decode_event` reads bytes that somebody else may have written, so
it answers None instead of raising.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from operator import itemgetter
from types import NoneType
from typing import Any, NamedTuple

from pydantic_core import from_json

from service.errors import BadRequest

DIGEST_BYTES = 8
_FIELDS = itemgetter("item_id", "timestamp", "type", "value")
_SCORE = re.compile(rb"-?(\d+(\.\d+)?(e[+-]?\d+)?|inf)")


class Event(NamedTuple):
    """`timestamp` is in seconds, |timestamp| < 2**53 (Redis orders by a double)."""

    event_id: str
    user_id: str
    item_id: str
    timestamp: int
    type: str = "view"
    value: float | None = None


class Remembered(NamedTuple):
    """`record` is the stored state in the asked space (see `model_store.memory.codec`), None while it is not yet
    encoded.
    """

    event: Event
    record: bytes | None


class Recalled(NamedTuple):
    """A user's newest events, oldest first. `log` names them and their order."""

    events: list[Remembered]
    log: bytes


class Saved(NamedTuple):
    """How many states were written, and the `log` of `Recalled` at that moment: if it is another, look again."""

    num_states: int
    log: bytes


class UserStates(NamedTuple):
    """States to be saved: event id -> record, and of how many of the user's newest events states are kept."""

    user_id: str
    records: Mapping[str, bytes]
    keep: int


@dataclass(frozen=True)
class UserCounts:
    events: int
    states: int


@dataclass(frozen=True)
class Receipt:
    """What a deletion removed; all zero when the user was unknown."""

    events: int
    states: int
    keys: int


def encode_text(text: str) -> bytes:
    """UTF-8 that also carries lone surrogates, which JSON bodies may contain."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(raw: bytes) -> str:
    """Never raises: bytes that are not ours become replacement characters."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace")


def encode_event(event: Event) -> bytes:
    fields = {
        "item_id": event.item_id,
        "timestamp": event.timestamp,
        "type": event.type,
        "value": event.value,
    }
    return encode_text(json.dumps(fields, ensure_ascii=False, separators=(",", ":")))


def item_digest(item_id: str) -> bytes:
    """Stands for an item id in `seen`: 64 bits, so that of a million items hardly two will ever be alike."""
    return hashlib.sha1(encode_text(item_id), usedforsecurity=False).digest()[:DIGEST_BYTES]


def decode_events(user_id: str, event_ids: Sequence[bytes], raw: Sequence[bytes | None]) -> list[Event | None]:
    """What `decode_event` gives of each, three times faster where all are events of ours: column by column."""
    try:
        item_ids, timestamps, kinds, values = zip(*[_FIELDS(from_json(body or b"")) for body in raw], strict=True)
        is_valid = _are(item_ids, str) and _are(timestamps, int) and _are(kinds, str)
        if not is_valid or not _are(values, NoneType, int, float):
            raise ValueError("some are not events of ours")
        identities = [event_id.decode("utf-8", "surrogatepass") for event_id in event_ids]
    except (ValueError, KeyError, TypeError):
        return [decode_event(user_id, *pair) for pair in zip(event_ids, raw, strict=True)]
    rows = zip(identities, repeat(user_id), item_ids, timestamps, kinds, values, strict=False)
    return list(map(partial(tuple.__new__, Event), rows))


def remembered(events: Sequence[Event | None], records: Sequence[bytes | None]) -> list[Remembered]:
    """Pairs, without those whose event could not be read."""
    pairs = map(partial(tuple.__new__, Remembered), zip(events, records, strict=True))
    return list(pairs) if all(events) else [pair for pair in pairs if pair.event is not None]


def _are(values: Sequence[object], *kinds: type) -> bool:
    """A bool is no int here, since it is none in JSON."""
    return set(map(type, values)) <= set(kinds)


def decode_event(user_id: str, event_id: bytes, raw: bytes | None) -> Event | None:
    """None when the bytes are not an event of ours."""
    try:
        fields = _parse(raw or b"")
        item_id, timestamp, kind, value = _FIELDS(fields)
        identity = event_id.decode("utf-8", "surrogatepass")
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_valid = isinstance(item_id, str) and isinstance(kind, str) and _is_number(timestamp, int)
    if not is_valid or not (value is None or _is_number(value, (int, float))):
        return None
    return Event(identity, user_id, item_id, timestamp, kind, value)


def _parse(raw: bytes) -> Any:
    try:
        return from_json(raw)  # several times faster than `json`, but it wants true UTF-8
    except ValueError:
        return json.loads(raw)


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def make_cursor(score: bytes, member: bytes) -> str:
    """A place in the order of events, as an opaque text."""
    return base64.urlsafe_b64encode(score + b":" + member).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[bytes, bytes]:
    """Score and member."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except ValueError:
        raw = b""
    score, _, member = raw.partition(b":")
    if not _SCORE.fullmatch(score):
        raise BadRequest("The cursor was not made by this service.")
    return score, member


def read_json(raw: bytes | None) -> dict[str, Any]:
    """Empty when the bytes are no JSON object."""
    try:
        found = json.loads(decode_text(raw or b"{}"))
    except (ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}
