"""Brings records of users who are stored already to the form that new ones get: sealed, by the first master key.

Plain events and states are sealed, data keys that an older master key wraps are wrapped anew, and events get the label
that the table of event types asks for (see `records.py`). Each step is one script that changes only what nobody has
changed meanwhile, so servers go on, and a walk that was killed is repeated. Knows no client but `MemoryStore`.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from service.errors import SettingsError
from service.store.client import MemoryStore
from service.store.events import decode_event, decode_text, encode_text
from service.store.keys import SEALED_WITH, facts_key, user_keys, user_prefix
from service.store.lua.scripts import MAY_WRITE
from service.store.sealing.records import Sealed, is_sealed, is_sealed_state

_PER_STEP = 200

# KEYS: of the user, the hash to change; ARGV: wrapped key, whether it is new, '1' where the next reader has to sort the
# events anew, (field, old value, new value)*  ->  number of changes, or −1: the user has another key.
_CHANGE = (
    MAY_WRITE
    + """
local may, must_put = may_write(ARGV[1], ARGV[2])
if not may or redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if must_put then redis.call('HSET', KEYS[7], 'key', ARGV[1]) end
local changed = 0
for i = 4, #ARGV, 3 do
  if redis.call('HGET', KEYS[8], ARGV[i]) == ARGV[i + 1] then
    redis.call('HSET', KEYS[8], ARGV[i], ARGV[i + 2])
    changed = changed + 1
  end
end
if changed > 0 and ARGV[3] == '1' then redis.call('HDEL', KEYS[7], 'table') end
return changed
"""
)
# KEYS: facts; ARGV: old and new wrapped key  ->  1 if it was replaced
_REWRAP = """
if redis.call('HGET', KEYS[1], 'key') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'key', ARGV[2])
return 1
"""


class Changed(NamedTuple):
    """Numbers of events, states and wrapped keys that have another form now."""

    events: int = 0
    states: int = 0
    keys: int = 0


async def seal_all(store: MemoryStore) -> dict[str, int]:
    """All users. Afterwards the store needs no other master key than the first. Raises SettingsError without keys."""
    master = store.sealing.master
    if master is None:
        raise SettingsError(["seal: AUTOMR_ENCRYPTION_KEYS is not set"])
    if problem := await store.sealing.problem():
        raise SettingsError([f"seal: {problem}"])
    await store.run([("HSET", SEALED_WITH, master.first, master.check)])
    num_users, total = 0, Changed()
    for _ in range(2):  # again for users that other servers sealed with an older key meanwhile
        num_users = 0
        async for user_id in store.users():
            total = Changed(*map(sum, zip(total, await seal_user(store, user_id), strict=True)))
            num_users += 1
    (known,) = await store.run([("HKEYS", SEALED_WITH)])
    if old := [name for name in known if decode_text(name) != master.first]:
        await store.run([("HDEL", SEALED_WITH, *old)])
    return {"users": num_users, **total._asdict()}


async def seal_user(store: MemoryStore, user_id: str) -> Changed:
    """Does nothing where the settings have no master key. Raises RecordsSealed."""
    num_keys = await _rewrap(store, user_id)
    (own,) = (await store.sealing.for_writing([user_id])).values()
    if not isinstance(own, Sealed):
        return Changed()

    def body_of(name: bytes, body: bytes) -> bytes:
        event = decode_event(user_id, name, own.open_bodies([name], [body])[0])
        return body if event is None else own.body(event, store.types)

    def record_of(name: bytes, record: bytes) -> bytes:
        return record if is_sealed_state(record) else own.state_of(name, record)

    keys = user_keys(user_id)
    num_events = await _convert(store, user_id, own, keys[0], body_of)
    (spaces,) = await store.run([("SMEMBERS", keys[3])])
    places = [f"{user_prefix(user_id)}states:{decode_text(space)}" for space in spaces]
    num_states = [await _convert(store, user_id, own, place, record_of) for place in places]
    return Changed(num_events, sum(num_states), num_keys)


async def _convert(
    store: MemoryStore, user_id: str, own: Sealed, key: str, new_of: Callable[[bytes, bytes], bytes]
) -> int:
    keys, place, num_changed = [*user_keys(user_id), key], b"0", 0
    while True:
        ((place, flat),) = await store.run([("HSCAN", key, place, "COUNT", _PER_STEP)])
        pairs = list(flat.items()) if isinstance(flat, dict) else list(zip(flat[::2], flat[1::2], strict=True))
        for start in range(0, len(pairs), _PER_STEP):
            await asyncio.sleep(0)  # lets requests run between two steps
            step = pairs[start : start + _PER_STEP]
            changes = [(name, old, new) for name, old in step if (new := new_of(name, old)) != old]
            if not changes:
                continue
            has_labels = any(is_sealed(old) for _, old, _ in changes)  # that the table of event types now asks for
            args = own.wrapped, int(own.is_new), int(has_labels), *(part for change in changes for part in change)
            (answer,) = await store.run([("EVAL", _CHANGE, len(keys), *keys, *args)])
            if answer < 0:  # deleted, or another process put another key: the next walk finds the rest
                store.sealing.changed([user_id])
                return num_changed
            num_changed += answer
        if int(place) == 0:
            return num_changed


async def _rewrap(store: MemoryStore, user_id: str) -> int:
    """1 if the first master key wraps the user's data key from now on, and did not before."""
    master, user = store.sealing.master, encode_text(user_id)
    (wrapped,) = await store.run([("HGET", facts_key(user_id), "key")])
    if master is None or not wrapped or master.is_first(wrapped):
        return 0
    new = master.wrap(master.unwrap(wrapped, user), user)
    (answer,) = await store.run([("EVAL", _REWRAP, 1, facts_key(user_id), wrapped, new)])
    store.sealing.changed([user_id])
    return int(answer)
