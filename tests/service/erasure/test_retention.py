"""Retention keeps of each user the newest events within a time, and what is kept is as if the others had never come."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from service.erasure import retention
from service.erasure.retention import Pruned, prune
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.events import Event
from tests.service.real import NOW, Service, history, states_from_scratch
from tests.service.store.test_client import recalled

START = 1_000


def events_of(user_id: str, times: Sequence[int]) -> list[Event]:
    return [Event(f"e{number}", user_id, f"i{number}", START + time) for number, time in enumerate(times)]


async def kept_of(store: MemoryStore, user_id: str) -> list[str]:
    return [event.event_id for event in await recalled(store, user_id, limit=10**6)]


@given(
    st.lists(st.integers(0, 9), max_size=12),
    st.tuples(st.none() | st.integers(0, 10), st.none() | st.integers(1, 12)),
    st.integers(1, 4),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_newest_events_within_the_time_are_kept(
    store: MemoryStore, raw: Redis, times: list[int], limits: tuple[int | None, int | None], step: int
) -> None:
    await raw.flushdb()
    before, most = None if limits[0] is None else START + limits[0], limits[1]
    events = events_of("u", times)
    if events:
        await store.append(events)
    in_order = await kept_of(store, "u")
    late = [event.event_id for event in events if before is None or event.timestamp >= before]
    expected = [name for name in in_order if name in late][-(most or len(in_order)) :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "_PER_STEP", step)
        trial = await prune(store, before=before, most=most, is_trial=True)
        assert await kept_of(store, "u") == in_order, "a trial deleted events"
        done = await prune(store, before=before, most=most)
        assert await kept_of(store, "u") == expected
        assert done == trial and done.events == len(in_order) - len(expected)
        assert (await prune(store, before=before, most=most)).events == 0, "a second walk found more"


async def test_memory_is_that_of_the_events_that_are_left(service: Service) -> None:
    await service.submit([*history(12), *history(3, "other")], "visible")
    assert await prune(service.store, before=NOW + 1, most=7) == Pruned(looked_at=2, users=2, events=6)
    await service.work_off()
    for user_id, names in (("u", range(5, 12)), ("other", range(1, 3))):
        remembered = await service.store.recall(user_id, service.space, 100)
        assert [each.event.event_id for each in remembered] == [f"e{number:03}" for number in names]
        expected = states_from_scratch([each.event for each in remembered], service.bundle)
        kept = service.bundle.codec.decode_many([each.record for each in remembered])
        assert kept.is_valid.all(), "a user whose events went was not encoded again"
        for each, fingerprint in zip(remembered, kept.fingerprints, strict=True):
            assert fingerprint.tobytes() == expected[each.event.event_id][1]


async def test_the_command_prunes_and_says_what_it_needs(
    raw: Redis, store: MemoryStore, valkey: EmbeddedServer
) -> None:
    await store.append(events_of("u", range(5)))

    async def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "service", "prune", "--store", valkey.url, *flags]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)

    without, trial, done = [await run(), await run("--most", "2", "--dry-run"), await run("--most", "2")]
    assert without.returncode == 2 and "--days or --most" in without.stderr
    assert json.loads(trial.stdout) == json.loads(done.stdout) == {"looked_at": 1, "users": 1, "events": 3}
    assert await kept_of(store, "u") == ["e3", "e4"]
    gone = await run("--days", "30")
    assert json.loads(gone.stdout)["events"] == 2 and not await raw.exists("automr:{u}:events")
