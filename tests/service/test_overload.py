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
from pathlib import Path
from typing import Any, NamedTuple

from service.engine.messages import Result
from service.errors import Overloaded
from service.store.embedded.server import EmbeddedServer
from service.usecases.ranking.requests import Recommendation
from tests.service.engine.test_shares import acting
from tests.service.real import Service, ask, history, open_service

DEADLINE_S = 0.4
SLACK_S = 0.2  # the flood's own tasks share the event loop with what is measured
LONG_MS = 60_000
NUM_LOUD, NUM_QUIET = 40, 20
MAX_BATCH = 16
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
        batches = slow_batches(service)
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
        for task in floods:
            task.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
    assert all(each.answer for each in alone)
    largest = [max(sizes) for sizes in waited_for]
    assert most <= MAX_BATCH // 3, "a batch beside a quiet key is as large as any other"
    assert max(largest[1:]) <= most, f"batches of the flood are large while a quiet key asks: {waited_for}"
    counts = statistics.median(map(len, waited_for))
    assert counts <= 3, f"a quiet key waits behind the flood: for {waited_for}"


def slow_batches(service: Service) -> list[int]:
    """The model takes longer for recommendations from now on. Returns the sizes of batches that have begun."""
    sizes: list[int] = []
    runners = service.model._runners
    run = runners["recommend"]

    def slow(jobs: Sequence[Any]) -> list[Result]:
        sizes.append(len(jobs))
        time.sleep(BATCH_S + JOB_S * len(jobs))
        return run(jobs)

    runners["recommend"] = slow
    return sizes


async def flood(service: Service) -> None:
    """One caller of many, who asks again at once."""
    while True:
        if (await asked(service, LONG_MS)).answer is None:
            await asyncio.sleep(0.05)
