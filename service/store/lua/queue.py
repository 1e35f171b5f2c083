"""The Lua scripts of the encode queue: a stream of users, and two hashes beside it, in one slot.

`waiting`: user -> number of entries in the stream, so that its size is the number of users who wait. `queued`: user ->
id of the entry that no worker has begun. Knows no client. The comment above each script says: arguments -> answer.
"""

# What another program wrote into hashes of numbers counts as nothing: `sum` is the answer to an addition of `by`, and
# where the stored number is damaged, it begins anew. Other errors are raised.
NUMBERS = """
local function is_damaged(answer)
  if type(answer) ~= 'table' then return false end
  for _, words in ipairs({'^WRONGTYPE', 'hash value', 'overflow', 'Infinity'}) do
    if string.find(answer.err, words) then return true end
  end
  error(answer)
end
local function sum_or_anew(sum, key, field, by)
  if not is_damaged(sum) then return tonumber(sum) end
  if redis.call('TYPE', key).ok ~= 'hash' then redis.call('DEL', key) end
  redis.call('HSET', key, field, by)
  return by
end
"""

# Adds an entry, unless the user has one that no worker has begun: whoever begins it reads the events that are stored by
# then. So the stream has at most one entry for each user, and one for each that is in work, however many events come.
# A stream of a wrong type begins anew; users whose entries it may have had are encoded when they are read next.
REQUEST = (
    NUMBERS
    + """
local function request(stream, waiting, queued, user)
  local entry = redis.pcall('HGET', queued, user)
  if is_damaged(entry) then redis.call('DEL', queued)
  elseif entry and redis.pcall('XRANGE', stream, entry, entry)[1] then return end
  local added = redis.pcall('XADD', stream, '*', 'user', user)
  if is_damaged(added) then
    redis.call('DEL', stream, waiting, queued)
    added = redis.call('XADD', stream, '*', 'user', user)
  end
  sum_or_anew(redis.pcall('HINCRBY', waiting, user, 1), waiting, user, 1)
  redis.call('HSET', queued, user, added)
end
"""
)

# KEYS: stream, waiting, queued, (events of each user)*; ARGV: users  ->  nothing. With the keys of events, users
# without events are left out: they were deleted a moment ago.
REQUEST_ENCODING = (
    REQUEST
    + """
for i, user in ipairs(ARGV) do
  if not KEYS[3 + i] or redis.call('EXISTS', KEYS[3 + i]) == 1 then request(KEYS[1], KEYS[2], KEYS[3], user) end
end
"""
)

# KEYS: queued; ARGV: (user, entry id)*  ->  nothing. A worker begins these entries, and reads the events after this.
BEGUN = """
for i = 1, #ARGV, 2 do
  if redis.pcall('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""

# Entries as (entry id, user), false for an entry that has no user: it was not written by AutoMR.
WITH_USERS = """
local function with_users(entries)
  for i, entry in ipairs(entries) do
    entries[i] = {entry[1], entry[2] and entry[2][1] == 'user' and entry[2][2]}
  end
  return entries
end
"""

# KEYS: stream; ARGV: group, consumer, idle ms, count  ->  (entry id, user)* of entries that no worker has renewed for
# that long; the consumer owns them from then on. Creates a missing group, so that a read from it works, and replaces a
# stream of a wrong type.
CLAIM = (
    WITH_USERS
    + """
local created = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if created.err and string.find(created.err, '^WRONGTYPE') then
  redis.call('DEL', KEYS[1])
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
end
return with_users(redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], '0', 'COUNT', ARGV[4])[2])
"""
)

# KEYS: stream; ARGV: group, consumer, count  ->  (entry id, user)* of entries that the consumer owns already.
UNFINISHED = (
    WITH_USERS
    + """
local found = redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '0')
if not found or found.err then return {} end
return with_users(found[1][2])
"""
)

# KEYS: stream; ARGV: group, ms  ->  number of consumers that were idle for less
CONSUMERS = """
local consumers, busy = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]), 0
if consumers.err then return 0 end
for _, each in ipairs(consumers) do
  for i = 1, #each, 2 do
    if each[i] == 'idle' and each[i + 1] < tonumber(ARGV[2]) then busy = busy + 1 end
  end
end
return busy
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

# KEYS: stream, waiting, queued; ARGV: group, entry ids  ->  number of entries removed
ENCODED = (
    NUMBERS
    + """
local removed = 0
for i = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  if entry then
    local user = entry[2][2]
    local left = user and sum_or_anew(redis.pcall('HINCRBY', KEYS[2], user, -1), KEYS[2], user, -1)
    if user and left <= 0 then redis.call('HDEL', KEYS[2], user) end
    if user and redis.pcall('HGET', KEYS[3], user) == ARGV[i] then redis.call('HDEL', KEYS[3], user) end
    removed = removed + redis.call('XDEL', KEYS[1], ARGV[i])
  end
end
if redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[2], KEYS[3]) end
return removed
"""
)

# KEYS: stream  ->  milliseconds since its oldest entry was added; an entry id begins with the server's time in ms
BACKLOG_AGE = """
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not oldest then return 0 end
local now = redis.call('TIME')
return math.max(0, now[1] * 1000 + math.floor(now[2] / 1000) - string.match(oldest[1], '^%d+'))
"""
