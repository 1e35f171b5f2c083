"""The Lua scripts of the store. Every change of a user's keys is one script, so a reader never sees half of a change.

KEYS of the scripts about one user are those of `keys.user_keys`: events, order, seen, spaces and, where the script
needs them, the states of one space. Every script uses one hash slot and only commands of Redis 7.0. A script writes
`events` last: if it is interrupted, the client's retry finds the event missing and repairs the rest. Knows no client.

The comment above each script says: arguments -> answer.
"""

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

# ARGV: (event_id, body, timestamp, order member, item digest)*  ->  for each event 1 (new), 0 (stored already), or the
# body that is stored under its id and differs in its bytes
APPEND = """
local answer = {}
for i = 1, #ARGV, 5 do
  local id, body, timestamp, member, digest = unpack(ARGV, i, i + 4)
  local stored = redis.call('HGET', KEYS[1], id)
  if not stored then
    redis.call('ZADD', KEYS[2], timestamp, member)
    redis.pcall('APPEND', KEYS[3], digest)
    redis.call('HSET', KEYS[1], id, body)
  end
  answer[#answer + 1] = not stored and 1 or stored == body and 0 or stored
end
return answer
"""

# `seen` has 8 bytes for each event, in any order. It is computed again from the events when its size is wrong: after an
# event was deleted, and where an earlier version left a hash. `digest` equals `item_digest` of `events.py`.
_SEEN = """
local function digest(body)
  local is_json, fields = pcall(cjson.decode, body)
  local item = is_json and type(fields) == 'table' and fields['item_id']
  if type(item) ~= 'string' then return string.rep('\\0', 8) end
  local bytes = string.gsub(string.sub(redis.sha1hex(item), 1, 16), '..', function(byte)
    return string.char(tonumber(byte, 16))
  end)
  return bytes
end
local function seen()
  local num_events = redis.call('HLEN', KEYS[1])
  if num_events > 0 and redis.pcall('STRLEN', KEYS[3]) ~= 8 * num_events then
    local digests = {}
    for i, body in ipairs(redis.call('HVALS', KEYS[1])) do digests[i] = digest(body) end
    redis.call('SET', KEYS[3], table.concat(digests))
  end
  return redis.call('GET', KEYS[3])
end
"""

# A digest of the newest events and their order. States computed from these events are valid while it stays the same.
_LOG = """
local function log_digest(members) return redis.sha1hex(table.concat(members, '\\n')) end
"""

# ARGV: limit, number of states, '1' to ask for `seen`  ->  event ids, bodies, records (each newest first, nil where
# missing), log digest, seen. Only the newest events have records in the answer, as many as the number of states. Reads
# all states at once, because looking up each of them in a listpack takes longer.
RECALL = (
    EVENT_ID
    + FIELD
    + HMGET
    + _SEEN
    + _LOG
    + """
local limit = tonumber(ARGV[1])
local members = limit > 0 and redis.call('ZREVRANGE', KEYS[2], 0, limit - 1) or {}
local ids = event_ids(members)
local states, pairs_of_states = {}, redis.call('HGETALL', KEYS[5])
for i = 1, #pairs_of_states, 2 do states[pairs_of_states[i]] = pairs_of_states[i + 1] end
local records = {}
for i = 1, math.min(tonumber(ARGV[2]), #ids) do records[i] = states[field(ids[i])] or false end
return {ids, hmget(KEYS[1], ids), records, log_digest(members), ARGV[3] == '1' and seen()}
"""
)

# ARGV: limit  ->  log digest of the newest `limit` events
DIGEST = _LOG + "return log_digest(redis.call('ZREVRANGE', KEYS[2], 0, ARGV[1] - 1))"

# ARGV: limit, timestamp, member of the last event shown ('' for both: start at the newest)  ->  members, bodies, score
# of the last event of this page; newest first, with one member more than the limit when another page follows. Compares
# members byte by byte, because Lua's < on strings depends on the server's locale.
PAGE = (
    EVENT_ID
    + HMGET
    + """
local function is_before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end
local limit, timestamp, shown = tonumber(ARGV[1]), ARGV[2], 0
if timestamp ~= '' then
  shown = redis.call('ZCOUNT', KEYS[2], '(' .. timestamp, '+inf')
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], timestamp, timestamp)) do
    if not is_before(member, ARGV[3]) then shown = shown + 1 end
  end
end
local members = redis.call('ZREVRANGE', KEYS[2], shown, shown + limit)
local score = members[limit] and redis.call('ZSCORE', KEYS[2], members[limit])
return {members, hmget(KEYS[1], event_ids(members)), score or false}
"""
)

# ARGV: keep, space, limit, (event_id, record)*  ->  number of records written, log digest of the newest `limit` events.
# Only events that exist and are among the newest `keep` have a state. Other states are deleted here, which bounds the
# size of a user.
SAVE_STATES = (
    EVENT_ID
    + FIELD
    + _LOG
    + """
local is_kept, written = {}, 0
local members = redis.call('ZREVRANGE', KEYS[2], 0, ARGV[3] - 1)
for i = 1, math.min(tonumber(ARGV[1]), #members) do is_kept[field(event_id(members[i]))] = true end
for i = 4, #ARGV, 2 do
  if is_kept[field(ARGV[i])] and redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    redis.call('HSET', KEYS[5], field(ARGV[i]), ARGV[i + 1])
    written = written + 1
  end
end
for _, name in ipairs(redis.call('HKEYS', KEYS[5])) do
  if not is_kept[name] then redis.call('HDEL', KEYS[5], name) end
end
if redis.call('EXISTS', KEYS[5]) == 1 then redis.call('SADD', KEYS[4], ARGV[2]) end
return {written, log_digest(members)}
"""
)

# Uses pcall, so that a key of a wrong type does not stop a deletion.
FORGET_ALL = """
local function forget_all(prefix)
  local function length(command, key)
    local answer = redis.pcall(command, key)
    return type(answer) == 'number' and answer or 0
  end
  local counts = {length('HLEN', KEYS[1]), 0, 0, 0}
  local doomed = {KEYS[1], KEYS[2], KEYS[3], KEYS[4], prefix .. 'shown', prefix .. 'pages', prefix .. 'outcomes'}
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

# ARGV: prefix of the user's keys  ->  numbers of deleted events, states and keys, and 1 if the set of spaces is
# damaged: then keys of spaces are left.
FORGET_USER = FORGET_ALL + "return forget_all(ARGV[1])"

# Takes an event out of everything but `events`. Searches all of `order`, because the tie key of an event cannot be
# computed here. Deletions and corrections are rare.
_TAKE_OUT = """
local function take_out(prefix, id)
  for _, member in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    if event_id(member) == id then redis.call('ZREM', KEYS[2], member) end
  end
  redis.call('UNLINK', KEYS[3])
  for _, space in ipairs(redis.call('SMEMBERS', KEYS[4])) do
    redis.call('HDEL', prefix .. 'states:' .. space, field(id))
    redis.call('UNLINK', prefix .. 'retrieval:' .. space)
  end
end
"""

# ARGV: prefix of the user's keys, event_id  ->  1 (deleted) or 0 (unknown)
FORGET_EVENT = (
    EVENT_ID
    + FIELD
    + FORGET_ALL
    + _TAKE_OUT
    + """
local prefix, id = ARGV[1], ARGV[2]
if redis.call('HEXISTS', KEYS[1], id) == 0 then return 0 end
take_out(prefix, id)
redis.call('HDEL', KEYS[1], id)
if redis.call('EXISTS', KEYS[1]) == 0 then forget_all(prefix) end
return 1
"""
)

# ARGV: prefix of the user's keys, event_id, body, timestamp, order member, item digest  ->  1 (new), 2 (it has taken
# the place of the event that was stored under its id) or 0 (that event has the same body)
REPLACE = (
    EVENT_ID
    + FIELD
    + _TAKE_OUT
    + """
local prefix, id, body, timestamp, member, digest = unpack(ARGV)
local stored = redis.call('HGET', KEYS[1], id)
if stored == body then return 0 end
if stored then take_out(prefix, id) else redis.pcall('APPEND', KEYS[3], digest) end
redis.call('ZADD', KEYS[2], timestamp, member)
redis.call('HSET', KEYS[1], id, body)
return stored and 2 or 1
"""
)

# `waiting` counts the entries of each user in the stream, so that its size is the number of users who wait.
# KEYS: stream, waiting; ARGV: users  ->  nothing
REQUEST_ENCODING = """
for i, user in ipairs(ARGV) do
  redis.call('HINCRBY', KEYS[2], user, 1)
  redis.call('XADD', KEYS[1], '*', 'user', user)
end
"""

# KEYS: stream; ARGV: group, consumer, idle ms, count  ->  (entry id, user)* of entries that no worker has renewed for
# that long; the consumer owns them from then on. Creates a missing group, so that a read from it works.
CLAIM = """
redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], '0', 'COUNT', ARGV[4])[2]
for i, entry in ipairs(claimed) do
  claimed[i] = {entry[1], entry[2] and entry[2][1] == 'user' and entry[2][2]}
end
return claimed
"""

# KEYS: stream; ARGV: group, consumer, count  ->  (entry id, user)* of entries that the consumer owns already.
UNFINISHED = """
local found = redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '0')
if not found or found.err then return {} end
local entries = found[1][2]
for i, entry in ipairs(entries) do
  entries[i] = {entry[1], entry[2] and entry[2][1] == 'user' and entry[2][2]}
end
return entries
"""

# KEYS: stream; ARGV: group, ms  ->  number of consumers removed: they own no entry and were idle for so long.
REMOVE_IDLE = """
local consumers, removed = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]), 0
if consumers.err then return 0 end
for _, each in ipairs(consumers) do
  local facts = {}
  for i = 1, #each, 2 do facts[each[i]] = each[i + 1] end
  if facts.pending == 0 and facts.idle >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], facts.name)
    removed = removed + 1
  end
end
return removed
"""

# KEYS: stream; ARGV: group, consumer, entry ids  ->  number of entries renewed: their idle time starts again at 0.
# Skips entries that are gone or belong to another consumer, which a plain XCLAIM would take away from it.
RENEW = """
local group, consumer, renewed = ARGV[1], ARGV[2], 0
for i = 3, #ARGV do
  local owned = redis.pcall('XPENDING', KEYS[1], group, ARGV[i], ARGV[i], 1, consumer)
  if owned[1] then
    renewed = renewed + #redis.call('XCLAIM', KEYS[1], group, consumer, 0, ARGV[i], 'JUSTID')
  end
end
return renewed
"""

# KEYS: stream, waiting; ARGV: group, entry ids  ->  number of entries removed
ENCODED = """
local removed = 0
for i = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  if entry then
    local user = entry[2][2]
    if user and redis.call('HINCRBY', KEYS[2], user, -1) <= 0 then redis.call('HDEL', KEYS[2], user) end
    removed = removed + redis.call('XDEL', KEYS[1], ARGV[i])
  end
end
if redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[2]) end
return removed
"""

# KEYS: stream  ->  milliseconds since its oldest entry was added; an entry id begins with the server's time in ms
BACKLOG_AGE = """
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not oldest then return 0 end
local now = redis.call('TIME')
return math.max(0, now[1] * 1000 + math.floor(now[2] / 1000) - string.match(oldest[1], '^%d+'))
"""

# KEYS: any  ->  nothing. A write in a script, as every change of a user is.
PROBE = "redis.call('SET', KEYS[1], '')"
