"""Records as they are stored: plain, or sealed with the data key of their user. The only place where both meet.

A sealed event is JSON, because the scripts of the store sort events:

    {"sealed": "<base64>", "item": "<item_digest, hex>", "type": "rating", "value": 4.5}

`sealed` is the whole event under AES-256-GCM. `value` is no value of the event: it is one that the same rule of the
table of event types holds, and is left out where no rule asks for a value. A sealed state is "Zs", a version, and the
record. The nonce is a keyed hash of what is sealed and where it belongs, so equal events of a user have equal bytes, as
plain ones do, and two different texts never share a nonce. What belongs to another user, event or place does not open.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from model_store.event_types import EventTypes, TypeRule
from service.store.events import Event, encode_event, encode_text, item_digest
from service.store.sealing.master import NONCE_BYTES

Bodies = Sequence[bytes | None]
_EVENT_START, _STATE_START = b'{"sealed":"', b"Zs\x01"
_FIELD_HEX = 20  # see FIELD in `lua/scripts.py`


class Records(Protocol):
    """Writes and reads records of one user. `wrapped`: the user's data key as it is stored, empty for plain records.

    `is_new`: the key is not stored yet. Reading gives None for what does not open.
    """

    wrapped: bytes
    is_new: bool

    def body(self, event: Event, types: EventTypes) -> bytes: ...

    def state(self, event_id: str, record: bytes) -> bytes: ...

    def open_bodies(self, event_ids: Sequence[bytes], bodies: Bodies) -> Bodies: ...

    def open_states(self, event_ids: Sequence[bytes], records: Bodies) -> Bodies: ...


class Plain:
    wrapped, is_new = b"", False

    def body(self, event: Event, types: EventTypes) -> bytes:
        return encode_event(event)

    def state(self, event_id: str, record: bytes) -> bytes:
        return record

    def open_bodies(self, event_ids: Sequence[bytes], bodies: Bodies) -> Bodies:
        return bodies

    def open_states(self, event_ids: Sequence[bytes], records: Bodies) -> Bodies:
        return records


class Sealed:
    """Reads plain records, too: those of before the encryption."""

    def __init__(self, user_id: str, data_key: bytes, wrapped: bytes, *, is_new: bool = False) -> None:
        self.wrapped, self.is_new = wrapped, is_new
        self._user = encode_text(user_id)
        self._cipher = AESGCM(hmac.digest(data_key, b"records", hashlib.sha256))
        self._nonce_key = hmac.digest(data_key, b"nonces", hashlib.sha256)

    def body(self, event: Event, types: EventTypes) -> bytes:
        sealed = self._seal(encode_event(event), self._place(b"event", encode_text(event.event_id)))
        head = {"item": item_digest(event.item_id).hex(), "type": event.type}
        if (value := label(event, types)) is not None:
            head |= {"value": value}  # type: ignore[dict-item]
        text = encode_text(json.dumps(head, ensure_ascii=False, separators=(",", ":")))
        return _EVENT_START + base64.b64encode(sealed) + b'",' + text[1:]

    def state(self, event_id: str, record: bytes) -> bytes:
        return self.state_of(field_of(encode_text(event_id)), record)

    def state_of(self, field: bytes, record: bytes) -> bytes:
        """`field`: the name of the event in the hash of states."""
        return _STATE_START + self._seal(record, self._place(b"state", field))

    def open_bodies(self, event_ids: Sequence[bytes], bodies: Bodies) -> Bodies:
        pairs = zip(event_ids, bodies, strict=True)
        return [self._open_body(event_id, body) if is_sealed(body) else body for event_id, body in pairs]

    def open_states(self, event_ids: Sequence[bytes], records: Bodies) -> Bodies:
        pairs = zip(event_ids, records, strict=True)
        return [
            self._open(record[len(_STATE_START) :], self._place(b"state", field_of(event_id)))
            if record is not None and record.startswith(_STATE_START)
            else record
            for event_id, record in pairs
        ]

    def _open_body(self, event_id: bytes, body: bytes | None) -> bytes | None:
        start = len(_EVENT_START)
        try:
            sealed = base64.b64decode((body or b"")[start : (body or b"").index(b'"', start)], validate=True)
        except (ValueError, binascii.Error):
            return None
        return self._open(sealed, self._place(b"event", event_id))

    def _place(self, kind: bytes, name: bytes) -> bytes:
        return kind + len(self._user).to_bytes(4, "big") + self._user + name

    def _seal(self, text: bytes, place: bytes) -> bytes:
        nonce = hmac.digest(self._nonce_key, len(place).to_bytes(4, "big") + place + text, hashlib.sha256)[:NONCE_BYTES]
        return nonce + self._cipher.encrypt(nonce, text, place)

    def _open(self, sealed: bytes, place: bytes) -> bytes | None:
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            return None


PLAIN = Plain()


def is_sealed(body: bytes | None) -> bool:
    return body is not None and body.startswith(_EVENT_START)


def is_sealed_state(record: bytes) -> bool:
    return record.startswith(_STATE_START)


def field_of(event_id: bytes) -> bytes:
    return hashlib.sha1(event_id, usedforsecurity=False).hexdigest()[:_FIELD_HEX].encode()


def label(event: Event, types: EventTypes) -> float | None:
    """A value for which the rule of the event's type is the same as for its own. None where none asks for a value."""
    rule = types.types.get(event.type, types.other)
    if event.value is None or not rule.by_value:
        return None
    own = rule.of(event.value)
    return next((value for value in _candidates(rule) if rule.of(value) is own), None)


def _candidates(rule: TypeRule) -> list[float]:
    """One value of each range between the limits of the rule, the limits among them."""
    limits = sorted({float(end) for each in rule.by_value for end in (each.at_least, each.at_most) if end is not None})
    between = [(low + high) / 2 for low, high in pairwise(limits)]
    return [*limits, *between, limits[0] - 1, limits[-1] + 1]
