"""A flood of requests: each is answered in time or refused at once, and the flood leaves nothing behind.

Nothing here depends on the speed of the machine: what counts are steps of a request, batches of the model, and times
without those in which the whole event loop stood still.
"""

import asyncio
import statistics
import time
import types
from collections.abc import AsyncIterator, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from service.engine.messages import Result
from service.engine.model import Model
from service.errors import Overloaded
from service.identity.keys import new_secret
from service.store.embedded.server import EmbeddedServer
from service.usecases.ranking.requests import Recommendation
from tests.service.engine.test_shares import acting
from tests.service.real import ModelThread, Service, ask, history, open_app, open_service

DEADLINE_S = 0.4
SLACK_S = 0.2  # the flood's own tasks share the event loop with what is measured
LONG_MS = 60_000
NUM_LOUD, NUM_QUIET = 40, 20
MAX_BATCH = 16
KEYS = [new_secret(), new_secret()]  # of a quiet caller and a loud one
BATCH_S, JOB_S = 0.02, 0.005  # of a slow model


class Outcome(NamedTuple):
    """`answer`: None if the request was refused. `waits`: how often it has waited for something."""

    answer: Recommendation | None
    began: float
    ended: float
    waits: int


@types.coroutine
def counted(work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, tuple[Any, int]]:
    """The result of `work`, and how often it has waited."""
    step, argument, waits = work.send, None, 0
    while True:
        try:
            wish = step(argument)
        except StopIteration as end:
            return end.value, waits
        waits += 1
        try:
            yield wish
            step, argument = work.send, None
        except BaseException as error:  # a cancellation, which `work` may turn into something else
            step, argument = work.throw, error


async def answer_or_none(service: Service, deadline_ms: int) -> Recommendation | None:
    try:
        return await ask(service, user_id="flooded", k=5, deadline_ms=deadline_ms)
    except Overloaded as error:
        assert error.retry_after_s
        return None


async def asked(service: Service, deadline_ms: int = int(1000 * DEADLINE_S)) -> Outcome:
    began = time.monotonic()
    answer, waits = await counted(answer_or_none(service, deadline_ms))
    return Outcome(answer, began, time.monotonic(), waits)


@asynccontextmanager
async def standstills() -> AsyncIterator[list[tuple[float, float]]]:
    """When the event loop stood still, and for how many seconds: other programs had the processor, for example."""
    found: list[tuple[float, float]] = []

    async def watch() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            found.append((began, time.monotonic() - began - 0.01))

    watching = asyncio.create_task(watch())
    try:
        yield found
    finally:
        watching.cancel()


async def test_a_flood_is_answered_in_time_or_refused_at_once(bundle_path: Path, valkey: EmbeddedServer) -> None:
    async with open_service(bundle_path, valkey.url, in_process=True, max_batch=2) as service, standstills() as still:
        await service.submit(history(9, "flooded"), "visible")
        asking = []
        for _ in range(40):
            asking += [asyncio.create_task(asked(service)) for _ in range(10)]
            await asyncio.sleep(0.01)
        outcomes = await asyncio.gather(*asking)
        afterwards = await asked(service, LONG_MS)
    refused = [each for each in outcomes if each.answer is None]
    answered = [each for each in outcomes if each.answer is not None]
    assert any(each.answer.fallback is None for each in answered if each.answer)
    assert refused, "nobody was refused: this was no flood"
    for each in answered:
        still_s = sum(seconds for at, seconds in still if each.began - seconds - 0.01 <= at <= each.ended)
        assert each.ended - each.began - still_s < DEADLINE_S + SLACK_S, "an answer came after its deadline"
    assert not any(each.waits for each in refused), "a refusal has waited for something"
    assert afterwards.answer is not None and afterwards.answer.fallback is None, "the flood has left its traces"


async def test_a_quiet_key_waits_for_small_batches_while_another_key_floods(
    bundle_path: Path, valkey: EmbeddedServer
) -> None:
    """At most for the batch that runs and for its own: a time that a quick batch bounds."""
    async with open_service(bundle_path, valkey.url, max_batch=MAX_BATCH) as service:
        await service.submit(history(9, "flooded"), "visible")
        batches = slow_batches(service.model)
        with acting("quiet"):
            alone = [await asked(service, LONG_MS) for _ in range(3)]
        with acting("loud"):
            floods = [asyncio.create_task(flood(service)) for _ in range(NUM_LOUD)]
        waited_for = []
        with acting("quiet"):
            for _ in range(NUM_QUIET):
                await asyncio.sleep(BATCH_S)
                first = max(0, len(batches) - 1)  # the one that runs
                answer = (await asked(service, LONG_MS)).answer
                assert answer is not None and answer.fallback is None, "a flood takes the place of a quiet key"
                waited_for.append(batches[first:])
        most = 2 * service.engine.admission.quick_batch() + 1
        await ended(floods)
    assert all(each.answer for each in alone)
    largest = [max(sizes) for sizes in waited_for]
    assert most <= MAX_BATCH // 3, "a batch beside a quiet key is as large as any other"
    assert max(largest[1:]) <= most, f"batches of the flood are large while a quiet key asks: {waited_for}"
    counts = statistics.median(map(len, waited_for))
    assert counts <= 3, f"a quiet key waits behind the flood: for {waited_for}"


async def test_a_key_that_asks_rarely_waits_for_one_large_batch_at_most(
    bundle_path: Path, valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks so rarely that the flood is alone again each time."""
    monkeypatch.setattr("service.engine.shares.ASKING_S", 0.0)
    async with open_service(bundle_path, valkey.url, max_batch=MAX_BATCH) as service:
        await service.submit(history(9, "flooded"), "visible")
        batches = slow_batches(service.model)
        with acting("loud"):
            floods = [asyncio.create_task(flood(service)) for _ in range(NUM_LOUD)]
        async with asyncio.timeout(30):
            while MAX_BATCH not in batches:
                await asyncio.sleep(BATCH_S)
        waited_for = []
        with acting("rare"):
            for _ in range(8):
                await asyncio.sleep(5 * BATCH_S)
                first = max(0, len(batches) - 1)  # the one that runs
                answer = (await asked(service, LONG_MS)).answer
                assert answer is not None and answer.fallback is None, (
                    "a flood takes the place of a key that asks rarely"
                )
                waited_for.append(batches[first:])
        await ended(floods)
    before = [len(list(takewhile(lambda size: size > MAX_BATCH // 2, sizes))) for sizes in waited_for]
    assert all(number < len(sizes) for number, sizes in zip(before, waited_for, strict=True)), waited_for
    assert statistics.median(before) <= 1, f"it waits for more than the large batch that runs: {waited_for}"


async def test_a_key_that_floods_related_items_slows_no_recommendation(
    bundle_path: Path, valkey: EmbeddedServer
) -> None:
    """Beside a quiet key, it has two of these in work; before, all of them, which the model works off in one batch."""
    thread = ModelThread()
    async with open_app(bundle_path, valkey.url, thread=thread, api_keys=",".join(KEYS)) as (_, client):
        assert thread.model is not None
        jobs = slow_batches(thread.model, "similar")

        async def related() -> None:
            while True:
                answer = await client.get("/items/i3/related", headers={"X-API-Key": KEYS[1]})
                assert answer.status_code == 200, answer.text

        quiet = {"X-API-Key": KEYS[0]}
        await client.post("/interactions", json={"interactions": history(9), "wait": "visible"}, headers=quiet)
        await client.post("/recommend", json={"user_id": "u"}, headers=quiet)
        floods, waited_for = [asyncio.create_task(related()) for _ in range(NUM_LOUD)], []
        for _ in range(NUM_QUIET):
            await asyncio.sleep(BATCH_S)
            first = max(0, len(jobs) - 1)
            answer = await client.post("/recommend", json={"user_id": "u", "deadline_ms": LONG_MS}, headers=quiet)
            assert answer.json()["fallback"] is None
            waited_for.append(jobs[first:])
        await ended(floods)
    assert sum(jobs) > NUM_QUIET // 2, "this was no flood"
    assert max(max(sizes, default=0) for sizes in waited_for) <= 2, f"batches of lists are large: {waited_for}"
    assert statistics.median(map(sum, waited_for)) <= 4, f"a recommendation waits behind lists: {waited_for}"


async def ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def slow_batches(model: Model, kind: str = "recommend") -> list[int]:
    """The model takes longer for one kind of jobs from now on. Returns the sizes of batches that have begun."""
    sizes: list[int] = []
    runners = model._runners
    run = runners[kind]

    def slow(jobs: Sequence[Any]) -> list[Result]:
        sizes.append(len(jobs))
        time.sleep(BATCH_S + JOB_S * len(jobs))
        return run(jobs)

    runners[kind] = slow
    return sizes


async def flood(service: Service) -> None:
    """One caller of many, who asks again at once."""
    while True:
        if (await asked(service, LONG_MS)).answer is None:
            await asyncio.sleep(0.05)
