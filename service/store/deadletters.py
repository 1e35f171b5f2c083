"""Users who cannot be encoded: what is kept of each until an operator has looked.

A worker tries a user several times, then writes a dead letter and goes on with others. A dead letter holds the time and
the kind of the error, nothing of the user's events. Replaying it asks for the encoding of the user again.
`MemoryStore.forget_user` deletes the dead letter, too. Knows no client but `MemoryStore.run`.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from service.store.events import decode_text, encode_text, read_json
from service.store.keys import DEAD, user_keys

MAX_LETTERS = 10_000
_MAX_REASON = 200  # characters
_NOT_READABLE = "the dead letter is not readable"

# KEYS: dead letters, and, unless it is a cluster, events; ARGV: user, body, most  ->  1, or 0 if it is full of other
# users. Nothing is written for a user without events, who was deleted meanwhile.
_ADD = """
if KEYS[2] and redis.call('EXISTS', KEYS[2]) == 0 then return 1 end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


class DeadLetter(NamedTuple):
    """`time`: Unix seconds of the last failure."""

    user_id: str
    reason: str
    time: int


class DeadLetters:
    """`run` is `MemoryStore.run`; its errors come through."""

    def __init__(self, run: Run, *, is_cluster: bool) -> None:
        self._run, self._is_cluster = run, is_cluster

    async def add(self, letter: DeadLetter) -> bool:
        """Replaces an earlier one of the user. False, and nothing is written, if there are `MAX_LETTERS` of others."""
        body = json.dumps({"reason": letter.reason[:_MAX_REASON], "time": letter.time})
        keys = [DEAD] if self._is_cluster else [DEAD, user_keys(letter.user_id)[0]]
        command = ("EVAL", _ADD, len(keys), *keys, encode_text(letter.user_id), body, MAX_LETTERS)
        return bool((await self._run([command]))[0])

    async def all(self) -> list[DeadLetter]:
        """The oldest first."""
        (found,) = await self._run([("HGETALL", DEAD)])
        return sorted((_decode(user, body) for user, body in found.items()), key=lambda each: each.time)

    async def count(self) -> int:
        return int((await self._run([("HLEN", DEAD)]))[0])

    async def remove(self, user_ids: Sequence[str]) -> int:
        """Returns how many there were."""
        if not user_ids:
            return 0
        return int((await self._run([("HDEL", DEAD, *map(encode_text, user_ids))]))[0])


def _decode(user: bytes, body: bytes) -> DeadLetter:
    facts = read_json(body)
    reason, at = facts.get("reason"), facts.get("time")
    return DeadLetter(decode_text(user), str(reason or _NOT_READABLE), at if isinstance(at, int) else 0)
