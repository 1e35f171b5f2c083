"""The engine: asks the process of the model and awaits its results.

Use cases await `recommend`, `encode`, `put_items` and `similar`. `batching.py`, in the process of the model, decides
which jobs run together. `admission.py`, in this process, decides which requests are admitted. A process of the model
that dies is started again.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.answers import Answer, PastRows, RowCounts
from model_store.catalogue.items import Item
from model_store.files import identity_of
from model_store.view import BundleView
from service.ending import cancel_and_wait
from service.engine.admission import Admission
from service.engine.intake import Intake
from service.engine.messages import (
    FEW_ITEMS,
    AskWords,
    Batch,
    Cancel,
    ChangedItem,
    CountItems,
    Encode,
    Encoded,
    Expired,
    Failed,
    FindRelated,
    FindSimilar,
    MemoryEntry,
    MemoryRead,
    ModelOptions,
    PutItems,
    ReadMemory,
    ReadTitles,
    ReadVectors,
    Recommend,
    Recommended,
    RelatedFound,
    Result,
    SimilarFound,
    VectorsRead,
    WordsAnswered,
)
from service.engine.process import ModelProcess, Spawn, spawn
from service.errors import DeadlineExceeded, Draining, ModelFailed, ModelUnavailable, Overloaded, StartupError
from service.identity.principal import lane
from service.metrics import Metrics
from service.settings import Settings
from service.tracing.spans import span

log = structlog.get_logger("service.engine")

_RESTART_AFTER_S = 1.0
_STOP_S = 5.0  # for a batch that runs when the connection closes
_LOOK_EVERY_S = 5.0
_HUNG_AFTER_S = 300.0  # far longer than any batch

States = NDArray[np.float16]


class Engine:
    """Start once, stop once. For one event loop."""

    def __init__(self, view: BundleView, settings: Settings, metrics: Metrics, spawn: Spawn = spawn) -> None:
        self._view, self._metrics, self._spawn = view, metrics, spawn
        self._options = _options(settings)
        self.admission = Admission(max_queue=settings.max_queue, max_batch=settings.max_batch)
        self._max_queue = settings.max_queue
        self._background_room = asyncio.Semaphore(settings.max_queue)
        self._process: ModelProcess | None = None
        self._reading: asyncio.Task[None]
        self._last_batch_at = 0.0
        self._supervisor: asyncio.Task[None] | None = None
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._is_closed = False
        self._counts: RowCounts | None = None
        self.intake = Intake(view, self._put_items, self._count_again)
        self._counted = {"hit": 0, "miss": 0}

    def show_metrics(self) -> None:
        """The gauges are those of this engine from now on: of several engines, that of the bundle that answers."""
        self._metrics.queue_depth.set_function(lambda: len(self._waiting))
        self._metrics.items_waiting.set_function(lambda: len(self.intake))
        self._metrics.expected_wait_seconds.set_function(lambda: self.admission.expected_wait_s)

    @property
    def is_ready(self) -> bool:
        is_supervised = self._supervisor is not None and not self._supervisor.done()
        return self._process is not None and is_supervised and not self._is_closed

    async def start(self) -> None:
        """Returns when the model is warm. Raises StartupError."""
        await self._open()
        self.admission.server_pace.start()
        self._supervisor = asyncio.create_task(self._supervise(), name="engine")
        self.intake.start()

    async def stop(self, drain_s: float) -> None:
        """Refuses new jobs, waits at most `drain_s` for the jobs under way, fails the others with Draining."""
        self._is_closed = True
        self.admission.server_pace.stop()
        await self.intake.stop()
        if self._waiting:
            await asyncio.wait(list(self._waiting.values()), timeout=drain_s)
        self._fail_waiting(Draining("The service is shutting down."))
        if self._supervisor is not None:
            await cancel_and_wait(self._supervisor)
        if self._process is not None:
            await self._process.stop(_STOP_S)
            self._process = None

    async def recommend(
        self,
        titles: list[str],
        memory: States,
        allowed: NDArray[np.bool_],
        num_results: int,
        *,
        deadline: float,
        past: PastRows | None = None,
    ) -> Answer:
        """`titles`: recent window, oldest first. `memory` (M, D). `allowed` (N,) by catalogue row.

        `past`: the events that the voices of the bundle read; None where it has no voices.

        Raises DeadlineExceeded, ModelFailed, ModelUnavailable or Draining.
        """
        asked = Recommend(
            id=next(self._ids),
            titles=titles,
            memory=memory.astype("<f2", copy=False).tobytes(),
            allowed=np.packbits(allowed).tobytes(),
            num_items=len(allowed),
            num_results=num_results,
            deadline=deadline,
            past_rows=list(past.rows) if past else [],
            past_times=list(past.timestamps) if past else [],
            now=past.now if past else 0,
            past_weights=list(past.weights) if past else [],
            against=list(past.against) if past else [],
            voices=dict(past.voices) if past else {},
            caller=lane.get(),
        )
        found: Recommended = await self._ask_counted(asked)
        return Answer(
            items=found.items,
            chosen=tuple(found.chosen),
            weights=np.frombuffer(found.weights, dtype="<f4"),
            null_weight=found.null_weight,
            reasons=found.reasons,
            event_shares=np.frombuffer(found.event_shares, dtype="<f4"),
            timings_s=found.timings_s,
        )

    async def encode(self, windows: Sequence[Sequence[str]]) -> list[States]:
        """The state (D,) of each window of titles, in the background lane; waits for room in the queue."""
        return list(await asyncio.gather(*(self._encode_one(list(titles)) for titles in windows)))

    async def count_items(self, counts: RowCounts) -> None:
        """Replaces the live counts of the model, also of one that is started again or does not know all items yet."""
        self._counts = counts
        if len(self.intake):
            self.intake.tell_when_filled()
        await self._ask(_counting(next(self._ids), counts))

    async def _put_items(self, items: Sequence[tuple[int, Item]]) -> None:
        vectors = b""
        if len(items) <= FEW_ITEMS:
            read: VectorsRead = await self._ask(ReadTitles(next(self._ids), [item.title for _, item in items]))
            vectors = read.vectors
        await self._ask(PutItems(next(self._ids), [_changed(row, item) for row, item in items], vectors))

    async def _count_again(self) -> None:
        if self._counts is not None:
            await self._ask(_counting(next(self._ids), self._counts))

    async def answer_words(
        self,
        query: str,
        past: PastRows,
        queries: list[str],
        allowed: NDArray[np.bool_],
        *,
        reasoning: Literal["off", "retrieve", "full"],
        num_results: int,
        deadline: float,
    ) -> WordsAnswered:
        """For a bundle with words. `queries`: what the user wrote for each event of the past, "" for nothing.

        Raises as `recommend` does.
        """
        asked = AskWords(
            id=next(self._ids),
            query=query,
            reasoning=reasoning,
            num_results=num_results,
            now=past.now,
            deadline=deadline,
            rows=list(past.rows),
            times=list(past.timestamps),
            queries=queries,
            allowed=np.packbits(allowed).tobytes(),
            num_items=len(allowed),
            caller=lane.get(),
        )
        found: WordsAnswered = await self._ask_counted(asked)
        return found

    async def read_memory(self, past: PastRows, queries: list[str]) -> list[MemoryEntry]:
        """The local memory in words, as `answer_words` makes it."""
        asked = ReadMemory(next(self._ids), list(past.rows), list(past.timestamps), queries, caller=lane.get())
        found: MemoryRead = await self._ask(asked)
        return found.entries

    async def similar(self, row: int, num_results: int, allowed: NDArray[np.bool_]) -> list[tuple[int, float]]:
        """(row, L2 distance) of the allowed items whose titles are nearest to that of `row`, nearest first."""
        if len(self._waiting) >= self._max_queue:
            raise Overloaded(f"{self._max_queue} requests are waiting already.")
        rows = np.packbits(allowed).tobytes()
        asked = FindSimilar(next(self._ids), row, num_results, rows, len(allowed), caller=lane.get())
        found: SimilarFound = await self._ask(asked)
        return list(zip(found.rows, found.distances, strict=True))

    async def related(
        self, row: int, num_results: int, allowed: NDArray[np.bool_]
    ) -> list[tuple[int, float, Literal["near", "follow", "together"]]]:
        """(row, score, table) of the allowed items that go with `row`, best first; see `model_store.related`."""
        if len(self._waiting) >= self._max_queue:
            raise Overloaded(f"{self._max_queue} requests are waiting already.")
        rows = np.packbits(allowed).tobytes()
        asked = FindRelated(next(self._ids), row, num_results, rows, len(allowed), caller=lane.get())
        found: RelatedFound = await self._ask(asked)
        return list(zip(found.rows, found.scores, found.tables, strict=True))

    async def vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """(n, D) the title vectors of catalogue rows. Raises as `recommend` does, but for DeadlineExceeded."""
        if not rows:
            return np.zeros((0, 1), dtype=np.float32)
        found: VectorsRead = await self._ask(ReadVectors(next(self._ids), list(rows)))
        return np.frombuffer(found.vectors, dtype="<f4").reshape(len(rows), -1)

    async def _encode_one(self, titles: list[str]) -> States:
        async with self._background_room:
            found: Encoded = await self._ask(Encode(next(self._ids), titles))
        return np.frombuffer(found.state, dtype="<f2")

    async def _ask_counted(self, message: Any) -> Any:
        """`_ask` for an answer to a user: admission knows how many of these are at the model."""
        self.admission.num_at_model += 1
        try:
            return await self._ask(message)
        finally:
            self.admission.num_at_model -= 1

    async def _ask(self, message: Any) -> Any:
        if self._is_closed:
            raise Draining("The service is shutting down.")
        process = self._running()
        if not self._waiting:
            self._last_batch_at = time.monotonic()  # an idle process sends nothing
        future = self._waiting[message.id] = asyncio.get_running_loop().create_future()
        try:
            with span("model") as traced:
                if traced is not None:
                    message.traceparent = traced.traceparent
                process.send(message)
                return await future
        except asyncio.CancelledError:
            with contextlib.suppress(ModelUnavailable):
                process.send(Cancel(message.id))
            raise
        finally:
            self._waiting.pop(message.id, None)

    def _running(self) -> ModelProcess:
        if self._process is None:
            raise ModelUnavailable("The model is starting.")
        return self._process

    def _on_batch(self, batch: Batch) -> None:
        self._last_batch_at = time.monotonic()
        if batch.num_jobs:
            self._metrics.batch_size.observe(batch.num_jobs)
        if batch.kind in ("recommend", "words"):
            self.admission.model_pace.observe(batch.num_jobs, batch.seconds)
        self._count_cache(batch)
        for result in batch.results:
            self._settle(result)

    def _settle(self, result: Result) -> None:
        future = self._waiting.pop(result.id, None)
        if future is None or future.done():  # the caller left
            return
        if isinstance(result, Failed):
            future.set_exception(ModelFailed(result.reason))
        elif isinstance(result, Expired):
            future.set_exception(DeadlineExceeded("The deadline passed while the request waited."))
        else:
            future.set_result(result)

    def _count_cache(self, batch: Batch) -> None:
        for result, count in (("hit", batch.cache_hits), ("miss", batch.cache_misses)):
            self._metrics.window_cache_total.labels(result).inc(max(0, count - self._counted[result]))
            self._counted[result] = count
        self._metrics.window_cache_bytes.set(batch.cache_bytes)

    async def _open(self) -> None:
        """Starts a process. It answers at once, and takes in what changed since the bundle was built."""
        process = await ModelProcess.start(self._options, self._spawn)
        reading = asyncio.create_task(process.batches(self._on_batch), name="model-results")
        try:
            if process.ready.bundle != identity_of(self._view.manifest):
                raise StartupError("the bundle was replaced while it was served; start the service again")
        except BaseException:
            reading.cancel()
            await process.stop(0)
            raise
        self._process, self._reading, self._last_batch_at = process, reading, time.monotonic()
        self._counted = {"hit": 0, "miss": 0}
        self.intake.begin_again()
        log.info("engine ready", device=process.ready.device, threads=process.ready.threads)

    async def _supervise(self) -> None:
        """When the process ends or hangs, fails the jobs under way and starts it again."""
        while True:
            try:
                await self._until_it_ends()
            except Exception:
                log.exception("the results of the model cannot be read")
            log.error("the process of the model has ended, starting it again")
            process, self._process = self._process, None
            self._fail_waiting(ModelUnavailable("The process of the model has ended."))
            if process is not None:
                await process.stop(_STOP_S)
            await self._reopen()

    async def _until_it_ends(self) -> None:
        while not self._reading.done():
            await asyncio.wait({self._reading}, timeout=_LOOK_EVERY_S)
            if self._waiting and time.monotonic() - self._last_batch_at > _HUNG_AFTER_S:
                log.error("the process of the model hangs and is killed")
                self._running().kill()
        await self._reading

    async def _reopen(self) -> None:
        while self._process is None:
            try:
                await self._open()
            except Exception as error:
                log.error("the process of the model does not start", reason=str(error))
                await asyncio.sleep(_RESTART_AFTER_S)

    def _fail_waiting(self, error: Exception) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(type(error)(*error.args))  # not shared: each gathers its own traceback
        self._waiting.clear()


def _options(settings: Settings) -> ModelOptions:
    return ModelOptions(
        bundle=str(settings.bundle.absolute()),
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        max_batch=settings.max_batch,
        max_batch_tokens=settings.max_batch_tokens,
        window_cache_mib=settings.window_cache_mib,
        log_level=settings.log_level,
        log_format=settings.log_format,
        otlp_endpoint=settings.otlp_endpoint,
    )


def _counting(number: int, counts: RowCounts) -> CountItems:
    return CountItems(
        id=number,
        rows=counts.rows.astype("<i8", copy=False).tobytes(),
        counts=counts.counts.astype("<f8", copy=False).tobytes(),
        pairs=counts.pairs.astype("<i8", copy=False).tobytes(),
        pair_counts=counts.pair_counts.astype("<f8", copy=False).tobytes(),
    )


def _changed(row: int, item: Item) -> ChangedItem:
    """Without attributes and `added_at`: the server alone uses them."""
    own = ("attributes", "added_at")
    return ChangedItem(row, **{name: value for name, value in vars(item).items() if name not in own})
