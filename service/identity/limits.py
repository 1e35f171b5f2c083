"""Rates and quotas of keys, counted in the store, so that all replicas count together. By the library `limits`.

A limit is text such as `100/second; 1000000/month`. The strategy is a sliding window of two counters. They are in one
key of the store, so it works on Redis Cluster. One round trip counts and tells what is left.

The store syncs each write to disk, which takes milliseconds. So of a limit of `2 * _PARTS` requests or more, a process
takes several at once: up to a part of the limit stays unused in each process. Where the store is unavailable, every
request is admitted: a shop without recommendations costs more than a caller over its rate.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import structlog
from limits import RateLimitItem
from limits.aio.storage import Storage
from limits.aio.storage.base import SlidingWindowCounterSupport
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from service.errors import RateLimited, StoreCorrupt, StoreUnavailable
from service.identity.principal import Principal
from service.identity.rates import parse
from service.identity.stored import Run
from service.logs import RepeatedWarnings
from service.store.keys import rate_key

log = structlog.get_logger("service.identity.limits")
repeated = RepeatedWarnings(log)

_PARTS, _MOST_TAKEN = 20, 1000  # a process takes a twentieth of a limit at once, at most so many requests
_SHORTER = 4  # what is taken lasts for a quarter of the window
_MOST_REMEMBERED = 10_000

# KEYS: window; ARGV: limit, seconds of the window, amount
# ->  1 if admitted, count of the window before, seconds left of this one as text, count of this one
_COUNT = """
local now = redis.call('TIME')
local seconds = tonumber(ARGV[2])
local number = math.floor(now[1] / seconds)
local left = (number + 1) * seconds - now[1] - now[2] / 1000000
local known = redis.call('HMGET', KEYS[1], 'number', 'before', 'count')
local before, count = tonumber(known[2] or 0), tonumber(known[3] or 0)
if tonumber(known[1] or -1) ~= number then
  if tonumber(known[1] or -1) == number - 1 then before = count else before = 0 end
  count = 0
end
local is_admitted = 0
if before * left / seconds + count + ARGV[3] <= tonumber(ARGV[1]) then
  is_admitted = 1
  count = count + ARGV[3]
  redis.call('HSET', KEYS[1], 'number', number, 'before', before, 'count', count)
  redis.call('EXPIRE', KEYS[1], 2 * seconds)
end
return {is_admitted, before, tostring(left), count}
"""


class Standing(NamedTuple):
    """How a limit stands after a request: `remaining` requests, of which the next comes free after `reset_s`."""

    limit: RateLimitItem
    remaining: int
    reset_s: int


class _Windows(Storage, SlidingWindowCounterSupport):
    """The library's interface to the store. What a hit tells is kept until its standing is asked for."""

    STORAGE_SCHEME = None

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._known: dict[str, tuple[int, float, int, float]] = {}

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        (answer,) = await self._run([("EVAL", _COUNT, 1, rate_key(key), limit, expiry, amount)])
        is_admitted, before, left, count = answer
        self._known[key] = int(before), float(left), int(count), float(left) + expiry
        return bool(is_admitted)

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        return self._known.pop(key, (0, 0.0, 0, 0.0))

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        await self._run([("UNLINK", rate_key(key))])

    # What other strategies need.

    @property
    def base_exceptions(self) -> type[Exception]:
        return StoreUnavailable

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        raise NotImplementedError

    async def get(self, key: str) -> int:
        raise NotImplementedError

    async def get_expiry(self, key: str) -> float:
        raise NotImplementedError

    async def check(self) -> bool:
        raise NotImplementedError

    async def reset(self) -> int | None:
        raise NotImplementedError

    async def clear(self, key: str) -> None:
        raise NotImplementedError


@dataclass
class _Taken:
    """Requests that are counted in the store already, and may be used until `until`."""

    left: int
    until: float
    remaining: int
    resets_at: float


class Limits:
    """One for each store of a process, for one event loop."""

    def __init__(self, run: Run) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(_Windows(run))
        self._taken: OrderedDict[tuple[str, RateLimitItem], _Taken] = OrderedDict()

    async def count(self, principal: Principal) -> tuple[list[Standing], RateLimited | None]:
        """Counts a request of this caller: how its limits stand, and the refusal if one is used up."""
        standings: list[Standing] = []
        try:
            for limit in parse(principal.rate_limit):
                taken = await self._take(limit, principal.key_id)
                reset_s = max(1, ceil(taken.resets_at - time.time()))
                standings.append(Standing(limit, taken.remaining + max(taken.left, 0), reset_s))
                if taken.left < 0:
                    detail = f"This key may send {limit.amount} requests in {limit.get_expiry()} s."
                    return standings, RateLimited(detail, retry_after_s=reset_s)
        except (StoreUnavailable, StoreCorrupt):
            repeated.warning("store unavailable: rates of keys are not limited")
            return [], None
        return standings, None

    async def _take(self, limit: RateLimitItem, key_id: str) -> _Taken:
        """One request, from those that are taken or from the store. `left` is negative if there is none."""
        name = key_id, limit
        taken = self._taken.get(name)
        if taken is not None and taken.left > 0 and taken.until > time.monotonic():
            taken.left -= 1
            return taken
        amount = max(1, min(limit.amount // _PARTS, _MOST_TAKEN))
        until = time.monotonic() + limit.get_expiry() / _SHORTER
        is_admitted = await self._limiter.hit(limit, key_id, cost=amount)
        if not is_admitted and amount > 1:
            amount, is_admitted = 1, await self._limiter.hit(limit, key_id)
        resets_at, remaining = await self._limiter.get_window_stats(limit, key_id)
        taken = self._taken[name] = _Taken(amount - 1 if is_admitted else -1, until, int(remaining), resets_at)
        self._taken.move_to_end(name)
        if len(self._taken) > _MOST_REMEMBERED:
            self._taken.popitem(last=False)
        return taken


def headers_of(standings: Sequence[Standing]) -> list[tuple[bytes, bytes]]:
    """`RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers."""
    if not standings:
        return []
    names = [f'"{each.limit.amount}-per-{each.limit.get_expiry()}s"' for each in standings]
    pairs = list(zip(names, standings, strict=True))
    policy = ", ".join(f"{name};q={each.limit.amount};w={each.limit.get_expiry()}" for name, each in pairs)
    state = ", ".join(f"{name};r={each.remaining};t={each.reset_s}" for name, each in pairs)
    return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]
