"""The catalogue overlay in Redis: items that were changed while the service runs, and the order of these changes.

`automr:items` holds the newest record of each item, `changes` the version of this record. A version is a number that
grows with each change of any item, so "what changed since version v" is a range of `changes`: reading it costs what
changed. An item has one record and one version however often it changes, so nothing has to be compacted. Versions are
microseconds of the server's clock, or one more than the last: they grow also after the store was emptied.

Scripts; all keys are in one hash slot. Knows no client.
"""

from typing import NamedTuple

# KEYS: records, changes, version  ->  next(): a new version as text; Lua would write a large number with an exponent
_NEXT = """
local last = tonumber(redis.call('GET', KEYS[3]) or '0') or 0
if not (last >= 0 and last < 2 ^ 53) then last = 0 end  -- another program wrote it
local function next()
  local time = redis.call('TIME')
  last = math.max(last + 1, time[1] * 1000000 + time[2])
  local version = string.format('%.0f', last)
  redis.call('SET', KEYS[3], version)
  return version
end
"""

# ARGV: version that the caller has loaded, (item id, record, '1' if the record depends on the item's last one)*  ->
# the last new version; nothing is written, and the answer is false, if such an item has changed since.
PUT = (
    _NEXT
    + """
for i = 2, #ARGV, 3 do
  local version = redis.call('ZSCORE', KEYS[2], ARGV[i])
  if ARGV[i + 2] == '1' and version and tonumber(version) > tonumber(ARGV[1]) then return false end
end
for i = 2, #ARGV, 3 do
  redis.call('ZADD', KEYS[2], next(), ARGV[i])
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return string.format('%.0f', last)
"""
)

# ARGV: version, limit  ->  item ids, versions, records (false where missing) of the first changes after the version.
# Records without a version get one: an earlier release of AutoMR, or another program, wrote them. So do those with one
# that is still to come: whoever read it would take no change for a newer one.
CHANGES = (
    _NEXT
    + """
if redis.call('HLEN', KEYS[1]) ~= redis.call('ZCARD', KEYS[2]) then
  for _, id in ipairs(redis.call('HKEYS', KEYS[1])) do
    if not redis.call('ZSCORE', KEYS[2], id) then redis.call('ZADD', KEYS[2], next(), id) end
  end
end
local time = redis.call('TIME')
local most = string.format('(%.0f', math.max(last, time[1] * 1000000 + time[2]))
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], most, '+inf', 'LIMIT', 0, 1000)) do
  redis.call('ZADD', KEYS[2], next(), id)
end
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local ids, versions, records = {}, {}, {}
for i = 1, #found, 2 do
  ids[#ids + 1] = found[i]
  versions[#versions + 1] = string.format('%.0f', tonumber(found[i + 1]))
end
if #ids > 0 then records = redis.call('HMGET', KEYS[1], unpack(ids)) end
return {ids, versions, records}
"""
)

MOST_AT_ONCE = 1000  # changes that one call reads; Lua's unpack() has a limit of some thousands


class StoredItem(NamedTuple):
    """The newest record of an item: bytes that another program may have written."""

    item_id: str
    version: int
    record: bytes


class NewRecord(NamedTuple):
    """`is_based_on_last`: the record was made from the item's last one, which must not have changed since."""

    item_id: str
    record: bytes
    is_based_on_last: bool = False
