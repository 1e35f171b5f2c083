"""Lists whose later pages may be asked for: kept for a short time, in the slot of their user, deleted with the user.

A list is one field of a hash; the name of the field says when the list expires. The lists of an anonymous session have
a key of their own. Knows no client but `MemoryStore.run`.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.store.erasure.tombstones import Tombstones
from service.store.events import encode_text
from service.store.keys import anonymous_pages_key, user_keys, user_prefix
from service.store.lua.scripts import MAY_KEEP

MOST_LISTS = 20  # of a user; the oldest are dropped

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]

# KEYS: the hash, and of a user events and tombstone; ARGV: field, value, now, seconds to keep, most fields  ->
# nothing. A field is "<expires>:<id>".
_SAVE = (
    MAY_KEEP
    + """
if KEYS[2] and not may_keep(KEYS[3], KEYS[2], ARGV[3]) then return end
local fields = redis.call('HKEYS', KEYS[1])
local kept = {}
for _, field in ipairs(fields) do
  if tonumber(string.match(field, '^%d+') or '0') <= tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], field)
  else kept[#kept + 1] = field end
end
table.sort(kept, function(a, b) return tonumber(string.match(a, '^%d+')) < tonumber(string.match(b, '^%d+')) end)
for i = 1, #kept - tonumber(ARGV[5]) + 1 do redis.call('HDEL', KEYS[1], kept[i]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
"""
)


class PageStore:
    """`run` is `MemoryStore.run`; its errors come through."""

    def __init__(self, run: Run, tombstones: Tombstones, *, kept_s: int = 1800) -> None:
        self._run, self._tombstones, self.kept_s = run, tombstones, kept_s

    async def save(self, user_id: str | None, recommendation_id: str, body: bytes) -> int:
        """Returns when the list expires, Unix seconds. One round trip."""
        now = int(time.time())
        keys, field = [_key(user_id, recommendation_id)], _field(recommendation_id, now + self.kept_s)
        if user_id is not None:
            keys += user_keys(user_id)[0], await self._tombstones.key(user_id)
        await self._run([("EVAL", _SAVE, len(keys), *keys, field, body, now, self.kept_s, MOST_LISTS)])
        return now + self.kept_s

    async def get(self, user_id: str | None, recommendation_id: str, expires: int) -> bytes | None:
        """None if there is no such list, or its time is over."""
        if expires <= time.time():
            return None
        (body,) = await self._run([("HGET", _key(user_id, recommendation_id), _field(recommendation_id, expires))])
        found: bytes | None = body
        return found


def _key(user_id: str | None, recommendation_id: str) -> str:
    return anonymous_pages_key(recommendation_id) if user_id is None else user_prefix(user_id) + "pages"


def _field(recommendation_id: str, expires: int) -> bytes:
    return encode_text(f"{expires}:{recommendation_id}")
