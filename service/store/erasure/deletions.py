"""Deletions that are not finished, and receipts of those that are.

A deletion has three parts: a mark that it began, the deletion of the user's keys in one script, and what is left in
shared places. Whoever works on a deletion moves the time of its mark forward. Whoever takes a mark whose time has come
goes on with the deletion, so a kill at any moment loses none.
On a cluster a mark stays for a while after the deletion: another process may be about to write to a shared place,
which is in another slot, and is looked at again. A receipt says when and how much, not who. Knows no client but
`MemoryStore.run`.
"""

import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from service.errors import BadRequest
from service.store.events import Deleted, decode_text, encode_text
from service.store.keys import ERASING, FILES_PREFIX, RECEIPTS

MAX_RECEIPTS = 10_000
_GO_ON_AFTER_S = 10  # then the process that worked on a deletion was killed, or the store was unavailable
RENEW_EVERY_S = 2.0
SETTLE_AFTER_S = 60  # on a cluster: until nobody writes what they read before the deletion
_BEGUN, _SETTLING = "b", "s"
_FIELDS = Deleted._fields

# KEYS: users, receipts, time of the first deletion that may be in the files; ARGV: member to remove, member to add (or
# ''), its time, most receipts, time of the deletion, (field, value)* of the receipt  ->  nothing
_FINISH = """
redis.call('ZREM', KEYS[1], ARGV[1])
if ARGV[2] ~= '' then redis.call('ZADD', KEYS[1], ARGV[3], ARGV[2]) end
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[4], '*', unpack(ARGV, 6))
redis.call('SET', KEYS[3], ARGV[5], 'NX')
"""

# KEYS: users; ARGV: member, now, its next time  ->  1 if its time had come
_TAKE = """
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due or tonumber(due) > tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
"""

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


class Receipt(NamedTuple):
    """`receipt_id` is random: it names the deletion, not the user. `place`: among all receipts, "" for a new one."""

    receipt_id: str
    deleted: Deleted
    place: str = ""

    def is_before(self, place: str | None) -> bool:
        """Whether it is the receipt at this place or an older one."""
        return place is not None and _order(self.place) <= _order(place)


class Unfinished(NamedTuple):
    """`is_begun`: the user's keys may still be there. Otherwise only shared places are looked at again."""

    user_id: str
    is_begun: bool


class DeletionStore:
    """`run` is `MemoryStore.run`; `write` is `MemoryStore.write`, as durable as a deletion. Errors come through."""

    def __init__(self, run: Run, write: Run, *, is_cluster: bool) -> None:
        self._run, self._write, self._is_cluster = run, write, is_cluster

    async def begin(self, user_id: str) -> None:
        await self._run([("ZADD", ERASING, int(time.time()) + _GO_ON_AFTER_S, _member(_BEGUN, user_id))])

    async def renew(self, user_id: str) -> None:
        """For whoever works on it, every `RENEW_EVERY_S`: nobody else goes on with it meanwhile."""
        later = int(time.time()) + _GO_ON_AFTER_S
        await self._run([("ZADD", ERASING, "XX", later, _member(_BEGUN, user_id))])

    async def finish(self, user_id: str, deleted: Deleted) -> Receipt:
        """The user's keys and shared places are clean; the files of the store are not yet.

        Raises NotDurable: the receipt is on another node than the user was, and must be confirmed as well.
        """
        receipt = Receipt(secrets.token_hex(16), deleted)
        settling = _member(_SETTLING, user_id) if self._is_cluster else b""
        facts = {"receipt_id": receipt.receipt_id, **deleted._asdict()}
        args = _member(_BEGUN, user_id), settling, int(time.time()) + SETTLE_AFTER_S, MAX_RECEIPTS, deleted.at
        flat = [part for pair in facts.items() for part in pair]
        await self._write([("EVAL", _FINISH, 3, ERASING, RECEIPTS, f"{FILES_PREFIX}unwritten", *args, *flat)])
        return receipt

    async def settled(self, user_id: str) -> None:
        await self._run([("ZREM", ERASING, _member(_SETTLING, user_id))])

    async def due(self, limit: int) -> list[Unfinished]:
        """Those whose time has come, the longest waiting first."""
        (found,) = await self._run([("ZRANGEBYSCORE", ERASING, "-inf", int(time.time()), "LIMIT", 0, limit)])
        parts = (decode_text(member).partition(":") for member in found)
        return [Unfinished(user_id, stage == _BEGUN) for stage, _, user_id in parts]

    async def take(self, found: Unfinished) -> bool:
        """Whether this process is to go on with it: of several that ask, one is."""
        now, member = int(time.time()), _member(_BEGUN if found.is_begun else _SETTLING, found.user_id)
        return bool((await self._run([("EVAL", _TAKE, 1, ERASING, member, now, now + _GO_ON_AFTER_S)]))[0])

    async def count(self) -> int:
        """Deletions that are not finished."""
        return int((await self._run([("ZCARD", ERASING)]))[0])

    async def receipts(self, cursor: str | None, limit: int) -> tuple[list[Receipt], str | None]:
        """A page, newest first, and the cursor of the next one. Raises `BadRequest` for a foreign cursor."""
        if cursor is not None and not re.fullmatch(r"\d{1,19}-\d{1,19}", cursor):
            raise BadRequest("The cursor was not made by this service.")
        start = "+" if cursor is None else f"({cursor}"
        (found,) = await self._run([("XREVRANGE", RECEIPTS, start, "-", "COUNT", limit)])
        next_cursor = decode_text(found[-1][0]) if len(found) == limit else None
        return [_receipt(decode_text(place), fields) for place, fields in found], next_cursor


def _member(stage: str, user_id: str) -> bytes:
    return encode_text(f"{stage}:{user_id}")


def _order(place: str) -> tuple[int, int]:
    at, _, number = place.partition("-")
    return int(at), int(number)


def _receipt(place: str, raw: Any) -> Receipt:
    """Takes the fields as the client gives them: a mapping, or a flat list."""
    pairs = raw.items() if isinstance(raw, dict) else zip(raw[::2], raw[1::2], strict=True)
    fields = {decode_text(name): decode_text(value) for name, value in pairs}
    numbers = {name: int(text) for name in _FIELDS if (text := fields.get(name, "")).isdecimal()}
    return Receipt(fields.get("receipt_id", ""), Deleted(**({"events": 0, "states": 0, "keys": 0} | numbers)), place)
