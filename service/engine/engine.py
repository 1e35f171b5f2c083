"""The one place where torch runs: takes batches of jobs, runs them on the bundle, answers futures.

Handlers await `recommend`, `encode` and `call`; nothing else may touch the bundle's model or index, so neither needs a
lock. Which jobs run together is decided in `batching.py`; what a job computes, in `model_store`.

A model has a thread of its own, so that the event loop stays awake. Unless it is quick: then its many small products
and the handlers would fight for Python's lock, which costs both more than taking turns on one thread does.
"""

import asyncio
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from model_store.answers import Answer, Query
from model_store.bundle import Bundle
from model_store.inference import encode, recommend
from model_store.lm.window_cache import WindowCache
from service.engine.batching import Admission, Batcher, Job
from service.metrics import Metrics
from service.settings import Settings

log = structlog.get_logger("service.engine.engine")

_IDLE_S = 0.5
# How long one thread may keep Python's lock from the other. With the default, 5 ms, a flood of requests on the event
# loop (refusing them is enough) brings the engine thread to a halt: it wants the lock again after each product.
_SWITCH_INTERVAL_S = 0.0005
_QUICK_S = 0.1  # a full batch; for that long nobody minds that the event loop stands still
_TRIALS = 3  # the quickest counts: a machine that is busy at the start would decide for good
# Turns of the event loop between two batches: as long as they have something to do, up to the time that the batch took.
# A handler that waits for the store looks idle for a few.
_LEAST_TURNS, _IDLE_TURNS = 3, 10
_IDLE_TURN_S = 5e-5
_TURNS_AGO = 3  # a handler that begins in this turn was asked for in the last one, by a caller who wrote before that
_WARM_BATCHES = (1, 4)
_SMALL_MODEL = 2**24  # parameters; below, products are so small that sharing them among cores costs more than it saves

T = TypeVar("T")
States = NDArray[np.float16]


@dataclass(frozen=True)
class EnginePlan:
    """What was decided at start, from what the operator asked for and the machine has."""

    device: str
    num_threads: int
    max_batch_tokens: int

    @classmethod
    def make(cls, bundle: Bundle, settings: Settings) -> "EnginePlan":
        """The token budget is never below one full prompt, or that prompt could never run."""
        return cls(
            device=str(bundle.lm.device),
            num_threads=settings.threads or _default_threads(bundle),
            max_batch_tokens=max(settings.max_batch_tokens, bundle.prompt.max_tokens),
        )


class Engine:
    """Start once, stop once. Its methods are for the event loop."""

    def __init__(self, bundle: Bundle, settings: Settings, metrics: Metrics) -> None:
        self.bundle = bundle
        self.plan = EnginePlan.make(bundle, settings)
        self._metrics = metrics
        self._batcher = Batcher(
            max_queue=settings.max_queue,
            max_batch=settings.max_batch,
            max_batch_tokens=self.plan.max_batch_tokens,
            wait_s=settings.batch_wait_ms / 1000,
        )
        metrics.queue_depth.set_function(lambda: self._batcher.depth)
        metrics.expected_wait_seconds.set_function(lambda: self.expected_wait_s)
        self._windows = WindowCache(
            settings.window_cache_mib * 2**20, has_layers=bundle.manifest.vocabulary == "titles"
        )
        metrics.window_cache_bytes.set_function(lambda: self._windows.num_bytes)
        self._background_room = asyncio.Semaphore(settings.max_queue)
        self._where = settings.engine_thread
        self._thread = threading.Thread(target=self._run_on_thread, name="engine", daemon=True)
        self._task: asyncio.Task[None] | None = None  # instead of the thread
        self._has_work = asyncio.Event()
        self._turns: deque[float] = deque(maxlen=_TURNS_AGO)  # when the last turns of the event loop began; none: idle
        self._counted_windows = {"hit": 0, "miss": 0}
        self._is_warm = False

    @property
    def is_ready(self) -> bool:
        return self._is_warm and (self._thread.is_alive() if self._task is None else not self._task.done())

    @property
    def expected_wait_s(self) -> float:
        """Until a request that comes now would be answered; 0 when nothing is ahead of it."""
        return self._batcher.expected_s

    @property
    def delay_s(self) -> float:
        """How long a request whose handler begins now may have waited unseen, while the event loop stood still."""
        return time.perf_counter() - self._turns[0] if self._turns else 0.0

    async def start(self) -> None:
        """Returns when warm: the first request must not pay for lazy initialisation.

        What is run after it has been paid for teaches the batcher the engine's pace.
        """
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        torch.set_num_threads(self.plan.num_threads)
        query = _warm_up(self.bundle)
        if self._where == "auto":
            self._where = "event-loop" if _is_quick(self.bundle, query, self._batcher.max_batch) else "own"
        if self._where == "event-loop":
            self._batcher.wait_s = 0.0  # nobody could come while the event loop waits
            self._task = asyncio.create_task(self._run_on_event_loop(), name="engine")
        else:
            self._thread.start()
        for size in _WARM_BATCHES:
            jobs = [self._job(query) for _ in range(min(size, self._batcher.max_queue))]
            await asyncio.gather(*map(self._submit, jobs))
        self._is_warm = True
        log.info("engine ready", device=self.plan.device, threads=self.plan.num_threads, thread=self._where)

    async def stop(self, drain_s: float) -> None:
        """Finishes what is queued within `drain_s`, then fails the rest with Draining."""
        self._is_warm = False
        self._batcher.close()
        self._has_work.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=drain_s)
        elif self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, drain_s)
        self._batcher.close(drop=True)

    def admission(self, timeout_s: float) -> AbstractContextManager[Admission]:
        """Around all of a request that will ask for one recommendation. Raises Overloaded when it would be late."""
        return self._batcher.admission(timeout_s)

    async def recommend(self, query: Query, *, timeout_s: float) -> Answer:
        """Raises Overloaded, Draining, or TimeoutError when the answer is not there in time."""
        async with asyncio.timeout(timeout_s):
            answer: Answer = await self._submit(self._job(query, deadline=time.monotonic() + timeout_s))
        return answer

    def _job(self, query: Query, deadline: float | None = None) -> Job:
        """It costs what it computes: the prompt, the scores of the memory, a token at least for each beam."""
        num_beams = self.bundle.manifest.generation.num_beams
        return Job("recommend", query, len(query.prompt) + len(query.memory) + num_beams, deadline)

    async def encode(self, prompts: Sequence[Sequence[int]]) -> list[States]:
        """States (D,), one per prompt, in the background lane; waits for room there, since nobody waits for it."""
        return list(await asyncio.gather(*(self._encode_one(prompt) for prompt in prompts)))

    async def _encode_one(self, prompt: Sequence[int]) -> States:
        async with self._background_room:
            state: States = await self._submit(Job("encode", prompt, len(prompt)))
        return state

    async def call(self, work: Callable[[Bundle], T], *, cost_tokens: int = 1) -> T:
        """Runs `work` alone, while nothing else touches the bundle's model or index."""
        result: T = await self._submit(Job("call", work, max(cost_tokens, 1)))
        return result

    async def _submit(self, job: Job) -> Any:
        future = self._batcher.submit(job)
        self._has_work.set()
        return await asyncio.wrap_future(future)

    def _run_on_thread(self) -> None:
        torch.set_num_threads(self.plan.num_threads)
        while not self._batcher.is_done:
            if batch := self._batcher.next_batch(_IDLE_S):
                self._run_counted(batch)
                self._batcher.ran(batch)

    async def _run_on_event_loop(self) -> None:
        while not self._batcher.is_done:
            self._has_work.clear()
            while batch := self._batcher.next_batch(0):
                started = time.perf_counter()
                self._turns.append(started)
                self._run_counted(batch)
                await self._others_turn(time.perf_counter() - started)
                self._batcher.ran(batch)  # with what the handlers took, for which the next batch waits, too
            self._turns.clear()
            if not self._batcher.is_done:
                await self._has_work.wait()

    async def _others_turn(self, at_most_s: float) -> None:
        num_turns = num_idle = 0
        began = last = time.perf_counter()
        while num_turns < _LEAST_TURNS or (num_idle < _IDLE_TURNS and last - began < at_most_s):
            await asyncio.sleep(0)
            now = time.perf_counter()
            self._turns.append(now)
            num_turns, num_idle = num_turns + 1, num_idle + 1 if now - last < _IDLE_TURN_S else 0
            last = now

    def _run_counted(self, batch: list[Job]) -> None:
        self._metrics.batch_size.observe(len(batch))
        self._run(batch)
        self._count_windows()

    def _count_windows(self) -> None:
        for result, count in (("hit", self._windows.num_hits), ("miss", self._windows.num_misses)):
            counter = self._metrics.window_cache_total.labels(result)
            counter.inc(count - self._counted_windows[result])
            self._counted_windows[result] = count

    def _run(self, batch: list[Job]) -> None:
        """A batch that fails is tried job by job, so that one bad job does not fail its companions."""
        started = time.monotonic()
        try:
            results = list(_RUNNERS[batch[0].kind](self.bundle, self._windows, [job.payload for job in batch]))
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} jobs of kind {batch[0].kind} gave {len(results)} results")
        except Exception as error:
            if len(batch) > 1:
                log.warning("batch failed, trying its jobs alone", kind=batch[0].kind, size=len(batch))
                for job in batch:
                    self._run([job])
            else:
                batch[0].future.set_exception(error)
            return
        for job, result in zip(batch, results, strict=True):
            self._metrics.stage_seconds.labels("queue").observe(started - job.submitted_at)
            job.future.set_result(result)


def _recommend(bundle: Bundle, windows: WindowCache, queries: Sequence[Query]) -> list[Answer]:
    """Items that came after a query was asked are not for it: `allowed` grows to today's catalogue."""
    num_items = len(bundle.catalogue)
    grown = [np.pad(query.allowed, (0, num_items - len(query.allowed))) for query in queries]
    asked = [replace(query, allowed=allowed) for query, allowed in zip(queries, grown, strict=True)]
    return recommend(bundle, asked, windows)


def _call(bundle: Bundle, _: WindowCache, works: Sequence[Callable[[Bundle], Any]]) -> list[Any]:
    return [work(bundle) for work in works]


def _encode(bundle: Bundle, windows: WindowCache, prompts: Sequence[Sequence[int]]) -> list[States]:
    """The next request of the user will ask for the newest of these windows: they are kept."""
    return list(encode(bundle.lm, prompts, windows))


_Runner = Callable[[Bundle, WindowCache, Any], Sequence[Any]]
_RUNNERS: dict[str, _Runner] = {"recommend": _recommend, "encode": _encode, "call": _call}


def _warm_up(bundle: Bundle) -> Query:
    """Answers a full prompt with full memory, and returns it."""
    rows = bundle.catalogue.by_popularity[: bundle.manifest.prompt.recent_length]
    prompt = bundle.prompt.tokens([bundle.catalogue.items[row].title for row in rows])
    memory = np.repeat(encode(bundle.lm, [prompt]), bundle.manifest.memory.max_elements, axis=0)
    query = Query(prompt, memory, np.ones(len(bundle.catalogue), dtype=bool), num_results=10)
    recommend(bundle, [query])
    return query


def _is_quick(bundle: Bundle, query: Query, max_batch: int) -> bool:
    """Whether a full batch is over soon; one alone is tried first, since a large model takes minutes for the batch."""
    for size, limit_s in ((1, _QUICK_S / 2), (max_batch, _QUICK_S)):
        if min(_seconds_of(bundle, [query] * size) for _ in range(_TRIALS)) > limit_s:
            return False
    return True


def _seconds_of(bundle: Bundle, queries: Sequence[Query]) -> float:
    started = time.perf_counter()
    recommend(bundle, queries)
    return time.perf_counter() - started


def _default_threads(bundle: Bundle) -> int:
    """One for a small model, which leaves the other cores to the event loop and the store; otherwise all."""
    num_parameters = sum(parameter.numel() for parameter in bundle.lm.model.parameters())
    return 1 if num_parameters < _SMALL_MODEL else os.cpu_count() or 1
