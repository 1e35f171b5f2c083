"""The engine: batches change no answer, one bad job fails alone, and it can be stopped."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.answers import Answer, Query
from model_store.bundle import Bundle
from model_store.catalogue.items import Item
from model_store.inference import encode, recommend
from model_store.view import BundleView
from service.engine.engine import Engine
from service.engine.messages import PutItems, ReadTitles, Result
from service.errors import DeadlineExceeded, Draining, ModelFailed, Overloaded
from service.metrics import Metrics
from tests.conftest import BOTH_VOCABULARIES
from tests.service.real import ModelThread, settings_for


class Running(Engine):
    """An engine whose model runs in a thread of the test."""

    def __init__(self, bundle_path: Path, **settings: Any) -> None:
        self.thread, self.metrics = ModelThread(), Metrics()
        chosen = settings_for(bundle_path, "embedded:unused", **settings)
        self.view = BundleView.open_view(bundle_path)
        super().__init__(self.view, chosen, self.metrics, self.thread)

    def change(self, items: Sequence[Item]) -> None:
        self.view.catalogue = self.view.catalogue.with_items(items)
        self.intake.add(self.view.catalogue.rows[item.item_id] for item in items)

    async def answer(self, asked: "Asked", *, timeout_s: float = 10.0) -> Answer:
        deadline = time.monotonic() + timeout_s
        async with asyncio.timeout(timeout_s):
            with self.admission.admitted(deadline):
                return await self.recommend(asked.titles, asked.memory, asked.allowed, 5, deadline=deadline)

    def replace_runner(self, kind: str, runner: Callable[[Sequence[Any]], list[Result]]) -> Callable[..., list[Result]]:
        """Returns the runner that was replaced."""
        assert self.thread.model is not None
        runners = self.thread.model._runners
        replaced, runners[kind] = runners[kind], runner
        return replaced

    def note(self, kind: str, jobs: list[Any]) -> None:
        """Puts the jobs of a kind into `jobs` when they run."""

        def run(asked: Sequence[Any]) -> list[Result]:
            jobs.extend(asked)
            return runner(asked)

        runner = self.replace_runner(kind, run)


class Asked:
    """Query `number`, as the server asks it and as the model runs it."""

    def __init__(self, bundle: Bundle, number: int) -> None:
        self.titles = [item.title for item in bundle.catalogue.items[number : number + 3]]
        prompts = [bundle.prompt.tokens([title]) for title in self.titles]
        self.memory = encode(bundle.lm, prompts)[: number % 4]
        self.allowed: NDArray[np.bool_] = np.arange(len(bundle.catalogue)) != number
        self.query = Query(bundle.prompt.tokens(self.titles), self.memory, self.allowed, 5)


@asynccontextmanager
async def running(bundle_path: Path, **settings: Any) -> AsyncIterator[Running]:
    engine = Running(bundle_path, **settings)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(5)


@asynccontextmanager
async def busy(engine: Running) -> AsyncIterator[Callable[[], None]]:
    """The model is in the middle of a batch until the yielded function is called, or the block ends."""
    started, release = threading.Event(), threading.Event()

    def wait(asked: Sequence[Any]) -> list[Result]:
        started.set()
        release.wait(10)
        return find_similar(asked)

    find_similar = engine.replace_runner("similar", wait)
    call = asyncio.create_task(engine.similar(0, 1, np.ones(20, dtype=bool)))
    await asyncio.to_thread(started.wait, 10)
    engine.replace_runner("similar", find_similar)
    try:
        yield release.set
    finally:
        release.set()
        await asyncio.gather(call, return_exceptions=True)


def shown(answer: Answer) -> list[tuple[int, str]]:
    return [(item.row, item.source) for item in answer.items]


@BOTH_VOCABULARIES
async def test_batched_answers_are_those_of_single_requests(bundle_path: Path, bundle: Bundle) -> None:
    asked = [Asked(bundle, number) for number in range(8)]
    alone = [recommend(bundle, [each.query])[0] for each in asked]
    async with running(bundle_path) as engine:
        async with busy(engine):  # they gather while the model is busy
            waiting = [asyncio.create_task(engine.answer(each)) for each in asked]
            await asyncio.sleep(0.05)
        together = await asyncio.gather(*waiting)
        sizes = engine.metrics.registry.get_sample_value("automr_batch_size_sum")
        assert sizes == 9 and engine.metrics.registry.get_sample_value("automr_batch_size_count") == 2
    for one, other in zip(alone, together, strict=True):
        assert shown(one) == shown(other) and one.chosen == other.chosen
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-4)
        assert one.null_weight == pytest.approx(other.null_weight, abs=1e-4)


@BOTH_VOCABULARIES
async def test_states_are_those_of_the_bundle(bundle_path: Path, bundle: Bundle) -> None:
    windows = [Asked(bundle, number).titles for number in range(4)]
    alone = encode(bundle.lm, [bundle.prompt.tokens(titles) for titles in windows])
    async with running(bundle_path) as engine:
        states = await engine.encode(windows)
    np.testing.assert_allclose(np.stack(states).astype(float), alone.astype(float), atol=2e-3)


async def test_one_bad_job_fails_alone(bundle_path: Path, bundle: Bundle) -> None:
    good, bad = Asked(bundle, 1), Asked(bundle, 2)
    bad.memory = np.zeros((1, 31), dtype=np.float16)  # not of the model's hidden size
    async with running(bundle_path) as engine:
        async with busy(engine):
            waiting = [asyncio.create_task(engine.answer(each)) for each in (good, bad, good)]
            await asyncio.sleep(0.05)
        first, failed, last = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(first, Answer) and isinstance(last, Answer) and shown(first) == shown(last)
        assert isinstance(failed, ModelFailed)
        assert engine.is_ready and (await engine.answer(good)).items


async def test_a_request_that_would_be_late_is_refused_at_once(bundle_path: Path, bundle: Bundle) -> None:
    async with running(bundle_path, max_queue=2) as engine, busy(engine) as release:
        waiting = [asyncio.create_task(engine.answer(Asked(bundle, number))) for number in range(2)]
        await asyncio.sleep(0.01)
        started = time.monotonic()
        with pytest.raises(Overloaded):
            await engine.answer(Asked(bundle, 3))
        assert time.monotonic() - started < 0.5
        release()
        assert all(answer.items for answer in await asyncio.gather(*waiting))


async def test_background_jobs_wait_for_room_instead(bundle_path: Path) -> None:
    async with running(bundle_path, max_queue=2, max_batch=2) as engine, busy(engine) as release:
        work = asyncio.create_task(engine.encode([["Red Tea"]] * 9))
        await asyncio.sleep(0.01)
        release()
        assert len(await work) == 9


async def test_a_request_ends_at_its_deadline(bundle_path: Path, bundle: Bundle) -> None:
    async with running(bundle_path) as engine, busy(engine):
        started = time.monotonic()
        with pytest.raises((TimeoutError, DeadlineExceeded)):
            await engine.answer(Asked(bundle, 1), timeout_s=0.05)
        assert time.monotonic() - started < 1


async def test_the_model_drops_a_job_whose_deadline_has_passed(bundle_path: Path, bundle: Bundle) -> None:
    asked = Asked(bundle, 1)
    async with running(bundle_path) as engine, busy(engine) as release:
        late = asyncio.create_task(
            engine.recommend(asked.titles, asked.memory, asked.allowed, 5, deadline=time.monotonic() + 0.01)
        )
        await asyncio.sleep(0.05)
        release()
        with pytest.raises(DeadlineExceeded):
            await late


async def test_a_cancelled_job_is_not_computed(bundle_path: Path) -> None:
    computed: list[int] = []
    async with running(bundle_path) as engine:

        def count(asked: Sequence[Any]) -> list[Result]:
            computed.extend(each.id for each in asked)
            return encode_runner(asked)

        encode_runner = engine.replace_runner("encode", count)
        async with busy(engine):
            left = asyncio.create_task(engine.encode([["Red Tea"]]))
            await asyncio.sleep(0.01)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
        await engine.encode([["Blue Tea"]])
    assert len(computed) == 1, "a job was computed although its caller had left"


async def test_stopping_finishes_jobs_under_way_and_takes_no_more(bundle_path: Path, bundle: Bundle) -> None:
    async with running(bundle_path) as engine:
        async with busy(engine) as release:
            queued = asyncio.create_task(engine.answer(Asked(bundle, 1)))
            await asyncio.sleep(0.01)
            stopping = asyncio.create_task(engine.stop(5))
            await asyncio.sleep(0)
            assert not engine.is_ready
            with pytest.raises(Draining):
                await engine.answer(Asked(bundle, 2))
            release()
        await stopping
        assert (await queued).items


async def test_stopping_does_not_wait_longer_than_told(bundle_path: Path, bundle: Bundle) -> None:
    async with running(bundle_path) as engine, busy(engine):
        queued = asyncio.create_task(engine.answer(Asked(bundle, 1)))
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(engine.stop(0.05))
        with pytest.raises(Draining):
            await queued
    await stopping


@BOTH_VOCABULARIES
async def test_a_request_from_before_a_new_item_is_still_answered(bundle_path: Path, bundle: Bundle) -> None:
    asked = Asked(bundle, 1)
    async with running(bundle_path) as engine:
        engine.change([Item("new", "A new thing")])
        await engine.intake.taken_in([20])
        answer = await engine.answer(asked)
    assert len(answer.items) == 5 and all(item.row < len(asked.allowed) for item in answer.items)


@BOTH_VOCABULARIES
async def test_a_request_between_the_two_jobs_of_a_new_item_sees_the_catalogue_before_it(
    bundle_path: Path, bundle: Bundle
) -> None:
    """The title is read, then the item is put. A model that reads the title with the put gives the same answers."""
    asked, waiting = Asked(bundle, 1), list[Any]()
    async with running(bundle_path) as engine:
        before = await engine.answer(asked)
        for kind in ("titles", "put"):
            engine.note(kind, waiting)
        engine.change([Item("new", "A new thing"), Item("newer", "Red Moon")])
        while not waiting:
            await asyncio.sleep(0)
        assert shown(await engine.answer(asked)) == shown(before)
        await engine.intake.taken_in([20, 21])
        titles, items = waiting
        assert isinstance(titles, ReadTitles) and isinstance(items, PutItems) and items.vectors, "not in two short jobs"
        asked.allowed = np.ones(22, dtype=bool)
        in_two = await engine.answer(asked), await engine.vectors([20, 21])
    async with running(bundle_path) as other:
        other.view.catalogue = engine.view.catalogue
        await other._ask(PutItems(-1, items.items))
        in_one = await other.answer(asked), await other.vectors([20, 21])
    assert shown(in_two[0]) == shown(in_one[0]) and np.allclose(in_two[1], in_one[1], atol=1e-5)


async def test_similar_items_are_allowed_and_nearest_first(bundle_path: Path, bundle: Bundle) -> None:
    allowed = np.arange(20) % 2 == 0
    async with running(bundle_path) as engine:
        found = await engine.similar(4, 5, allowed)
    assert len(found) == 5 and found[0][0] == 4 and found[0][1] < 1e-3
    assert all(row % 2 == 0 for row, _ in found)
    assert [distance for _, distance in found] == sorted(distance for _, distance in found)
