"""Live counts in Redis: how much users had an item, or two items near each other, on each day.

A *cell* is 21 bytes: the day (5 digits, days since 1970) and the `item_digest` of two items; two equal digests count
one item. The record of a user is the letter w, then the sorted cells that the newest events of this user give (see
`usecases/counting.py`), each with its weight: 4 digits, in 1/128. Earlier versions wrote cells alone, which weigh 1.
The hash of a day holds, for each pair of digests, the sum of the weights of this cell over all users. Such sums have
no rounding errors, so a count is zero when nobody gives its cell.

A record is replaced as a whole, and the counts follow by the difference, in one script. So the counts are always those
of the records: a retry, a late event or a deleted event cannot count twice or get lost. Knows no client.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.store.events import DIGEST_BYTES
from service.store.lua.queue import NUMBERS

KEPT_DAYS = 180  # up to the newest day that was counted; older days are deleted
SECONDS_PER_DAY = 86_400
PARTS = 128  # a weight is a multiple of 1/128
_LAST_DAY, _MOST_PARTS = 99_999, 9_999
_MOST_EVENTS = 2**53  # of a day; more was not counted by us
_NUMBER = re.compile(rb"\d+(\.\d+)?")
_MOST_DIGITS = 18
_PAIR_BYTES = 2 * DIGEST_BYTES

# KEYS: record of the user, days, and, unless it is a cluster, the events of the user: without events the record is
# empty, so that a worker that is late does not restore what a deletion removed. ARGV: prefix of the hashes of days,
# days that are kept, the new record  ->  number of counts that changed. `days` maps each day that has counts to the
# number of changes of its hash. The newest day decides which days are too old, not the clock, so that the counts
# follow from the events alone. Cells of days after tomorrow are left out: one event with a time of the far future
# would make all other days too old. What is damaged (another program wrote it) counts as nothing, and is replaced.
COUNT = (
    NUMBERS
    + """
local CELL, DAY, WEIGHT, PARTS = 21, 5, 4, 128
local prefix, num_kept, new = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if KEYS[3] and redis.call('EXISTS', KEYS[3]) == 0 then new = '' end
local old = redis.pcall('GET', KEYS[1]) or ''
if is_damaged(old) then
  redis.call('DEL', KEYS[1])
  old = ''
end
local tomorrow = math.floor(redis.call('TIME')[1] / 86400) + 1
local function day_of(cell) return tonumber(string.sub(cell, 1, DAY)) end
local function each_cell(record, visit)
  local has_weights = string.sub(record, 1, 1) == 'w'
  local first, size = has_weights and 2 or 1, has_weights and CELL + WEIGHT or CELL
  for i = first, #record - size + 1, size do
    local parts = has_weights and tonumber(string.sub(record, i + CELL, i + size - 1)) or PARTS
    local cell = string.sub(record, i, i + CELL - 1)
    if not day_of(cell) or not parts or not visit(cell, parts / PARTS) then return i - 1 end
  end
  return #record
end
local step, newest = {}, 0
new = string.sub(new, 1, each_cell(new, function(cell, weight)
  if day_of(cell) > tomorrow then return false end
  step[cell] = weight
  newest = math.max(newest, day_of(cell))
  return true
end))
if old == new or (old == '' and new == 'w') then return 0 end
each_cell(old, function(cell, weight)
  step[cell] = (step[cell] or 0) - weight
  return true
end)
local days = redis.pcall('HKEYS', KEYS[2])
if days.err and is_damaged(days) then days = {} end
for _, day in ipairs(days) do
  if (tonumber(day) or tomorrow + 1) <= tomorrow then newest = math.max(newest, tonumber(day)) end
end
for _, day in ipairs(days) do
  local number = tonumber(day)
  if not number or number > tomorrow or number <= newest - num_kept then
    redis.call('UNLINK', prefix .. day)
    redis.call('HDEL', KEYS[2], day)
  end
end
local num_changed, changed_days = 0, {}
for cell, by in pairs(step) do
  local day = day_of(cell)
  if by ~= 0 and day > newest - num_kept then
    local key, pair = prefix .. day, string.sub(cell, DAY + 1)
    local sum = sum_or_anew(redis.pcall('HINCRBYFLOAT', key, pair, by), key, pair, by)
    if sum <= 0 then redis.call('HDEL', key, pair) end
    num_changed = num_changed + 1
    changed_days[day] = true
  end
end
for day in pairs(changed_days) do sum_or_anew(redis.pcall('HINCRBY', KEYS[2], day, 1), KEYS[2], day, 1) end
if new == '' or new == 'w' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], new) end
return num_changed
"""
)


class Counts(NamedTuple):
    """`pairs` (n, 2) uint64: item digests, equal for the count of one item. `counts` (n,)."""

    pairs: NDArray[np.uint64]
    counts: NDArray[np.float64]


def day_of(timestamp: int) -> int:
    return timestamp // SECONDS_PER_DAY


def cell(day: int, first: bytes, second: bytes) -> bytes | None:
    """None for a day that no honest event has. The order of the two digests does not matter."""
    return b"%05d" % day + min(first, second) + max(first, second) if 0 <= day <= _LAST_DAY else None


def record(cells: Mapping[bytes, float]) -> bytes:
    """Cells and their weights, each at most once a user. A weight that rounds to nothing counts nothing."""
    parts = {each: min(round(PARTS * weight), _MOST_PARTS) for each, weight in cells.items()}
    found = sorted(each + b"%04d" % number for each, number in parts.items() if number > 0)
    return b"w" + b"".join(found) if found else b""


def decode_counts(found: Mapping[bytes, bytes]) -> Counts:
    """The hash of one day. Fields that are not ours are left out."""
    own = {
        pair: float(count)
        for pair, count in found.items()
        if len(pair) == _PAIR_BYTES and _NUMBER.fullmatch(count) and float(count) <= _MOST_EVENTS
    }
    pairs = np.frombuffer(b"".join(own), dtype="<u8").reshape(-1, 2)
    return Counts(pairs, np.array(list(own.values()), dtype=np.float64))


def decode_days(found: Mapping[bytes, bytes]) -> dict[int, int]:
    """Day → number of changes of its counts."""
    return {int(day): int(changes) for day, changes in found.items() if _is_number(day) and _is_number(changes)}


def _is_number(text: bytes) -> bool:
    return text.isdigit() and len(text) <= _MOST_DIGITS
