"""The torch thread: batches change nothing, nobody pays for a neighbour, and it can be stopped."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError as FutureCancelled
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.answers import Answer, Query
from model_store.bundle import Bundle
from model_store.catalogue.catalogue import Item
from model_store.inference import encode, recommend
from service.engine.engine import Engine
from service.errors import DeadlineExceeded, Draining, Overloaded
from service.metrics import Metrics
from tests.conftest import BOTH_VOCABULARIES
from tests.service.real import settings_for


@asynccontextmanager
async def running(bundle_path: Path, **settings: Any) -> AsyncIterator[Engine]:
    chosen = settings_for(bundle_path, "embedded:unused", **settings)
    engine = Engine(Bundle.open(bundle_path), chosen, Metrics())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(5)


def query(bundle: Bundle, number: int, num_results: int = 5) -> Query:
    titles = [item.title for item in bundle.catalogue.items[number : number + 3]]
    memory = encode(bundle.lm, [bundle.prompt.tokens([title]) for title in titles])[: number % 4]
    allowed = np.arange(len(bundle.catalogue)) != number
    return Query(bundle.prompt.tokens(titles), memory, allowed, num_results)


@asynccontextmanager
async def busy(engine: Engine) -> AsyncIterator[Callable[[], None]]:
    """The thread is in the middle of a call until the yielded function is called."""
    started, release = threading.Event(), threading.Event()

    def work(bundle: Bundle) -> None:
        started.set()
        release.wait(10)

    call = asyncio.create_task(engine.call(work))
    await asyncio.to_thread(started.wait, 10)
    yield release.set
    release.set()
    await call


def shown(answer: Answer) -> list[tuple[int, str]]:
    return [(item.row, item.source) for item in answer.items]


@BOTH_VOCABULARIES
async def test_together_as_alone(bundle_path: Path, bundle: Bundle) -> None:
    queries = [query(bundle, number) for number in range(8)]
    alone = [recommend(bundle, [each])[0] for each in queries]
    async with running(bundle_path, batch_wait_ms=50) as engine:
        together = await asyncio.gather(*(engine.recommend(each, timeout_s=10) for each in queries))
    for one, other in zip(alone, together, strict=True):
        assert shown(one) == shown(other) and one.chosen == other.chosen
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-4)


@BOTH_VOCABULARIES
async def test_one_poisoned_job_does_not_fail_its_companions(bundle_path: Path, bundle: Bundle) -> None:
    good, bad = query(bundle, 1), Query([10**9], query(bundle, 0).memory, query(bundle, 0).allowed, 5)
    async with running(bundle_path, batch_wait_ms=50) as engine:
        asked = (engine.recommend(each, timeout_s=10) for each in (good, bad, good))
        first, poisoned, last = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(first, Answer) and isinstance(last, Answer) and shown(first) == shown(last)
        assert isinstance(poisoned, Exception) and not isinstance(poisoned, TimeoutError)
        states = await asyncio.gather(engine.encode([[1, 2]]), engine.encode([[10**9]]), return_exceptions=True)
        assert not isinstance(states[0], BaseException) and isinstance(states[1], Exception)
        assert engine.is_ready


async def test_a_full_queue_is_told_at_once(bundle_path: Path, bundle: Bundle) -> None:
    async with running(bundle_path, max_queue=2) as engine, busy(engine) as release:
        waiting = [asyncio.create_task(engine.recommend(query(bundle, n), timeout_s=10)) for n in range(2)]
        await asyncio.sleep(0)
        started = time.monotonic()
        with pytest.raises(Overloaded):
            await engine.recommend(query(bundle, 3), timeout_s=10)
        assert time.monotonic() - started < 0.5
        release()
        assert all(answer.items for answer in await asyncio.gather(*waiting))


async def test_a_flood_is_answered_in_time_or_refused_at_once(bundle_path: Path, bundle: Bundle) -> None:
    timeout_s, asked = 0.5, query(bundle, 1)
    outcomes: dict[str, list[float]] = {"answered": [], "refused": [], "late": []}

    async def ask(engine: Engine) -> None:
        started = time.monotonic()
        outcome = "answered"
        try:
            with engine.admission(timeout_s):
                await engine.recommend(asked, timeout_s=timeout_s)
        except Overloaded:
            outcome = "refused"
        except (TimeoutError, DeadlineExceeded):
            outcome = "late"
        outcomes[outcome].append(time.monotonic() - started)

    async with running(bundle_path, max_queue=10_000, max_batch=4) as engine:
        async with asyncio.TaskGroup() as group:
            for _ in range(60):
                for _ in range(20):
                    group.create_task(ask(engine))
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert engine.expected_wait_s == 0.0, "somebody is waited for who is not there"
    assert sum(map(len, outcomes.values())) == 1200, "an answer was lost"
    assert outcomes["answered"] and outcomes["refused"], outcomes.keys()
    assert max(outcomes["answered"]) < timeout_s + 0.1, "an answer came after its deadline"
    assert max(outcomes["refused"]) < 0.1, "a refusal took its time"
    assert len(outcomes["late"]) < len(outcomes["refused"]), "let in and left to wait"


async def test_background_work_waits_for_room_instead(bundle_path: Path) -> None:
    async with running(bundle_path, max_queue=2, max_batch=2) as engine, busy(engine) as release:
        work = asyncio.create_task(engine.encode([[1, 2, 3]] * 9))
        await asyncio.sleep(0.01)
        release()
        assert len(await work) == 9


async def test_time_runs_out(bundle_path: Path, bundle: Bundle) -> None:
    async with running(bundle_path) as engine, busy(engine):
        started = time.monotonic()
        with pytest.raises((TimeoutError, DeadlineExceeded)):
            await engine.recommend(query(bundle, 1), timeout_s=0.05)
        assert time.monotonic() - started < 1


async def test_a_caller_who_left_costs_nothing(bundle_path: Path) -> None:
    ran: list[str] = []
    async with running(bundle_path) as engine:
        async with busy(engine) as release:
            left = asyncio.create_task(engine.call(lambda bundle: ran.append("left")))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises((asyncio.CancelledError, FutureCancelled)):
                await left
            release()
        await engine.call(lambda bundle: ran.append("stayed"))
    assert ran == ["stayed"]


async def test_stopping_finishes_what_is_queued_and_takes_no_more(bundle_path: Path, bundle: Bundle) -> None:
    async with running(bundle_path) as engine:
        async with busy(engine) as release:
            queued = asyncio.create_task(engine.recommend(query(bundle, 1), timeout_s=10))
            await asyncio.sleep(0)
            stopping = asyncio.create_task(engine.stop(5))
            await asyncio.sleep(0)
            assert not engine.is_ready
            with pytest.raises(Draining):
                await engine.recommend(query(bundle, 2), timeout_s=10)
            release()
        await stopping
        assert (await queued).items
        assert not any(thread.name == "engine" for thread in threading.enumerate())


async def test_stopping_does_not_wait_for_ever(bundle_path: Path, bundle: Bundle) -> None:
    async with running(bundle_path) as engine, busy(engine):
        queued = asyncio.create_task(engine.recommend(query(bundle, 1), timeout_s=10))
        await asyncio.sleep(0)
        await engine.stop(0.05)
        with pytest.raises(Draining):
            await queued


@BOTH_VOCABULARIES
async def test_a_query_from_before_a_new_item_is_still_answered(bundle_path: Path, bundle: Bundle) -> None:
    asked = query(bundle, 1)

    def add_item(bundle: Bundle) -> None:
        bundle.catalogue = bundle.catalogue.with_items([Item("new", "A new thing")])
        bundle.index.put(np.array([len(bundle.catalogue) - 1]), np.zeros((1, 32), dtype=np.float32))

    async with running(bundle_path) as engine:
        await engine.call(add_item)
        answer = await engine.recommend(asked, timeout_s=10)
    assert len(answer.items) == 5 and all(item.row < len(asked.allowed) for item in answer.items)
