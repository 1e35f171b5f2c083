"""Moves all events of one user to another, in steps that can be repeated after a kill at any moment.

A step copies some events to the other user, then takes out of the first user those of them that have not changed since.
So each event is with one of both at every moment, and one that comes meanwhile is moved by a later step. When the last
event is taken out, everything else of the first user is deleted in the same script. Knows no Redis client but
`MemoryStore`.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from service.store.client import MemoryStore
from service.store.events import Event, decode_event, encode_text
from service.store.keys import user_keys, user_prefix
from service.store.lua.scripts import EVENT_ID, FIELD, FORGET_ALL, HMGET
from service.store.shown import MOST_LISTS

_EVENTS_PER_STEP = 200
_MOST_STEPS = 50

# KEYS: of the user; ARGV: number  ->  members, bodies of so many events
_EVENTS = (
    EVENT_ID
    + HMGET
    + """
local members, limit = {}, tonumber(ARGV[1])
for _, key in ipairs({KEYS[2], KEYS[5], KEYS[6]}) do
  if #members < limit then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, limit - #members - 1)) do members[#members + 1] = member end
  end
end
return {members, hmget(KEYS[1], event_ids(members))}
"""
)
# KEYS: of the user; ARGV: prefix of their keys, (member, body)*  ->  number of events that are left. Events that have
# changed, or whose outcome is not counted yet, stay for another step.
_TAKE_OUT_MANY = (
    EVENT_ID
    + FIELD
    + FORGET_ALL
    + """
local prefix, spaces = ARGV[1], redis.call('SMEMBERS', KEYS[4])
for i = 2, #ARGV, 2 do
  local id = event_id(ARGV[i])
  local stored = redis.call('HGET', KEYS[1], id)
  if (stored or '') == ARGV[i + 1] and redis.call('HEXISTS', prefix .. 'outcomes', id) == 0 then
    for _, key in ipairs({KEYS[2], KEYS[5], KEYS[6]}) do redis.call('ZREM', key, ARGV[i]) end
    for _, space in ipairs(spaces) do redis.call('HDEL', prefix .. 'states:' .. space, field(id)) end
    redis.call('HDEL', KEYS[1], id)
  end
end
redis.call('HDEL', KEYS[7], 'table')
local num_left = redis.call('HLEN', KEYS[1])
if num_left == 0 then forget_all(prefix) end
return num_left
"""
)


class Merged(NamedTuple):
    """`moved`: events that the user did not have. `duplicates`: events that the user had. `is_complete`: nothing is
    left of the guest; else the call has to be repeated, because the guest has very many events.
    """

    moved: int
    duplicates: int
    is_complete: bool


async def merge(
    store: MemoryStore, guest_id: str, user_id: str, settle: Callable[[Sequence[str]], Awaitable[object]]
) -> Merged:
    """`settle` counts what waits in the outbox of users (see `outcomes.py`)."""
    await _copy_lists(store, guest_id, user_id)
    moved = duplicates = 0
    for _ in range(_MOST_STEPS):
        await settle([guest_id])
        keys = user_keys(guest_id)
        ((members, bodies),) = await store.run([("EVAL", _EVENTS, len(keys), *keys, _EVENTS_PER_STEP)])
        pairs = list(zip(members, bodies, strict=True))
        found = (decode_event(user_id, member[17:], body) for member, body in pairs)
        new, known = await _copy(store, guest_id, [event for event in found if event is not None])
        moved, duplicates = moved + new, duplicates + known
        args = [part for member, body in pairs for part in (member, body or b"")]
        (num_left,) = await store.run([("EVAL", _TAKE_OUT_MANY, len(keys), *keys, user_prefix(guest_id), *args)])
        if not num_left:
            await store.count({guest_id: b""})
            return Merged(moved, duplicates, True)
    return Merged(moved, duplicates, False)


async def _copy(store: MemoryStore, guest_id: str, events: Sequence[Event]) -> tuple[int, int]:
    """Numbers of new and of known events. An event whose id the user has for another event gets an id of its own."""
    appended = await store.append(events, with_outcomes=False) if events else []
    pairs = list(zip(events, appended, strict=True))
    others = [_renamed(event, guest_id) for event, status in pairs if status == "conflict"]
    appended_others = await store.append(others, with_outcomes=False) if others else []
    statuses = [status for _, status in pairs if status != "conflict"] + appended_others
    return statuses.count("accepted"), len(statuses) - statuses.count("accepted")


def _renamed(event: Event, guest_id: str) -> Event:
    """The same id for the same event of the same guest, so that a repeated call changes nothing."""
    digest = hashlib.blake2b(encode_text(f"{guest_id}\n{event.event_id}"), digest_size=16).hexdigest()
    return event._replace(event_id=f"merged-{digest}")


async def _copy_lists(store: MemoryStore, guest_id: str, user_id: str) -> None:
    """What the guest was shown counts for the user: later events name these lists. Older than those of the user."""
    source, target = user_prefix(guest_id) + "shown", user_prefix(user_id) + "shown"
    elements, kept_s, own = await store.run(
        [("LRANGE", source, 0, MOST_LISTS - 1), ("TTL", source), ("LRANGE", target, 0, MOST_LISTS - 1)]
    )
    new = [element for element in elements if element not in own]
    if new and kept_s > 0:
        await store.run([("RPUSH", target, *new), ("LTRIM", target, 0, MOST_LISTS - 1), ("EXPIRE", target, kept_s)])
