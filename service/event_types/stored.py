"""The table of event types that was put while the service runs, in Redis: replicas and restarts find it.

`automr:events` holds JSON: the number of the table, which grows with each change, and the table.
`automr:events:counted` names the table by which all users were asked to be counted. Takes `MemoryStore.run`; its errors
come through.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import structlog
from pydantic import ValidationError

from model_store.event_types import EventTypes, parse_event_types
from service.errors import StoreCorrupt
from service.logs import RepeatedWarnings
from service.store.events import read_json
from service.store.keys import EVENT_TYPES, EVENTS_COUNTED, EVENTS_COUNTING

log = structlog.get_logger("service.event_types.stored")
repeated = RepeatedWarnings(log)

_UNREADABLE = "the stored table of event types cannot be read, that of the bundle is used"

LEASE_S = 30

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]

# KEYS: table; ARGV: JSON of the table, number that the caller knows  ->  its number. A damaged table is replaced.
_PUT = """
local old = redis.pcall('GET', KEYS[1])
local stored = type(old) == 'string' and tonumber(string.match(old, '^{"number":(%d+)')) or 0
local number = math.max(stored, tonumber(ARGV[2])) + 1
redis.call('SET', KEYS[1], '{"number":' .. number .. ',"table":' .. ARGV[1] .. '}')
return number
"""
# KEYS: lease; ARGV: who, seconds  ->  1 if it is theirs now
_LEASE = """
local owner = redis.pcall('GET', KEYS[1])
if type(owner) == 'string' and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


class PutTable(NamedTuple):
    """`types` is None where no table was put. `counted`: the name of the table by which all users count."""

    number: int
    types: EventTypes | None
    counted: str


class EventTypeStore:
    def __init__(self, run: Run) -> None:
        self._run = run

    async def read(self) -> PutTable:
        """A table that cannot be read counts as none, and is logged."""
        try:
            found, counted = await self._run([("GET", EVENT_TYPES), ("GET", EVENTS_COUNTED)])
        except StoreCorrupt:
            found, counted = await self._text(EVENT_TYPES), await self._text(EVENTS_COUNTED)
        stored, name = read_json(found), (counted or b"").decode("ascii", "replace")
        if not stored:
            return PutTable(0, None, name)
        try:
            return PutTable(int(stored["number"]), parse_event_types(stored["table"]), name)
        except (KeyError, TypeError, ValueError, ValidationError):
            repeated.warning(_UNREADABLE)
            return PutTable(0, None, name)

    async def _text(self, key: str) -> bytes | None:
        """None also for a key of a wrong type."""
        try:
            found: bytes | None = (await self._run([("GET", key)]))[0]
        except StoreCorrupt:
            repeated.warning(_UNREADABLE)
            found = None
        return found

    async def put(self, types: EventTypes, known: int) -> int:
        """The number of the table, which is newer than all others from then on; `known`: a number of the caller."""
        return int((await self._run([("EVAL", _PUT, 1, EVENT_TYPES, types.model_dump_json(), known)]))[0])

    async def lease_counting(self, owner: str) -> bool:
        """Whether `owner` may ask for the users to be counted, for the next `LEASE_S` seconds."""
        return bool((await self._run([("EVAL", _LEASE, 1, EVENTS_COUNTING, owner, LEASE_S)]))[0])

    async def counted(self, name: str) -> None:
        await self._run([("SET", EVENTS_COUNTED, name)])
