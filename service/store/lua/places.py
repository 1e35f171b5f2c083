"""Places of events in sorted sets, and the sets of a user: parts of the Lua scripts.

A place is a score (the timestamp) and a member, "<tie_key>:<event_id>". Events are in three sets (see `sorting.py`),
or, while they are sorted anew, in three others of the same names with ":old" at the end.
"""

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

# For scripts whose KEYS are those of `keys.user_keys`.
ALL_SETS = """
local SORTED = {KEYS[2], KEYS[5], KEYS[6]}
local UNSORTED = {KEYS[2] .. ':old', KEYS[5] .. ':old', KEYS[6] .. ':old'}
local ALL_SETS = {unpack(SORTED)}
for _, key in ipairs(UNSORTED) do ALL_SETS[#ALL_SETS + 1] = key end
"""

# A command with very many arguments, in portions, because Lua's unpack() has a limit.
IN_PORTIONS = """
local function in_portions(command, key, args)
  for i = 1, #args, 1000 do redis.call(command, key, unpack(args, i, math.min(i + 999, #args))) end
end
"""

# The newest `limit` members of some sets together, newest first, as rows of member, score and key. With a timestamp
# and a member only those before that place.
NEWEST = (
    NUM_BEFORE
    + """
local function newest(keys, limit, timestamp, member)
  local parts, rows = {}, {}
  for _, key in ipairs(keys) do
    local stop = timestamp == '' and redis.call('ZCARD', key) or num_before(key, timestamp, member)
    local found = stop > 0 and redis.call('ZRANGE', key, math.max(0, stop - limit), stop - 1, 'WITHSCORES') or {}
    if #found > 0 then parts[#parts + 1] = {key = key, found = found, last = #found} end
  end
  while #rows < limit do  -- the newest of the last ones of each set
    local best
    for _, part in ipairs(parts) do
      local i = part.last
      if i > 0 and (not best or is_before(best.score, best.member, part.found[i], part.found[i - 1])) then
        best = {part = part, member = part.found[i - 1], score = part.found[i]}
      end
    end
    if not best then break end
    best.part.last = best.part.last - 2
    rows[#rows + 1] = {member = best.member, score = best.score, key = best.part.key}
  end
  return rows
end
"""
)
