"""The Lua scripts of the store. Every change of a user's keys is one script, so a reader never sees half of a change.

KEYS of the scripts about one user are those of `keys.user_keys`: events, order, seen, spaces, against, aside, facts
and, where the script needs them, the states of one space. Every script uses one hash slot and only commands of Redis
7.0. A script writes `events` last: if it is interrupted, the client's retry finds the event missing and repairs the
rest. Knows no client.

The comment above each script says: arguments -> answer.
"""

from service.store.lua.places import ALL_SETS, IN_PORTIONS, IS_BEFORE, NEWEST
from service.store.lua.queue import REQUEST
from service.store.lua.sorting import ADD, INTEREST, LOG, SORT, TAKE_OUT

# Members of `order` are "<16 hex of tie_key>:<event_id>".
EVENT_ID = """
local function event_id(member) return string.sub(member, 18) end
local function event_ids(members)
  local ids = {}
  for i, member in ipairs(members) do ids[i] = event_id(member) end
  return ids
end
"""

# `states` names an event by the first 80 bits of its id's SHA-1: ids may be long, and 20 hex digits keep a field small.
FIELD = """
local function field(id) return string.sub(redis.sha1hex(id), 1, 20) end
"""

# HMGET in portions of 1000 fields, because Lua's unpack() has a limit.
HMGET = """
local function hmget(key, fields)
  local values = {}
  for i = 1, #fields, 1000 do
    local portion = redis.call('HMGET', key, unpack(fields, i, math.min(i + 999, #fields)))
    for j, value in ipairs(portion) do values[i + j - 1] = value end
  end
  return values
end
"""

# The second in which a user was deleted, nil if that was never or long ago. `key`: the tombstone of the user.
DELETED_AT = """
local function deleted_at(key) return tonumber(redis.call('GET', key) or '') end
"""

# Whether what was made for the user at a time may be kept: not if the user was deleted since, or has no events since.
MAY_KEEP = (
    DELETED_AT
    + """
local function may_keep(tombstone, events, made_at)
  local deleted = deleted_at(tombstone)
  return not deleted or tonumber(made_at) > deleted and redis.call('EXISTS', events) == 1
end
"""
)

# Whether records may be written as they were sealed: the stored key of the user is the one that was used, or none is
# stored and that one is new, so that it has to be put. See `sealing/`.
MAY_WRITE = """
local function may_write(wrapped, is_new)
  local stored = redis.call('HGET', KEYS[7], 'key') or ''
  local must_put = stored == '' and is_new == '1'
  return stored == wrapped or must_put, must_put
end
"""

# ARGV: name of the table, table (see `sorting.sorting_of`), user, wrapped key, whether it is new, (event_id, body,
# timestamp, order member, item digest)*  ->  for each event 1 (new), 0 (stored already), −1 (the user was deleted
# since), or the body that is stored under its id and differs in its bytes. No element: the user has another key.
# KEYS[8]: the tombstone of the user. KEYS[9] to KEYS[11], where the store is no cluster: those of the encode queue,
# which the user enters with a new event, in the same step.
APPEND = (
    EVENT_ID
    + HMGET
    + DELETED_AT
    + MAY_WRITE
    + SORT
    + ADD
    + REQUEST
    + """
local answer, ids, rows, new = {}, {}, {}, {}
local may, must_put = may_write(ARGV[4], ARGV[5])
if not may then return answer end
local known, is_sorted = keep_sorted()
local deleted = deleted_at(KEYS[8])
for i = 6, #ARGV, 5 do ids[#ids + 1] = ARGV[i] end
local bodies = hmget(KEYS[1], ids)
for i, id in ipairs(ids) do
  local body, timestamp, member, digest = unpack(ARGV, 5 * i + 2, 5 * i + 5)
  local stored = bodies[i] or new[id]
  if stored then answer[i] = stored == body and 0 or stored
  elseif deleted and tonumber(timestamp) <= deleted then answer[i] = -1
  else
    answer[i], new[id] = 1, body
    rows[#rows + 1] = {id = id, body = body, score = timestamp, member = member, digest = digest}
  end
end
if #rows > 0 then
  if KEYS[9] then request(KEYS[9], KEYS[10], KEYS[11], ARGV[3]) end
  if must_put then redis.call('HSET', KEYS[7], 'key', ARGV[4]) end
  add_events(rows)
end
if redis.call('EXISTS', KEYS[1]) == 0 then return answer end
if is_outdated(known) then redis.call('HDEL', FACTS, 'table')
elseif not known and is_sorted then redis.call('HSET', FACTS, 'table', ARGV[1]) end
return answer
"""
)

# Part of `seen` from byte `start` on, at most `most` bytes, and, where this is not all of it, the name of this state of
# `seen`, the first byte of the part, and the size. Later states of the same name begin with the same bytes. A replica
# that took over may have others. So the part begins at 0 unless the bytes before `start` end with those of the caller.
SEEN_PART = """
local function seen_part(epoch, start, ending, most)
  local size = redis.call('STRLEN', KEYS[3])
  if size <= most then return {redis.call('GET', KEYS[3])} end
  local stored = redis.call('HGET', KEYS[7], 'epoch')
  if not stored then
    stored = table.concat(redis.call('TIME'), '.')
    redis.call('HSET', KEYS[7], 'epoch', stored)
  end
  local is_known = epoch == stored and start > 0
  if not is_known or redis.call('GETRANGE', KEYS[3], start - #ending, start - 1) ~= ending then start = 0 end
  return {redis.call('GETRANGE', KEYS[3], start, start + most - 1), stored, start, size}
end
"""

# ARGV: name of the table, table, limit, number of states, '1' to ask for `seen`, number of events against, and of
# `seen` name, first byte, last bytes before it and most bytes (see `seen_part`)  ->  event ids, bodies, records (each
# newest first, nil where missing), log digest, part of `seen`, ids and bodies of the newest events against items, and
# the wrapped key of the user. Nothing: the events are not sorted yet, and the call is to be repeated. Only the newest
# events have records in the answer, as many as the number of states. Reads all states at once, because looking up each
# of them in a listpack takes longer.
RECALL = (
    EVENT_ID
    + FIELD
    + HMGET
    + SORT
    + INTEREST
    + SEEN_PART
    + LOG
    + """
local _, is_sorted, is_late = keep_sorted()
local limit, num_against = tonumber(ARGV[3]), tonumber(ARGV[6])
local members = is_sorted and newest_interest(limit, is_late)
if not members then return false end
local against = num_against > 0 and event_ids(redis.call('ZREVRANGE', AGAINST, 0, num_against - 1)) or {}
local ids = event_ids(members)
local records, num_states = {}, math.min(tonumber(ARGV[4]), #ids)
if num_states > 0 then
  local states, pairs_of_states = {}, redis.call('HGETALL', KEYS[8])
  for i = 1, #pairs_of_states, 2 do states[pairs_of_states[i]] = pairs_of_states[i + 1] end
  for i = 1, num_states do records[i] = states[field(ids[i])] or false end
end
local seen = ARGV[5] == '1' and seen_part(ARGV[7], tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[10]))
local digest, wrapped = log_digest(members)
return {ids, hmget(KEYS[1], ids), records, digest, seen, against, hmget(KEYS[1], against), wrapped}
"""
)

# ARGV: name, first byte, last bytes before it, most bytes  ->  part of `seen`, see `seen_part`. Nothing: it is being
# made anew.
MORE_SEEN = (
    SEEN_PART
    + """
if redis.call('HEXISTS', KEYS[7], 'rest') == 1 then return false end
return seen_part(ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]))
"""
)

# ARGV: limit  ->  log digest of the newest `limit` events
DIGEST = LOG + "return (log_digest(redis.call('ZREVRANGE', KEYS[2], 0, ARGV[1] - 1)))"

# ARGV: limit, timestamp, member of the last event shown ('' for both: start at the newest)  ->  members, bodies, score
# of the last event of this page, wrapped key; newest first, with one member more than the limit when another page
# follows.
PAGE = (
    EVENT_ID
    + HMGET
    + IS_BEFORE
    + ALL_SETS
    + NEWEST
    + """
local limit, members = tonumber(ARGV[1]), {}
local rows = newest(ALL_SETS, limit + 1, ARGV[2], ARGV[3])
for i, row in ipairs(rows) do members[i] = row.member end
local score, wrapped = rows[limit] and rows[limit].score or false, redis.call('HGET', KEYS[7], 'key')
return {members, hmget(KEYS[1], event_ids(members)), score, wrapped}
"""
)

# ARGV: keep, space, limit, wrapped key, (event_id, record)*  ->  number of records written, log digest of the newest
# `limit` events. Nothing is written where the user has another key.
# Only events that exist and are among the newest `keep` have a state. Other states are deleted here, which bounds the
# size of a user; but not while the events are sorted anew, because the newest ones may not be placed yet.
SAVE_STATES = (
    EVENT_ID
    + FIELD
    + LOG
    + """
local is_kept, written = {}, 0
local members = redis.call('ZREVRANGE', KEYS[2], 0, ARGV[3] - 1)
for i = 1, math.min(tonumber(ARGV[1]), #members) do is_kept[field(event_id(members[i]))] = true end
local digest, wrapped = log_digest(members)
local is_own = (wrapped or '') == ARGV[4]
for i = 5, #ARGV, 2 do
  if is_own and is_kept[field(ARGV[i])] and redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    redis.call('HSET', KEYS[8], field(ARGV[i]), ARGV[i + 1])
    written = written + 1
  end
end
local is_sorted = redis.call('HEXISTS', KEYS[7], 'rest') == 0
for _, name in ipairs(is_sorted and redis.call('HKEYS', KEYS[8]) or {}) do
  if not is_kept[name] then redis.call('HDEL', KEYS[8], name) end
end
if redis.call('EXISTS', KEYS[8]) == 1 then redis.call('SADD', KEYS[4], ARGV[2]) end
return {written, digest}
"""
)

# Uses pcall, so that a key of a wrong type does not stop a deletion.
FORGET_ALL = (
    ALL_SETS
    + """
local function forget_all(prefix)
  local function length(command, key)
    local answer = redis.pcall(command, key)
    return type(answer) == 'number' and answer or 0
  end
  local counts = {length('HLEN', KEYS[1]), 0, 0, 0}
  for i, command in ipairs({'LLEN', 'HLEN', 'HLEN'}) do
    counts[4 + i] = length(command, prefix .. ({'shown', 'pages', 'outcomes'})[i])
  end
  local doomed = {unpack(KEYS, 1, 7)}
  for _, key in ipairs(UNSORTED) do doomed[#doomed + 1] = key end
  for _, name in ipairs({'shown', 'pages', 'outcomes'}) do doomed[#doomed + 1] = prefix .. name end
  local spaces = redis.pcall('SMEMBERS', KEYS[4])
  if spaces.err then counts[4] = 1 end
  for _, space in ipairs(spaces.err and {} or spaces) do
    counts[2] = counts[2] + length('HLEN', prefix .. 'states:' .. space)
    doomed[#doomed + 1] = prefix .. 'states:' .. space
    doomed[#doomed + 1] = prefix .. 'retrieval:' .. space
  end
  for _, key in ipairs(doomed) do counts[3] = counts[3] + redis.call('UNLINK', key) end
  return counts
end
"""
)

# ARGV: prefix of the user's keys, seconds to keep the tombstone, prefix of doomed keys, size  ->  numbers of deleted
# events, states and keys, 1 if the set of spaces is damaged (then keys of spaces are left), numbers of lists, pages
# and outcomes, the second of the deletion, and 1 if a wrapped key was removed. KEYS[8]: the tombstone. Keys of more
# elements than the size only get a name of doomed keys, which is one step; `DRAIN` empties them, because to free many
# elements at once slows the server down.
FORGET_USER = (
    FORGET_ALL
    + """
local now, num_events, moved = tonumber(redis.call('TIME')[1]), redis.pcall('HLEN', KEYS[1]), 0
local is_shredded = redis.pcall('HDEL', KEYS[7], 'key')
for i, key in ipairs({KEYS[1], KEYS[7], unpack(ALL_SETS)}) do
  local size = redis.pcall(i <= 2 and 'HLEN' or 'ZCARD', key)
  if type(size) == 'number' and size > tonumber(ARGV[4]) then
    redis.call('RENAME', key, ARGV[3] .. i)
    moved = moved + 1
  end
end
local counts = forget_all(ARGV[1])
counts[1] = type(num_events) == 'number' and num_events or 0
counts[3] = counts[3] + moved
if tonumber(ARGV[2]) > 0 then redis.call('SET', KEYS[8], now, 'EX', ARGV[2]) end
counts[#counts + 1] = now
counts[#counts + 1] = is_shredded == 1 and 1 or 0
return counts
"""
)

NUM_DOOMED = 8  # keys that may have many elements

# KEYS: doomed keys; ARGV: number of elements, place in the first hash  ->  the next place there; nothing: all are
# empty. Goes through a hash by HSCAN, because HRANDFIELD takes ever longer in a hash that gets empty. Members of a set
# are removed by name: Valkey's ZREMRANGEBYRANK builds the table of a set that has become much smaller anew, at once.
DRAIN = (
    IN_PORTIONS
    + """
for _, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'zset' then
    in_portions('ZREM', key, redis.call('ZRANGE', key, 0, ARGV[1] - 1))
    return '0'
  elseif kind == 'hash' then
    local place, found = unpack(redis.call('HSCAN', key, ARGV[2], 'COUNT', ARGV[1]))
    local fields = {}
    for i = 1, #found, 2 do fields[#fields + 1] = found[i] end
    in_portions('HDEL', key, fields)
    return redis.call('EXISTS', key) == 1 and place or '0'
  end
end
return false
"""
)

# ARGV: name of the table, table, prefix of the user's keys, event_id, the body that the client has seen, member and
# item digest of that body  ->  1 (deleted), 0 (unknown) or −1 (another body is stored now)
FORGET_EVENT = (
    EVENT_ID
    + FIELD
    + HMGET
    + SORT
    + FORGET_ALL
    + TAKE_OUT
    + """
local prefix, id, body, member, digest = unpack(ARGV, 3)
local stored = redis.call('HGET', KEYS[1], id)
if not stored then return 0 end
if stored ~= body then return -1 end
take_out(prefix, id, body, member, digest)
redis.call('HDEL', KEYS[1], id)
if redis.call('EXISTS', KEYS[1]) == 0 then forget_all(prefix) else keep_sorted() end
return 1
"""
)

# ARGV: name of the table, table, prefix of the user's keys, event_id, body, timestamp, order member, item digest, the
# body that the client has seen under this id ('' for none), member and item digest of that one, wrapped key, whether it
# is new  ->  1 (new), 2 (it has taken the place of the event that was stored under its id), 0 (that event has the same
# body), 3 (not stored: the user was deleted since) or −1 (another body or key is stored now). KEYS[8]: the tombstone.
REPLACE = (
    EVENT_ID
    + DELETED_AT
    + FIELD
    + HMGET
    + MAY_WRITE
    + SORT
    + ADD
    + TAKE_OUT
    + """
local prefix, id, body, timestamp, member, digest, seen_body, old_member, old_digest, wrapped, is_new = unpack(ARGV, 3)
local stored = redis.call('HGET', KEYS[1], id)
if stored == body then return 0 end
if (stored or '') ~= seen_body then return -1 end
local deleted = deleted_at(KEYS[8])
if not stored and deleted and tonumber(timestamp) <= deleted then return 3 end
local may, must_put = may_write(wrapped, is_new)
if not may then return -1 end
if must_put then redis.call('HSET', KEYS[7], 'key', wrapped) end
local known = keep_sorted()
if stored then
  take_out(prefix, id, stored, old_member, old_digest)
  redis.call('HINCRBY', KEYS[7], 'revision', 1)
end
add_events({{id = id, body = body, score = timestamp, member = member, digest = digest}})
if is_outdated(known) then redis.call('HDEL', FACTS, 'table') end
keep_sorted()
return stored and 2 or 1
"""
)

# KEYS: any  ->  nothing. A write in a script, as every change of a user is.
PROBE = "redis.call('SET', KEYS[1], '')"
