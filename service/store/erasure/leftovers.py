"""What the store holds of a user outside of the user's own keys: places that many users share.

These are the live counts, the encode queue, the dead letters, and the users whose outcomes wait. Each step looks at a
bounded number of entries. Knows no client but `MemoryStore.run`.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from service.store.events import encode_text
from service.store.keys import DEAD, GROUP, QUEUE_KEYS, QUEUED, UNSETTLED, WAITING

_ENTRIES_PER_STEP = 500
_NEIGHBOURS = 128  # more than the entries in one node of a stream (100, see `stream-node-max-entries`)

# KEYS: stream, waiting, queued; ARGV: user, first entry, number, group, number of neighbours  ->  where to go on
# (empty: the end) and number of entries removed. A stream keeps the bytes of a deleted entry until all entries of its
# node are deleted. So the neighbours are deleted, too, and added again at the end.
_REMOVE_REQUESTS = """
local stream, user, group, near = KEYS[1], ARGV[1], ARGV[4], tonumber(ARGV[5])
local found = redis.call('XRANGE', stream, ARGV[2], '+', 'COUNT', ARGV[3])
local place, first, last = '', nil, nil
if #found == tonumber(ARGV[3]) then place = '(' .. found[#found][1] end
for _, entry in ipairs(found) do
  if entry[2][2] == user then first, last = first or entry[1], entry[1] end
end
if not first then return {place, 0} end
local before = redis.call('XREVRANGE', stream, first, '-', 'COUNT', near)
local after = redis.call('XRANGE', stream, last, '+', 'COUNT', near)
local removed, others = 0, {}
for _, entry in ipairs(redis.call('XRANGE', stream, before[#before][1], after[#after][1])) do
  redis.pcall('XACK', stream, group, entry[1])
  redis.call('XDEL', stream, entry[1])
  if entry[2][2] == user then removed = removed + 1 else others[#others + 1] = entry[2] end
end
for _, fields in ipairs(others) do
  local id = redis.call('XADD', stream, '*', unpack(fields))
  if fields[1] == 'user' then redis.call('HSET', KEYS[3], fields[2], id) end
end
return {'(' .. after[#after][1], removed}
"""

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


class Leftovers(NamedTuple):
    requests: int
    dead_letters: int


async def remove_leftovers(run: Run, user_id: str) -> Leftovers:
    """All but the live counts, which `MemoryStore.count` empties. Safe to repeat."""
    user = encode_text(user_id)
    queued, dead, _ = await run([("HGET", WAITING, user), ("HDEL", DEAD, user), ("ZREM", UNSETTLED, user)])
    removed, place = 0, b"-"
    while queued is not None and place:
        args = user, place, _ENTRIES_PER_STEP, GROUP, _NEIGHBOURS
        ((place, number),) = await run([("EVAL", _REMOVE_REQUESTS, len(QUEUE_KEYS), *QUEUE_KEYS, *args)])
        removed += number
    if queued is not None:
        await run([("HDEL", WAITING, user), ("HDEL", QUEUED, user)])
    return Leftovers(removed, dead)
