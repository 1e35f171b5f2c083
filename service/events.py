"""What the store hands out: an event, an event with its state, counts, a receipt; and the byte forms of
these.

Pure values: knows neither Redis nor HTTP. `decode_event` reads bytes that somebody else may have written, so
it answers None instead of raising.
"""

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

from service.errors import BadRequest

_SCORE = re.compile(rb"-?(\d+(\.\d+)?(e[+-]?\d+)?|inf)")


@dataclass(frozen=True)
class Event:
    """`timestamp` is in seconds, |timestamp| < 2**53 (Redis orders by a double)."""

    event_id: str
    user_id: str
    item_id: str
    timestamp: int
    type: str = "view"
    value: float | None = None


@dataclass(frozen=True)
class Remembered:
    """`record` is the stored state in the asked space (see `model_store.codec`), None while it is not yet
    encoded.
    """

    event: Event
    record: bytes | None


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


def decode_event(user_id: str, event_id: bytes, raw: bytes | None) -> Event | None:
    """None when the bytes are not an event of ours."""
    try:
        fields = json.loads(raw or b"")
        item_id, timestamp, kind, value = fields["item_id"], fields["timestamp"], fields["type"], fields["value"]
        identity = event_id.decode("utf-8", "surrogatepass")
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_valid = isinstance(item_id, str) and isinstance(kind, str) and _is_number(timestamp, int)
    if not is_valid or not (value is None or _is_number(value, (int, float))):
        return None
    return Event(identity, user_id, item_id, timestamp, kind, value)


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
