"""How often exploration showed each item, and for which items it has ended: they were shown often enough.

Two sorted sets: the counts, and the items that have ended, by when. An item gets its place in the second one once, when
a list shows it for the last time or later, and is never taken out. So a server reads only what is new. Each number of
`AUTOMR_EXPLORED_TIMES` has its own second set. Knows no client but `MemoryStore.run`.
"""

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from service.store.events import decode_text, encode_text
from service.store.keys import EXPLORED_ITEMS
from service.store.requests import Command, eval_command

AT_ONCE = 1000  # items in one step

# A later item has a higher place, also after a failover that lost the last ones.
_END = """
local function ended(items)
  local now, last = redis.call('TIME'), redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
  local place = math.max(now[1] * 1000000 + now[2], tonumber(last or 0) + 1)
  for i, item in ipairs(items) do
    redis.call('ZADD', KEYS[2], 'NX', string.format('%.0f', place + i), item)
  end
end
"""

# KEYS: counts, ended; ARGV: times after which exploration ends (0: never), (item, number of lists)*  ->  nothing
_SHOWN = (
    _END
    + """
local most, found = tonumber(ARGV[1]), {}
for i = 2, #ARGV, 2 do
  local times = tonumber(redis.call('ZADD', KEYS[1], 'INCR', ARGV[i + 1], ARGV[i]))
  if most > 0 and times >= most then found[#found + 1] = ARGV[i] end
end
ended(found)
"""
)

# KEYS: as above; ARGV: times, place among the items that were shown so often, count  ->  number of items there
_FILL = (
    _END
    + """
local found = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], '+inf', 'LIMIT', ARGV[2], ARGV[3])
ended(found)
return #found
"""
)

# KEYS: as above; ARGV: place, count  ->  (item, place)* of the items that ended after it, the first ones first
_ENDED = "return redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])"

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


def shown_command(shown: Mapping[str, int], most: int) -> Command:
    """Counts in how many lists exploration showed each item. It ends after `most` of them; 0: never."""
    flat = [part for item_id, number in shown.items() for part in (encode_text(item_id), number)]
    return eval_command(_SHOWN, _keys(most), most, *flat)


class ExploredStore:
    """`run` is `MemoryStore.run`; its errors come through. `most`: times that exploration shows an item."""

    def __init__(self, run: Run, *, most: int) -> None:
        self._run, self.most = run, most

    async def fill(self) -> None:
        """Finds items that ended without a place: those of an earlier release, and after a change of `most`.

        One that is missed because the counts change meanwhile gets its place when it is shown once more.
        """
        for start in itertools.count(0, AT_ONCE):
            (found,) = await self._run([eval_command(_FILL, _keys(self.most), self.most, start, AT_ONCE)])
            if found < AT_ONCE:
                return

    async def ended(self, after: int) -> tuple[list[str], int]:
        """At most `AT_ONCE` items that have ended, the first ones after this place, and the place of the last one."""
        (found,) = await self._run([eval_command(_ENDED, _keys(self.most), after, AT_ONCE)])
        return [decode_text(item_id) for item_id in found[::2]], int(found[-1]) if found else after


def _keys(most: int) -> list[str]:
    return [EXPLORED_ITEMS, f"{EXPLORED_ITEMS}:{most}"]
