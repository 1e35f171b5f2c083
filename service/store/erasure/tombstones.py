"""Tombstones: that a user was deleted, and when, kept for some days without the user's id.

The name of a tombstone has a keyed hash of the id. The key is a random secret in the store, so the hash cannot be
compared with that of another store. A tombstone is in the hash slot of its user: the script that stores events reads it
in the same step. The store removes it when its time is over. Knows no client.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.store.events import encode_text
from service.store.keys import SECRET, gone_key, slot_tags

_SECRET_BYTES = 32
_MOST_BYTES = 64  # of a key of BLAKE2b

# KEYS: secret; ARGV: that of this process  ->  that of all. Replaces one of a wrong type, which another program wrote.
_AGREE = """
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])
"""

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


class Tombstones:
    """`run` is `MemoryStore.run`; its errors come through. `kept_s`: seconds; 0: deletions leave no tombstone."""

    def __init__(self, run: Run, *, kept_s: int = 0) -> None:
        self._run, self.kept_s = run, kept_s
        self._secret = b""

    async def load(self) -> None:
        """Reads the secret of the store; makes it if there is none. All processes use the one that was first."""
        await asyncio.to_thread(slot_tags)  # takes a moment once
        own = self._secret or secrets.token_bytes(_SECRET_BYTES)
        self._secret = (await self._run([("EVAL", _AGREE, 1, SECRET, own)]))[0]

    async def key(self, user_id: str) -> str:
        """Where the tombstone of this user is, whether there is one or not."""
        if not self._secret:
            await self.load()
        return gone_key(
            user_id, hashlib.blake2b(encode_text(user_id), key=self._secret[:_MOST_BYTES], digest_size=16).hexdigest()
        )

    async def lift(self, user_id: str) -> bool:
        """From now on events of any time are stored again. False if the user has no tombstone."""
        return bool((await self._run([("DEL", await self.key(user_id))]))[0])
