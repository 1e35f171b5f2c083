"""What users did with lists that they were shown, in Redis: each event that names a recommendation counts once.

When such an event is stored, a script in the slot of its user looks the list up and puts the outcome into the outbox
of the user, for an event that is new only, and the user is marked as waiting. Servers empty the outboxes of users who
wait: another script, in the slot of the totals, counts each outcome that it has not counted within two days, and then
the outbox lets go of it. So a retry or a kill at any moment counts nothing twice and loses nothing. A list that was not
found is looked up again when the outcome is counted: it is written a moment after its answer, and an event may be
faster. Takes `MemoryStore.run`; its errors come through.
"""

import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from service.store.events import Event, decode_text, encode_text, read_json
from service.store.keys import (
    COUNTED_PREFIX,
    EXPERIMENTS,
    TOTALS,
    UNSETTLED,
    anonymous_key,
    tenant_of,
    user_keys,
    user_prefix,
)
from service.store.lua.scripts import DELETED_AT

LISTS, EXPLORED = "lists", "explored"  # totals: answers that are kept, and items that exploration put into them

_KEPT_S = 7 * 86_400
_DAY_S = 86_400
_MOST_DIGITS = 15  # of a count

# KEYS: events, shown, outbox, tombstone; ARGV: seconds to keep them, now, (event_id, recommendation id, item id, type,
# timestamp)*  ->  nothing. An event that is stored already, or that is not stored because the user was deleted, is not
# looked at. An empty variant: the list is not among those of the user, yet.
_ATTRIBUTE = (
    DELETED_AT
    + """
local deleted = deleted_at(KEYS[4])
for i = 3, #ARGV, 5 do
  local id, recommendation, item, kind, timestamp = unpack(ARGV, i, i + 4)
  local is_gone = deleted and tonumber(timestamp) <= deleted
  if redis.call('HEXISTS', KEYS[1], id) == 0 and not is_gone then
    local outcome = {recommendation = recommendation, item = item, type = kind, variant = '', is_shown = false,
      came_at = tonumber(ARGV[2])}
    for _, element in ipairs(redis.pcall('LRANGE', KEYS[2], 0, -1)) do
      if string.sub(element, 1, #recommendation + 1) == recommendation .. ' ' then
        local is_json, list = pcall(cjson.decode, string.sub(element, #recommendation + 2))
        if is_json and type(list) == 'table' and type(list['items']) == 'table' then
          outcome.variant = list['variant']
          for _, each in ipairs(list['items']) do outcome.is_shown = outcome.is_shown or each == item end
          local explored = type(list['explored']) == 'table' and list['explored'] or {}
          for _, each in ipairs(explored) do outcome.is_explored = outcome.is_explored or each == item end
        end
      end
    end
    redis.call('HSET', KEYS[3], id, cjson.encode(outcome))
    redis.call('EXPIRE', KEYS[3], ARGV[1])
  end
end
"""
)
# KEYS: outbox, events  ->  (event id, outcome)* of events that are stored
_OUTBOX = """
local found, pairs_of_outbox = {}, redis.pcall('HGETALL', KEYS[1])
for i = 1, #pairs_of_outbox, 2 do
  if redis.pcall('HEXISTS', KEYS[2], pairs_of_outbox[i]) == 1 then
    found[#found + 1] = pairs_of_outbox[i]
    found[#found + 1] = pairs_of_outbox[i + 1]
  end
end
return found
"""
# KEYS: totals, what was counted today, and yesterday; ARGV: seconds, (event, list, field, '1' if the item was
# explored)*  ->  number counted
_COUNT = """
local num_counted = 0
local function is_new(member)
  return redis.call('SISMEMBER', KEYS[3], member) == 0 and redis.call('SADD', KEYS[2], member) == 1
end
for i = 2, #ARGV, 4 do
  if is_new(ARGV[i]) then
    num_counted = num_counted + 1
    redis.call('HINCRBY', KEYS[1], ARGV[i + 2], 1)
    if ARGV[i + 3] == '1' then redis.call('HINCRBY', KEYS[1], ARGV[i + 2] .. '|explored', 1) end
    if ARGV[i + 1] ~= '' and is_new(ARGV[i + 1]) then
      redis.call('HINCRBY', KEYS[1], ARGV[i + 2] .. '|lists', 1)
    end
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
return num_counted
"""

# KEYS: waiting; ARGV: user  ->  score as text, whatever protocol the client speaks
_SCORE = "return redis.call('ZSCORE', KEYS[1], ARGV[1])"
# KEYS: waiting; ARGV: (user, score)*  ->  nothing. A user who was marked again meanwhile keeps waiting.
_SETTLED = """
for i = 1, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('ZREM', KEYS[1], ARGV[i]) end
end
"""

# KEYS: waiting, (outbox of each user)*; ARGV: time, user*  ->  nothing. Users without an outbox do not wait.
_MARK = """
for i = 2, #ARGV do
  if redis.call('EXISTS', KEYS[i]) == 1 then redis.call('ZADD', KEYS[1], ARGV[1], ARGV[i]) end
end
"""

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


class Outcome(NamedTuple):
    """An event that names a recommendation. `variant` "": its list is not known, or did not show the item.

    `is_explored`: exploration put the item into the list. `came_at`: when the event was stored, Unix seconds; 0 where
    an earlier version of the service stored it.
    """

    user_id: str
    event_id: str
    recommendation_id: str
    item_id: str
    type: str
    variant: str
    is_explored: bool = False
    came_at: int = 0


def attributions(events: Sequence[Event], tombstones: Mapping[str, str]) -> list[tuple[Any, ...]]:
    """The commands to send before those that store these events. `tombstones`: their keys by user."""
    args: dict[str, list[Any]] = {}
    for event in events:
        if event.recommendation_id is not None:
            texts = event.event_id, event.recommendation_id, event.item_id, event.type
            args.setdefault(event.user_id, [_KEPT_S, int(time.time())]).extend(
                [*map(encode_text, texts), event.timestamp]
            )
    return [_attribution(user_id, tombstones[user_id], each) for user_id, each in args.items()]


def markings(events: Sequence[Event], *, is_cluster: bool) -> list[tuple[Any, ...]]:
    """The commands to send after those that store these events: their users wait. Repeated by a caller's retry."""
    users = list(dict.fromkeys(event.user_id for event in events if event.recommendation_id is not None))
    if not users:
        return []
    now_us, names = time.time_ns() // 1000, list(map(encode_text, users))
    if is_cluster:
        return [("ZADD", UNSETTLED, *(part for user in names for part in (now_us, user)))]
    outboxes = [user_prefix(user_id) + "outcomes" for user_id in users]
    return [("EVAL", _MARK, 1 + len(users), UNSETTLED, *outboxes, now_us, *names)]


def _attribution(user_id: str, tombstone: str, args: Sequence[Any]) -> tuple[Any, ...]:
    prefix = user_prefix(user_id)
    keys = user_keys(user_id)[0], prefix + "shown", prefix + "outcomes", tombstone
    return ("EVAL", _ATTRIBUTE, len(keys), *keys, *args)


class OutcomeStore:
    def __init__(self, run: Run) -> None:
        self._run = run

    async def users(self, limit: int) -> dict[str, bytes]:
        """Users who wait, the longest first, with what `settled` needs."""
        (found,) = await self._run([("ZRANGE", UNSETTLED, 0, limit - 1)])
        scores = await self._run(
            [("EVAL", "return redis.call('ZSCORE', KEYS[1], ARGV[1])", 1, UNSETTLED, user) for user in found]
        )
        pairs = zip(found, scores, strict=True)
        return {decode_text(user): score for user, score in pairs if score is not None}

    async def settled(self, users: Mapping[str, bytes]) -> None:
        """These users do not wait any more, unless they were marked since `users` was called."""
        args = [part for user, score in users.items() for part in (encode_text(user), score)]
        await self._run([("EVAL", _SETTLED, 1, UNSETTLED, *args)])

    async def postpone(self, user_ids: Sequence[str]) -> None:
        """Those of these users who wait do so behind all others."""
        if user_ids:
            now_us = time.time_ns() // 1000
            scored = (part for user_id in user_ids for part in (now_us, encode_text(user_id)))
            await self._run([("ZADD", UNSETTLED, "XX", *scored)])

    async def waiting(self, user_ids: Sequence[str]) -> list[Outcome]:
        """The outboxes of these users. Lists of anonymous sessions, and others that were not found, are looked up."""
        answers = await self._run([_outbox_command(user_id) for user_id in user_ids])
        found: list[Outcome] = []
        for user_id, answer in zip(user_ids, answers, strict=True):
            pairs = zip(answer[::2], answer[1::2], strict=True)
            found += [_outcome(user_id, decode_text(event_id), read_json(body)) for event_id, body in pairs]
        return await self._with_lists(found)

    async def count(self, outcomes: Mapping[Outcome, str], *, day: int) -> int:
        """`outcomes`: the name under which each counts. Returns how many had not been counted. Then the outboxes are
        emptied of them.
        """
        if not outcomes:
            return 0
        keys = TOTALS, f"{COUNTED_PREFIX}{day}", f"{COUNTED_PREFIX}{day - 1}"
        args: list[Any] = [3 * _DAY_S]
        for each, name in outcomes.items():
            shown = _digest(each.user_id, each.recommendation_id, name) if each.variant else ""
            total = encode_text(f"{each.variant}|{name}")
            args += [_digest(each.user_id, each.event_id), shown, total, "1" if each.is_explored else ""]
        (num_counted,) = await self._run([("EVAL", _COUNT, 3, *keys, *args)])
        await self._run(
            [("HDEL", user_prefix(each.user_id) + "outcomes", encode_text(each.event_id)) for each in outcomes]
        )
        return int(num_counted)

    async def totals(self) -> dict[str, int]:
        """ "variant|name" → number of outcomes, "variant|name|lists" → number of lists that had one."""
        (found,) = await self._run([("HGETALL", TOTALS)])
        return {decode_text(field): int(number) for field, number in found.items() if _is_count(number)}

    async def _with_lists(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        unknown = [each for each in outcomes if not each.variant]
        users = list(dict.fromkeys(each.user_id for each in unknown))
        sessions = [anonymous_key(each.recommendation_id, tenant_of(each.user_id)) for each in unknown]
        commands = [("LRANGE", user_prefix(user_id) + "shown", 0, -1) for user_id in users]
        answers = await self._run([*commands, *(("LRANGE", key, 0, 0) for key in sessions)])
        of_users = dict(zip(users, answers, strict=False))
        of_sessions = dict(zip(unknown, answers[len(users) :], strict=True))
        return [
            each if each.variant else _of_lists(each, [*of_sessions[each], *of_users[each.user_id]])
            for each in outcomes
        ]


def _is_count(raw: bytes) -> bool:
    return raw.isdigit() and len(raw) <= _MOST_DIGITS


def _outbox_command(user_id: str) -> tuple[Any, ...]:
    return ("EVAL", _OUTBOX, 2, user_prefix(user_id) + "outcomes", user_keys(user_id)[0])


def _outcome(user_id: str, event_id: str, facts: Mapping[str, Any]) -> Outcome:
    recommendation_id, item_id, kind, variant = (
        str(facts.get(name, "")) for name in ("recommendation", "item", "type", "variant")
    )
    shown = variant if facts.get("is_shown") is True else ""
    is_explored = bool(shown) and facts.get("is_explored") is True
    came_at = facts.get("came_at")
    came_at = came_at if isinstance(came_at, int) else 0
    return Outcome(user_id, event_id, recommendation_id, item_id, kind, shown, is_explored, came_at)


def _of_lists(outcome: Outcome, elements: Sequence[bytes]) -> Outcome:
    """With the variant of its list, if that is among `elements` and shows the item."""
    for element in elements:
        recommendation_id, _, body = element.partition(b" ")
        if recommendation_id != encode_text(outcome.recommendation_id):
            continue
        facts = read_json(body)
        items, explored = facts.get("items"), facts.get("explored")
        if isinstance(items, list) and outcome.item_id in items:
            is_explored = isinstance(explored, list) and outcome.item_id in explored
            return outcome._replace(variant=str(facts.get("variant", "")), is_explored=is_explored)
    return outcome


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b(encode_text("\n".join(parts)), digest_size=12).digest()


class ExperimentStore:
    """The experiment that runs: one JSON object that every server reads."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def read(self) -> dict[str, Any]:
        """Empty where none runs."""
        (raw,) = await self._run([("GET", EXPERIMENTS)])
        return read_json(raw)

    async def write(self, experiment: Mapping[str, Any]) -> None:
        await self._run([("SET", EXPERIMENTS, json.dumps(dict(experiment)))])
