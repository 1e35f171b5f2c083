"""Which events of a user are interest, which speak against items, and which do neither: parts of the Lua scripts.

The table of event types (`model_store.event_types`) decides. Each event is in one of three sorted sets: `order` (what
window and memory are made of), `against` (negative weight) and `aside` (everything else). `seen` has 12 bytes for each
event that makes its item seen: `item_digest`, and the second until which it does, little-endian, 2^32 − 1 for ever.

Sets and `seen` are a function of the events and the table alone. `facts` names the table by which they were made; where
that is an older one, or none, they are made anew before anything reads them. A table with a higher number is newer.
`facts` also has the size of `seen`, a revision, which counts changes that the members of `order` do not show, and for
each item that an event took back the place of the last such event.

To make them anew is to let all events arrive once more, the newest first: the sets are renamed, and each script that
needs them places `EVENTS_PER_SCRIPT` of their events. A user of few events is done in one script. For others `facts`
has `rest` meanwhile, events that arrive are placed like any other, and readers repeat their script until it is done.
"""

import json
from typing import Any

from model_store.event_types import EventRule, EventTypes, TypeRule
from service.store.lua.places import ALL_SETS, IN_PORTIONS, IS_BEFORE, NEWEST

_FOR_EVER = -1
EVENTS_PER_SCRIPT = 250  # that are placed anew, or looked at for one that was taken back


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


# `set_of(body)` gives the key of the set, seen_s, whether it cancels, and the fields of the event. An event that cannot
# be read stays in `order`, where a reader leaves it out and says so. A sealed event (see `sealing/records.py`) has the
# digest of its item instead of the item.
SORT = (
    IS_BEFORE
    + ALL_SETS
    + IN_PORTIONS
    + NEWEST
    + f"local EVENTS_PER_SCRIPT = {EVENTS_PER_SCRIPT}\n"
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
  return struct.pack('>I4I4', tonumber(string.sub(digest, 1, 8), 16), tonumber(string.sub(digest, 9), 16))
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

-- Moves events of an item that are before a place out of `order`. Looks at so many events only: `late` in `facts` says
-- that there may be more, and a reader moves those that it meets.
local function move_earlier(tie, score, member)
  local options = {'BYSCORE', 'REV', 'LIMIT', 0, EVENTS_PER_SCRIPT, 'WITHSCORES'}
  local found = redis.call('ZRANGE', ORDER, score, '-inf', unpack(options))
  for i = 1, #found, 2 do
    local earlier, at = found[i], found[i + 1]
    if string.sub(earlier, 1, 16) == tie and is_before(at, earlier, score, member) then
      redis.call('ZADD', ASIDE, at, earlier)
      redis.call('ZREM', ORDER, earlier)
    end
  end
  if #found == 2 * EVENTS_PER_SCRIPT then redis.call('HSET', FACTS, 'late', '1') end
end

local function marks_of(members)
  local names, marks = {}, {}
  for i, member in ipairs(members) do names[i] = '!' .. string.sub(member, 1, 16) end
  for i, mark in pairs(hmget(FACTS, names)) do
    if mark then
      local score, member = read_place(mark)
      marks[string.sub(members[i], 1, 16)] = {score = score, member = member}
    end
  end
  return marks
end

-- Puts events into sets, `seen` and `facts`, in any order. A row: score, member, body and, where known, item digest.
local function place_events(rows)
  local members, entries, taken_back, num_others = {}, {}, {}, 0
  for i, row in ipairs(rows) do members[i] = row.member end
  local marks = marks_of(members)
  for i, row in ipairs(rows) do
    local fields, seen_s, cancels
    row.set, seen_s, cancels, fields = set_of(row.body)
    row.tie = string.sub(row.member, 1, 16)
    if seen_s ~= 0 then entries[#entries + 1] = seen_entry(row.digest or digest_of(fields), row.score, seen_s) end
    local mark = marks[row.tie]
    if cancels and (not mark or is_before(mark.score, mark.member, row.score, row.member)) then
      marks[row.tie], taken_back[row.tie] = row, row
    end
  end
  local sets = {[ORDER] = {}, [AGAINST] = {}, [ASIDE] = {}}
  for _, row in ipairs(rows) do
    local mark = marks[row.tie]
    if row.set == ORDER and mark and is_before(row.score, row.member, mark.score, mark.member) then row.set = ASIDE end
    if row.set ~= ORDER then num_others = num_others + 1 end
    local pairs_of_set = sets[row.set]
    pairs_of_set[#pairs_of_set + 1] = row.score
    pairs_of_set[#pairs_of_set + 1] = row.member
  end
  for tie, row in pairs(taken_back) do
    redis.call('HSET', FACTS, '!' .. tie, row.score .. ':' .. row.member)
    move_earlier(tie, row.score, row.member)
  end
  if num_others > 0 then redis.call('HINCRBY', FACTS, 'revision', num_others) end
  for key, pairs_of_set in pairs(sets) do in_portions('ZADD', key, pairs_of_set) end
  if #entries > 0 then redis.call('HSET', FACTS, 'seen', redis.call('APPEND', SEEN, table.concat(entries))) end
end

-- From now on no event is placed. What of `facts` does not follow from the events stays.
local function begin_anew()
  for i, key in ipairs(SORTED) do
    if redis.call('EXISTS', key) == 1 then redis.call('RENAME', key, UNSORTED[i]) end
  end
  local revision, wrapped = unpack(redis.call('HMGET', FACTS, 'revision', 'key'))
  redis.call('UNLINK', SEEN, FACTS)
  redis.call('HSET', FACTS, 'table', ARGV[1], 'seen', 0, 'rest', '1')
  if revision then redis.call('HSET', FACTS, 'revision', revision) end
  if wrapped then redis.call('HSET', FACTS, 'key', wrapped) end
end

-- Places the newest events that are not placed; members without an event go. Returns their number.
local function place_some(limit)
  local rows, ids, stored, placed = newest(UNSORTED, limit, ''), {}, {}, {}
  for i, row in ipairs(rows) do
    ids[i] = event_id(row.member)
    local members = placed[row.key] or {}
    placed[row.key], members[#members + 1] = members, row.member
  end
  for i, body in pairs(hmget(KEYS[1], ids)) do
    rows[i].body = body
    if body then stored[#stored + 1] = rows[i] end
  end
  place_events(stored)
  for key, members in pairs(placed) do in_portions('ZREM', key, members) end
  return #rows
end

-- Whether the table of this call is older than the one by which the sets were made.
local function is_outdated(known)
  local function number(name) return tonumber(string.match(name, '^%d+')) or 0 end
  return known and number(known) > number(ARGV[1])
end

-- Returns the table by which the sets were made when this was called, whether they are ready to be read (if not,
-- another call goes on), and whether readers have to look for events that were taken back.
local function keep_sorted()
  local known, size, rest, late = unpack(redis.call('HMGET', FACTS, 'table', 'seen', 'rest', 'late'))
  if is_outdated(known) then return known, not rest, late end
  local is_whole = known == ARGV[1] and redis.pcall('STRLEN', SEEN) == tonumber(size or 0)
  if is_whole and not rest or redis.call('EXISTS', KEYS[1]) == 0 then return known, true, late end
  local left, has_rest = EVENTS_PER_SCRIPT, redis.call('EXISTS', unpack(UNSORTED)) > 0
  while left > 0 and (has_rest or not is_whole) do
    if not has_rest then begin_anew() end
    is_whole = is_whole or not has_rest
    left = left - place_some(left)
    has_rest = redis.call('EXISTS', unpack(UNSORTED)) > 0
  end
  if not has_rest then redis.call('HDEL', FACTS, 'rest') end
  return known, is_whole and not has_rest, redis.call('HGET', FACTS, 'late')
end
"""
)

# `add_events` stores new events: everything that follows from them first, the events last. A row has an id, too.
ADD = """
local function add_events(rows)
  place_events(rows)
  local stored = {}
  for _, row in ipairs(rows) do
    stored[#stored + 1] = row.id
    stored[#stored + 1] = row.body
  end
  in_portions('HSET', KEYS[1], stored)
end
"""

# The newest members of `order`, newest first, without events that were taken back (see `move_earlier`). Nothing, if
# another script has to go on.
INTEREST = """
local function newest_interest(limit, is_late)
  for _ = 1, 10 do
    local members, has_moved = limit > 0 and redis.call('ZREVRANGE', ORDER, 0, limit - 1) or {}, false
    local marks = is_late and marks_of(members)
    for _, member in ipairs(marks and members or {}) do
      local mark = marks[string.sub(member, 1, 16)]
      local score = mark and redis.call('ZSCORE', ORDER, member)
      if score and is_before(score, member, mark.score, mark.member) then
        redis.call('ZADD', ASIDE, score, member)
        redis.call('ZREM', ORDER, member)
        has_moved = true
      end
    end
    if not has_moved then return members end
  end
end
"""

# `take_out` removes an event from everything but `events`. Its entry of `seen` becomes zeros, which name no item. An
# event that took others back, one whose entry is not found, and one that cannot be read, of which `member` is '', need
# a new sort, by the next script that reads the user.
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
      redis.call('HDEL', FACTS, 'epoch')  -- what a reader has kept of `seen` is not its beginning any more
      redis.call('SETRANGE', SEEN, start + place - 1, string.rep('\\0', SEEN_ENTRY))
      return true
    end
    stop = start
  end
  return false
end
local function remove_member(member)
  for _, key in ipairs(member ~= '' and ALL_SETS or {}) do
    local score = redis.call('ZSCORE', key, member)
    if score then
      redis.call('ZREM', key, member)
      return score, key
    end
  end
end
local function take_out(prefix, id, body, member, digest)
  local score, key = remove_member(member)
  local is_placed = key == ORDER or key == AGAINST or key == ASIDE
  local _, seen_s, cancels = set_of(body)
  local mark = member ~= '' and redis.call('HGET', FACTS, '!' .. string.sub(member, 1, 16))
  local is_mark = mark and select(2, read_place(mark)) == member
  local is_known = score and redis.call('HGET', FACTS, 'table') == ARGV[1]
  local is_whole = is_known and not (is_placed and cancels) and not is_mark
  is_whole = is_whole and (not is_placed or remove_seen(seen_entry(digest, score, seen_s)))
  if not is_whole then redis.call('HDEL', FACTS, 'table') end
  if key ~= ORDER then redis.call('HINCRBY', FACTS, 'revision', 1) end
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
  local revision, name, wrapped, rest = unpack(redis.call('HMGET', KEYS[7], 'revision', 'table', 'key', 'rest'))
  local facts = (revision or '') .. '\\n' .. (name or '') .. (rest or '')
  return redis.sha1hex(table.concat(members, '\\n') .. '\\n' .. facts), wrapped
end
"""
