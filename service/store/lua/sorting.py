"""Which events of a user are interest, which speak against items, and which do neither: parts of the Lua scripts.

The table of event types (`model_store.event_types`) decides. Each event is in one of three sorted sets: `order` (what
window and memory are made of), `against` (negative weight) and `aside` (everything else). `seen` has 12 bytes for each
event that makes its item seen: `item_digest`, and the second until which it does, little-endian, 2^32 − 1 for ever.

Sets and `seen` are a function of the events and the table alone. `facts` names the table by which they were made; where
that is an older one, a script makes them anew before it reads or changes anything. A table with a higher number is
newer. `facts` also has the size of `seen`, a revision, which counts changes that the members of `order` do not show,
and for each item that an event took back the place of the last such event.
"""

import json
from typing import Any

from model_store.event_types import EventRule, EventTypes, TypeRule

_FOR_EVER = -1


def sorting_of(types: EventTypes, number: int) -> tuple[str, str]:
    """ARGV[1] and ARGV[2] of the scripts that sort events: the name of the table, and the table as they read it.

    A rule is a list: at_least, at_most (or false), set, seen_s (−1: for ever), whether it cancels.
    """
    table = {"types": {name: _rules(rule) for name, rule in types.types.items()}, "other": _rules(types.other)}
    return f"{number}:{types.digest}", json.dumps(table, separators=(",", ":"))


def _rules(rule: TypeRule) -> list[list[Any]]:
    ranges = [[_limit(each.at_least), _limit(each.at_most), *_brief(each)] for each in rule.by_value]
    return [*ranges, [False, False, *_brief(rule)]]


def _limit(value: float | None) -> float | bool:
    return False if value is None else value


def _brief(rule: EventRule) -> list[Any]:
    place = "order" if rule.is_interest else "against" if rule.is_against else "aside"
    return [place, _FOR_EVER if rule.seen_s is None else rule.seen_s, rule.cancels]


# Compares members byte by byte, because Lua's < on strings depends on the server's locale.
IS_BEFORE = """
local function is_before_bytes(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end
local function is_before(score, member, other_score, other_member)
  local x, y = tonumber(score), tonumber(other_score)
  if x ~= y then return x < y end
  return is_before_bytes(member, other_member)
end
"""

# Number of members of a set that are before a place. Looks at a few members, however many have the same score.
NUM_BEFORE = """
local function num_before(key, score, member)
  local low, high = 0, redis.call('ZCARD', key)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local found = redis.call('ZRANGE', key, middle, middle, 'WITHSCORES')
    if is_before(found[2], found[1], score, member) then low = middle + 1 else high = middle end
  end
  return low
end
"""

# `set_of(body)` gives the key of the set, seen_s, whether it cancels, and the fields of the event. An event that cannot
# be read stays in `order`, where a reader leaves it out and says so. A sealed event (see `sealing/records.py`) has the
# digest of its item instead of the item.
SORT = (
    IS_BEFORE
    + """
local ORDER, SEEN, AGAINST, ASIDE, FACTS = KEYS[2], KEYS[3], KEYS[5], KEYS[6], KEYS[7]
local SETS = {order = ORDER, against = AGAINST, aside = ASIDE}
local rules_of_types
local function holds(rule, value)
  local low, high = rule[1], rule[2]
  if not low and not high then return true end
  return type(value) == 'number' and (not low or value >= low) and (not high or value <= high)
end
local function set_of(body)
  rules_of_types = rules_of_types or cjson.decode(ARGV[2])
  local is_json, fields = pcall(cjson.decode, body)
  if not is_json or type(fields) ~= 'table' then return ORDER, 0, false end
  local item, digest = fields['item_id'], fields['item']
  local is_sealed = type(digest) == 'string' and #digest == 16 and string.match(digest, '^%x+$')
  if type(item) ~= 'string' and not is_sealed then return ORDER, 0, false end
  local kind = fields['type']
  local rules = type(kind) == 'string' and rules_of_types.types[kind] or rules_of_types.other
  for _, rule in ipairs(rules) do
    if holds(rule, fields['value']) then return SETS[rule[3]], rule[4], rule[5], fields end
  end
end
local function digest_of(fields)
  local item = fields['item_id']
  local digest = type(item) == 'string' and string.sub(redis.sha1hex(item), 1, 16) or fields['item']
  local bytes = string.gsub(digest, '..', function(byte)
    return string.char(tonumber(byte, 16))
  end)
  return bytes
end
local function seen_entry(digest, timestamp, seen_s)
  if seen_s == 0 then return '' end
  local last = 4294967295
  if seen_s > 0 then last = math.max(0, math.min(last - 1, math.floor(tonumber(timestamp)) + seen_s)) end
  return digest .. struct.pack('<I4', last)
end
local function read_place(place)
  local score, member = string.match(place, '^([^:]*):(.*)$')
  return score, member
end

-- Makes the sets, `seen` and `facts` anew from all events.
local function sort_again()
  local rows, ids, marks, seen = {}, {}, {}, {}
  for _, key in ipairs({ORDER, AGAINST, ASIDE}) do
    local found = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #found, 2 do
      rows[#rows + 1] = {member = found[i], score = found[i + 1], key = key}
      ids[#ids + 1] = event_id(found[i])
    end
  end
  for i, body in ipairs(hmget(KEYS[1], ids)) do
    local row = rows[i]
    if body then
      local seen_s, cancels, fields
      row.set, seen_s, cancels, fields = set_of(body)
      if fields then seen[#seen + 1] = seen_entry(digest_of(fields), row.score, seen_s) end
      if cancels then
        local tie = string.sub(row.member, 1, 16)
        local last = marks[tie]
        if not last or is_before(last.score, last.member, row.score, row.member) then marks[tie] = row end
      end
    end
  end
  for _, row in ipairs(rows) do
    local last = marks[string.sub(row.member, 1, 16)]
    if row.set == ORDER and last and is_before(row.score, row.member, last.score, last.member) then row.set = ASIDE end
    if row.set and row.set ~= row.key then
      redis.call('ZADD', row.set, row.score, row.member)
      redis.call('ZREM', row.key, row.member)
    end
  end
  local revision, wrapped = unpack(redis.call('HMGET', FACTS, 'revision', 'key'))
  redis.call('UNLINK', SEEN, FACTS)
  seen = table.concat(seen)
  if seen ~= '' then redis.call('SET', SEEN, seen) end
  redis.call('HSET', FACTS, 'seen', #seen)
  for tie, last in pairs(marks) do redis.call('HSET', FACTS, '!' .. tie, last.score .. ':' .. last.member) end
  if revision then redis.call('HSET', FACTS, 'revision', revision) end
  if wrapped then redis.call('HSET', FACTS, 'key', wrapped) end
  redis.call('HSET', FACTS, 'table', ARGV[1])
end

-- Whether the table of this call is older than the one by which the sets were made.
local function is_outdated(known)
  local function number(name) return tonumber(string.match(name, '^%d+')) or 0 end
  return known and number(known) > number(ARGV[1])
end
local function keep_sorted()
  local known, size = unpack(redis.call('HMGET', FACTS, 'table', 'seen'))
  local is_whole = redis.pcall('STRLEN', SEEN) == tonumber(size or 0)
  if known == ARGV[1] and is_whole or is_outdated(known) then return known end
  if redis.call('EXISTS', KEYS[1]) == 1 then sort_again() end
  return known
end
"""
)

# `add_event` stores a new event: everything that follows from it first, the event last.
ADD = """
local function move_earlier(tie, timestamp, member)
  local found = redis.call('ZRANGEBYSCORE', ORDER, '-inf', timestamp, 'WITHSCORES')
  for i = 1, #found, 2 do
    local earlier, score = found[i], found[i + 1]
    if string.sub(earlier, 1, 16) == tie and is_before(score, earlier, timestamp, member) then
      redis.call('ZADD', ASIDE, score, earlier)
      redis.call('ZREM', ORDER, earlier)
    end
  end
end
local function add_event(id, body, timestamp, member, digest)
  local set, seen_s, cancels = set_of(body)
  local tie = string.sub(member, 1, 16)
  local mark = redis.call('HGET', FACTS, '!' .. tie)
  local score, last
  if mark then score, last = read_place(mark) end
  if cancels then
    if not mark or is_before(score, last, timestamp, member) then
      redis.call('HSET', FACTS, '!' .. tie, timestamp .. ':' .. member)
    end
    move_earlier(tie, timestamp, member)
  end
  if set == ORDER and mark and is_before(timestamp, member, score, last) then set = ASIDE end
  if set ~= ORDER then redis.call('HINCRBY', FACTS, 'revision', 1) end
  redis.call('ZADD', set, timestamp, member)
  local entry = seen_entry(digest, timestamp, seen_s)
  if entry ~= '' then redis.call('HSET', FACTS, 'seen', redis.call('APPEND', SEEN, entry)) end
  redis.call('HSET', KEYS[1], id, body)
end
"""

# `take_out` removes an event from everything but `events`. `member` is '' where the event cannot be read: then all
# members are searched. Its entry of `seen` becomes zeros, which name no item. An event that took others back, and one
# whose entry is not found, need a new sort, by the next script that reads the user.
TAKE_OUT = """
local SEEN_ENTRY, ENTRIES_PER_BLOCK = 12, 10000
local function remove_seen(entry)
  if entry == '' then return true end
  local stop = redis.call('STRLEN', SEEN)
  while stop > 0 do
    local start = math.max(0, stop - SEEN_ENTRY * ENTRIES_PER_BLOCK)
    local block = redis.call('GETRANGE', SEEN, start, stop - 1)
    local place = string.find(block, entry, 1, true)
    while place and (place - 1) % SEEN_ENTRY ~= 0 do place = string.find(block, entry, place + 1, true) end
    if place then
      redis.call('SETRANGE', SEEN, start + place - 1, string.rep('\\0', SEEN_ENTRY))
      return true
    end
    stop = start
  end
  return false
end
local function remove_member(id, member)
  local score, was_in_order = nil, false
  for _, key in ipairs({ORDER, AGAINST, ASIDE}) do
    for _, each in ipairs(member ~= '' and {member} or redis.call('ZRANGE', key, 0, -1)) do
      if event_id(each) == id then
        local found = redis.call('ZSCORE', key, each)
        score = found or score
        was_in_order = was_in_order or (found and key == ORDER)
        redis.call('ZREM', key, each)
      end
    end
  end
  return score, was_in_order
end
local function take_out(prefix, id, body, member, digest)
  local score, was_in_order = remove_member(id, member)
  local _, seen_s, cancels = set_of(body)
  local mark = member ~= '' and redis.call('HGET', FACTS, '!' .. string.sub(member, 1, 16))
  local is_mark = mark and select(2, read_place(mark)) == member
  local is_known = member ~= '' and score and redis.call('HGET', FACTS, 'table') == ARGV[1]
  local is_whole = is_known and not cancels and not is_mark and remove_seen(seen_entry(digest, score, seen_s))
  if not is_whole then redis.call('HDEL', FACTS, 'table') end
  if not was_in_order then redis.call('HINCRBY', FACTS, 'revision', 1) end
  for _, space in ipairs(redis.call('SMEMBERS', KEYS[4])) do
    redis.call('HDEL', prefix .. 'states:' .. space, field(id))
    redis.call('UNLINK', prefix .. 'retrieval:' .. space)
  end
end
"""

# A digest of the newest events, of their order, and of what else decides what they mean. Two things computed from the
# events of one user agree while it stays the same. The second result is the wrapped key of the user.
LOG = """
local function log_digest(members)
  local revision, name, wrapped = unpack(redis.call('HMGET', KEYS[7], 'revision', 'table', 'key'))
  return redis.sha1hex(table.concat(members, '\\n') .. '\\n' .. (revision or '') .. '\\n' .. (name or '')), wrapped
end
"""
