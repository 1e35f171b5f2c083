"""An engine that takes turns with the handlers on one thread keeps the laws of one with a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import service.engine.engine
from model_store.answers import Answer, Query
from model_store.bundle import Bundle
from model_store.inference import encode, recommend
from service.errors import Draining
from tests.conftest import BOTH_VOCABULARIES
from tests.service.engine.test_engine import query, running, shown


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(("quick_s", "has_thread"), [(60.0, False), (0.0, True)])
async def test_a_quick_model_needs_no_thread(
    quick_s: float, has_thread: bool, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.engine.engine, "_QUICK_S", quick_s)
    async with running(bundle_path, engine_thread="auto") as engine:
        readiness = [engine.is_ready]
        assert ("engine" in threads()) == has_thread
    assert [*readiness, engine.is_ready] == [True, False]
    assert "engine" not in threads()


@BOTH_VOCABULARIES
async def test_together_as_alone(bundle_path: Path, bundle: Bundle) -> None:
    queries = [query(bundle, number) for number in range(8)]
    alone = [recommend(bundle, [each])[0] for each in queries]
    async with running(bundle_path, engine_thread="event-loop") as engine:
        together = await asyncio.gather(*(engine.recommend(each, timeout_s=10) for each in queries))
        assert engine._metrics.registry.get_sample_value("automr_batch_size_sum")
    for one, other in zip(alone, together, strict=True):
        assert shown(one) == shown(other) and one.chosen == other.chosen
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-4)


async def test_all_kinds_of_work_run_where_handlers_do(bundle_path: Path, bundle: Bundle) -> None:
    prompts = [bundle.prompt.tokens([item.title]) for item in bundle.catalogue.items[:5]]
    async with running(bundle_path, engine_thread="event-loop") as engine:
        states, name = await asyncio.gather(engine.encode(prompts), engine.call(lambda _: threading.current_thread()))
    assert name is threading.main_thread()
    np.testing.assert_allclose(np.stack(states), encode(bundle.lm, prompts), atol=1e-2)


async def test_handlers_get_their_turn_between_batches(bundle_path: Path, bundle: Bundle) -> None:
    """One waits for the other in small steps, as a handler for its store: they must not starve each other."""
    num_turns = 0

    async def turns() -> None:
        nonlocal num_turns
        while True:
            await asyncio.sleep(0)
            num_turns += 1

    async with running(bundle_path, engine_thread="event-loop", max_batch=1) as engine:
        other = asyncio.create_task(turns())
        await asyncio.gather(*(engine.recommend(query(bundle, 1), timeout_s=30) for _ in range(20)))
        other.cancel()
    assert num_turns >= 20, f"{num_turns} turns during 20 batches"


async def test_who_came_while_nothing_moved_has_waited(bundle_path: Path) -> None:
    waited: list[float] = []

    async with running(bundle_path, engine_thread="event-loop") as engine:

        def work(_: Bundle) -> None:
            asyncio.get_running_loop().call_soon(lambda: waited.append(engine.delay_s))
            time.sleep(0.2)

        await engine.call(work)
        await asyncio.sleep(0.05)
        waited.append(engine.delay_s)
    assert waited[0] >= 0.2, "a handler that begins after a standstill takes its caller for new"
    assert waited[1] == 0.0, "nobody waits while the engine idles"


async def test_one_poisoned_job_fails_alone(bundle_path: Path, bundle: Bundle) -> None:
    good, bad = query(bundle, 1), Query([10**9], query(bundle, 0).memory, query(bundle, 0).allowed, 5)
    async with running(bundle_path, engine_thread="event-loop") as engine:
        asked = (engine.recommend(each, timeout_s=10) for each in (good, bad, good))
        first, poisoned, last = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(first, Answer) and isinstance(last, Answer) and isinstance(poisoned, Exception)


async def test_what_was_cancelled_is_not_computed(bundle_path: Path) -> None:
    ran: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    def work(number: int) -> Any:
        def run(_: Bundle) -> None:
            ran.append(number)
            if number == 0:
                for task in tasks[1::2]:
                    task.cancel()

        return run

    async with running(bundle_path, engine_thread="event-loop", max_batch=1) as engine:
        tasks += [asyncio.create_task(engine.call(work(number))) for number in range(6)]
        await asyncio.gather(*tasks, return_exceptions=True)
    assert ran == [0, 2, 4]


async def test_what_is_queued_is_finished_and_nothing_comes_after(bundle_path: Path, bundle: Bundle) -> None:
    async with running(bundle_path, engine_thread="event-loop", max_batch=2) as engine:
        asked = [asyncio.create_task(engine.recommend(query(bundle, 1), timeout_s=30)) for _ in range(9)]
        await asyncio.sleep(0)
    answers: Sequence[Answer] = await asyncio.gather(*asked)
    assert len(answers) == 9 and all(answer.items for answer in answers)
    with pytest.raises(Draining):
        await engine.recommend(query(bundle, 1), timeout_s=1)
