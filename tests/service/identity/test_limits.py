"""Rates of keys: counted together by all replicas in one key of the store, open where the store is unavailable."""

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.identity.limits import Limits, headers_of
from service.identity.principal import Principal
from service.identity.rates import parse
from service.store.client import MemoryStore


def key(rate: str, name: str = "key_1") -> Principal:
    return Principal(name, rate_limit=rate)


async def admitted(limits: Limits, principal: Principal, times: int) -> int:
    return sum([(await limits.count(principal))[1] is None for _ in range(times)])


async def test_replicas_count_together_and_keys_for_themselves(store: MemoryStore, raw: Redis) -> None:
    one, other = Limits(store.run), Limits(store.run)
    assert await admitted(one, key("10/hour"), 6) == 6
    assert await admitted(other, key("10/hour"), 6) == 4
    assert await admitted(one, key("10/hour", "key_2"), 1) == 1
    names = await raw.keys("*")
    assert len(names) == 2, "one key of the store for each limit, or Redis Cluster refuses the script"
    assert all(b"{+rate:" in name for name in names) and 0 < await raw.ttl(names[0]) <= 7200


async def test_what_is_left_and_when_more_comes_is_told(store: MemoryStore) -> None:
    limits = Limits(store.run)
    standings, refusal = await limits.count(key("2/minute; 100/day"))
    assert refusal is None
    policy, state = (value.decode() for _, value in headers_of(standings))
    assert policy == '"2-per-60s";q=2;w=60, "100-per-86400s";q=100;w=86400'
    assert state.startswith('"2-per-60s";r=1;t=') and '"100-per-86400s";r=99;t=' in state
    await limits.count(key("2/minute; 100/day"))
    standings, refusal = await limits.count(key("2/minute; 100/day"))
    assert refusal is not None and refusal.retry_after_s is not None and 1 <= refusal.retry_after_s <= 60
    assert standings[0].remaining == 0 and "2 requests in 60 s" in str(refusal)


async def test_a_window_slides_so_a_burst_at_its_border_is_no_double_one(store: MemoryStore, raw: Redis) -> None:
    """The window before was full: its requests leave room only as it moves out of sight."""
    limits = Limits(store.run)
    await limits.count(key("30/hour"))
    (name,) = await raw.keys("*")
    number, share_gone = divmod(time.time() / 3600, 1)
    await raw.hset(name, mapping={"number": int(number) - 1, "before": 0, "count": 30})
    assert abs(await admitted(limits, key("30/hour"), 40) - 30 * share_gone) <= 1.1


async def test_a_large_limit_is_taken_in_parts_and_never_exceeded(store: MemoryStore) -> None:
    num_calls = 0

    async def run(commands: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        return await store.run(commands)

    one, other = Limits(run), Limits(run)
    taken = [await admitted(each, key("1000/hour"), 400) for each in (one, other)]
    assert taken == [400, 400] and num_calls == 16
    rest = await admitted(one, key("1000/hour"), 300) + await admitted(other, key("1000/hour"), 300)
    assert rest == 200, "the last requests are taken one by one"


async def test_what_was_taken_is_not_used_in_a_later_window(store: MemoryStore) -> None:
    limits = Limits(store.run)
    assert await admitted(limits, key("40/second"), 1) == 1
    await asyncio.sleep(0.3)
    (taken,) = limits._taken.values()
    assert taken.left == 1
    await limits.count(key("40/second"))
    assert limits._taken[next(iter(limits._taken))].until > taken.until


async def test_requests_are_admitted_while_the_store_is_away(store: MemoryStore) -> None:
    async def away(commands: Any) -> Any:
        raise StoreUnavailable("away")

    assert await Limits(away).count(key("1/hour")) == ([], None)


async def test_a_damaged_window_refuses_nobody(store: MemoryStore, raw: Redis) -> None:
    limits = Limits(store.run)
    await limits.count(key("1/hour"))
    (name,) = await raw.keys("*")
    await raw.delete(name)
    await raw.set(name, b"text")
    assert (await limits.count(key("1/hour")))[1] is None


@pytest.mark.parametrize(
    "text", ["many", "0/second", "1/second;2/second;3/second;4/second", "-1/second", "1/fortnight"]
)
def test_other_texts_are_no_rates(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_rate_or_an_error(text: str) -> None:
    try:
        assert len(parse(text)) <= 3
    except ValueError as error:
        assert str(error).startswith("must be")
