"""The one torch thread: takes batches of jobs, runs them on the bundle, answers futures.

Handlers await `recommend`, `encode` and `call`; nothing else may touch the bundle's model or index, so neither needs a
lock. Which jobs run together is decided in `batching.py`; what a job computes, in `model_store`.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.inference import Answer, Query, encode, recommend
from service.batching import Batcher, Job
from service.metrics import Metrics
from service.settings import Settings

log = structlog.get_logger("service.engine")

_IDLE_S = 0.5
_WARM_BATCHES = (1, 4)

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
            num_threads=settings.threads or os.cpu_count() or 1,
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
        self._background_room = asyncio.Semaphore(settings.max_queue)
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._is_warm = False

    @property
    def is_ready(self) -> bool:
        return self._is_warm and self._thread.is_alive()

    async def start(self) -> None:
        """Returns when warm: the first request must not pay for lazy initialisation."""
        self._thread.start()
        await self.call(_warm_up, cost_tokens=1)
        self._is_warm = True
        log.info("engine ready", device=self.plan.device, threads=self.plan.num_threads)

    async def stop(self, drain_s: float) -> None:
        """Finishes what is queued within `drain_s`, then fails the rest with Draining."""
        self._is_warm = False
        self._batcher.close()
        await asyncio.to_thread(self._thread.join, drain_s)
        self._batcher.close(drop=True)

    async def recommend(self, query: Query, *, timeout_s: float) -> Answer:
        """Raises Overloaded, Draining, or TimeoutError when the answer is not there in time."""
        job = Job("recommend", query, len(query.prompt) + len(query.memory), deadline=time.monotonic() + timeout_s)
        async with asyncio.timeout(timeout_s):
            answer: Answer = await self._submit(job)
        return answer

    async def encode(self, prompts: Sequence[Sequence[int]]) -> list[States]:
        """States (D,), one per prompt, in the background lane; waits for room there, since nobody waits for it."""
        return list(await asyncio.gather(*(self._encode_one(prompt) for prompt in prompts)))

    async def _encode_one(self, prompt: Sequence[int]) -> States:
        async with self._background_room:
            state: States = await self._submit(Job("encode", prompt, len(prompt)))
        return state

    async def call(self, work: Callable[[Bundle], T], *, cost_tokens: int = 1) -> T:
        """Runs `work` alone on the engine thread."""
        result: T = await self._submit(Job("call", work, max(cost_tokens, 1)))
        return result

    async def _submit(self, job: Job) -> Any:
        future = self._batcher.submit(job)
        self._metrics.queue_depth.set(self._batcher.depth)
        return await asyncio.wrap_future(future)

    def _loop(self) -> None:
        torch.set_num_threads(self.plan.num_threads)
        while not self._batcher.is_done:
            if batch := self._batcher.next_batch(_IDLE_S):
                self._metrics.queue_depth.set(self._batcher.depth)
                self._metrics.batch_size.observe(len(batch))
                self._run(batch)

    def _run(self, batch: list[Job]) -> None:
        """A batch that fails is tried job by job, so that one bad job does not fail its companions."""
        started = time.monotonic()
        try:
            results = list(_RUNNERS[batch[0].kind](self.bundle, [job.payload for job in batch]))
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


def _recommend(bundle: Bundle, queries: Sequence[Query]) -> list[Answer]:
    """Items that came after a query was asked are not for it: `allowed` grows to today's catalogue."""
    num_items = len(bundle.catalogue)
    grown = [np.pad(query.allowed, (0, num_items - len(query.allowed))) for query in queries]
    return recommend(bundle, [replace(query, allowed=allowed) for query, allowed in zip(queries, grown, strict=True)])


def _call(bundle: Bundle, works: Sequence[Callable[[Bundle], Any]]) -> list[Any]:
    return [work(bundle) for work in works]


def _encode(bundle: Bundle, prompts: Sequence[Sequence[int]]) -> list[States]:
    return list(encode(bundle.lm, prompts))


_Runner = Callable[[Bundle, Any], Sequence[Any]]
_RUNNERS: dict[str, _Runner] = {"recommend": _recommend, "encode": _encode, "call": _call}


def _warm_up(bundle: Bundle) -> None:
    """Full prompts with full memory, in the batch sizes that matter most."""
    rows = bundle.catalogue.by_popularity[: bundle.manifest.prompt.recent_length]
    prompt = bundle.prompt.tokens([bundle.catalogue.items[row].title for row in rows])
    memory = np.repeat(encode(bundle.lm, [prompt]), bundle.manifest.memory.max_elements, axis=0)
    query = Query(prompt, memory, np.ones(len(bundle.catalogue), dtype=bool), num_results=10)
    for size in _WARM_BATCHES:
        recommend(bundle, [query] * size)
