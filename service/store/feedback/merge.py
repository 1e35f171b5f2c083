"""Moves all events of one user to another, in steps that can be repeated after a kill at any moment.

A step copies some events to the other user, then takes out of the first user those of them that have not changed since.
So each event is with one of both at every moment, and one that comes meanwhile is moved by a later step. When the last
event is taken out, everything else of the first user is deleted in the same script. If the first user is deleted while
a step copies events, the step takes its copies back. Knows no Redis client but `MemoryStore`.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from service.errors import UserDeleted
from service.store.client import MemoryStore
from service.store.events import Event, decode_event, encode_text
from service.store.keys import user_keys, user_prefix
from service.store.lua.places import ALL_SETS
from service.store.lua.scripts import DELETED_AT, EVENT_ID, FIELD, FORGET_ALL, HMGET, MAY_KEEP
from service.store.shown import MOST_LISTS

_EVENTS_PER_STEP = 200
_MOST_STEPS = 50

# KEYS: of the user; ARGV: number  ->  members, bodies of so many events, the second of this call, wrapped key
_EVENTS = (
    EVENT_ID
    + HMGET
    + ALL_SETS
    + """
local members, limit = {}, tonumber(ARGV[1])
for _, key in ipairs(ALL_SETS) do
  if #members < limit then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, limit - #members - 1)) do members[#members + 1] = member end
  end
end
local second, wrapped = tonumber(redis.call('TIME')[1]), redis.call('HGET', KEYS[7], 'key')
return {members, hmget(KEYS[1], event_ids(members)), second, wrapped}
"""
)
# KEYS: of the user, the tombstone; ARGV: prefix of their keys, second in which the events were read, (member, body)*
# -> number of events that are left, −1 if the user was deleted since. Events that have changed, or whose outcome is
# not counted yet, stay for another step.
_TAKE_OUT_MANY = (
    EVENT_ID
    + DELETED_AT
    + FIELD
    + FORGET_ALL
    + """
local deleted = deleted_at(KEYS[8])
if deleted and deleted >= tonumber(ARGV[2]) and redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local prefix, spaces = ARGV[1], redis.call('SMEMBERS', KEYS[4])
for i = 3, #ARGV, 2 do
  local id = event_id(ARGV[i])
  local stored = redis.call('HGET', KEYS[1], id)
  if (stored or '') == ARGV[i + 1] and redis.call('HEXISTS', prefix .. 'outcomes', id) == 0 then
    for _, key in ipairs(ALL_SETS) do redis.call('ZREM', key, ARGV[i]) end
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


# KEYS: lists, events, tombstone; ARGV: seconds to keep, most lists, list*  ->  nothing
_ADD_LISTS = (
    MAY_KEEP
    + """
if not may_keep(KEYS[3], KEYS[2], redis.call('TIME')[1]) then return end
redis.call('RPUSH', KEYS[1], unpack(ARGV, 3))
redis.call('LTRIM', KEYS[1], 0, ARGV[2] - 1)
redis.call('EXPIRE', KEYS[1], ARGV[1])
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
    """`settle` counts what waits in the outbox of users (see `outcomes.py`).

    Raises UserDeleted if events of the guest are older than the deletion of the user; the guest keeps them.
    """
    await _copy_lists(store, guest_id, user_id)
    moved = duplicates = 0
    keys = [*user_keys(guest_id), await store.tombstones.key(guest_id)]
    for _ in range(_MOST_STEPS):
        await settle([guest_id])
        (answer,) = await store.run([("EVAL", _EVENTS, len(keys), *keys, _EVENTS_PER_STEP)])
        members, bodies, read_at, wrapped = answer
        pairs = list(zip(members, bodies, strict=True))
        names = [member[17:] for member in members]
        opened = store.sealing.of(guest_id, wrapped).open_bodies(names, bodies)
        found = map(partial(decode_event, user_id), names, opened)
        new, known = await _copy(store, guest_id, [event for event in found if event is not None])
        args = [part for member, body in pairs for part in (member, body or b"")]
        head = len(keys), *keys, user_prefix(guest_id), read_at
        (num_left,) = await store.run([("EVAL", _TAKE_OUT_MANY, *head, *args)])
        if num_left < 0:
            await _take_back(store, user_id, new)
            return Merged(moved, duplicates, True)
        moved, duplicates = moved + len(new), duplicates + known
        if not num_left:
            await store.count({guest_id: b""})
            return Merged(moved, duplicates, True)
    return Merged(moved, duplicates, False)


async def _copy(store: MemoryStore, guest_id: str, events: Sequence[Event]) -> tuple[list[str], int]:
    """Ids of new events, and number of known ones. An event whose id the user has for another event gets a new id."""
    appended = await store.append(events, with_outcomes=False) if events else []
    conflicts = [event for event, status in zip(events, appended, strict=True) if status == "conflict"]
    others = [_renamed(event, guest_id) for event in conflicts]
    pairs = list(zip(events, appended, strict=True))
    pairs += zip(others, await store.append(others, with_outcomes=False) if others else [], strict=True)
    if any(status == "deleted" for _, status in pairs):
        raise UserDeleted("The user was deleted; events of before are not stored. `:recreate` the user first.")
    new = [event.event_id for event, status in pairs if status == "accepted"]
    return new, len(pairs) - len(others) - len(new)


async def _take_back(store: MemoryStore, user_id: str, event_ids: Sequence[str]) -> None:
    for event_id in event_ids:
        await store.forget_event(user_id, event_id)
    await store.request_encoding([user_id])


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
        keys = target, user_keys(user_id)[0], await store.tombstones.key(user_id)
        await store.run([("EVAL", _ADD_LISTS, len(keys), *keys, kept_s, MOST_LISTS, *new)])
