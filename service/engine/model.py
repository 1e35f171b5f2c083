"""The process of the model: opens the bundle, runs batches, sends results. With `knowledge.py` and `words.py` the only
code with torch.

`process.py` starts it as `python -m service.engine.model FD OPTIONS`. FD is the file descriptor of its end of a socket
pair; OPTIONS is `ModelOptions` as JSON. It reads all messages that have arrived, forms one batch, runs it, sends its
results, and begins again. It ends when the server closes the socket, also when the server was killed.
"""

import contextlib
import gc
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
import structlog
import torch
from transformers.utils import logging as transformers_logging

from model_store.answers import PastRows, Query
from model_store.bundle import Bundle
from model_store.errors import ModelStoreError
from model_store.files import identity_of
from model_store.inference import encode, recommend
from model_store.lm.precision import set_precision
from model_store.lm.prepacked import prepack_matrices
from model_store.lm.window_cache import WindowCache
from model_store.related import related
from service import logs
from service.engine.admission import Pace
from service.engine.batching import Batcher, Job
from service.engine.knowledge import Knowledge, known_past, with_all_events
from service.engine.messages import (
    FEW_ITEMS,
    AskWords,
    Batch,
    Broken,
    Cancel,
    CountItems,
    Encode,
    Encoded,
    Expired,
    Failed,
    FindRelated,
    FindSimilar,
    Frames,
    ItemsCounted,
    ItemsPut,
    ModelOptions,
    PutItems,
    ReadMemory,
    ReadTitles,
    ReadVectors,
    Ready,
    Recommend,
    Recommended,
    RelatedFound,
    Result,
    SimilarFound,
    VectorsRead,
    Work,
    frame,
    to_model,
    unpack_rows,
)
from service.engine.words import WordsRunner
from service.tracing.jobs import trace_jobs
from service.tracing.traces import Traces

log = structlog.get_logger("service.engine.model")

_RECEIVE_BYTES = 1 << 20
_SMALL_MODEL = 2**24  # parameters; for smaller models, sharing a product among cores costs more than it saves
_WORDS_COST = 2048  # tokens: four queries in words in a batch
_NICENESS = 5  # the server goes first: its work is short, and it feeds the model
_WARM_BATCHES = (1, 4)
_KINDS: dict[type, str] = {
    Recommend: "recommend",
    Encode: "encode",
    ReadTitles: "titles",
    PutItems: "put",
    CountItems: "count",
    FindSimilar: "similar",
    FindRelated: "related",
    ReadVectors: "vectors",
    AskWords: "words",
    ReadMemory: "memory",
}


class CannotServe(Exception):
    """The options do not fit this machine or this bundle."""


class Model:
    """An open bundle that runs batches of jobs. Single-threaded."""

    def __init__(self, bundle: Bundle, options: ModelOptions) -> None:
        self.bundle = bundle
        self.windows = WindowCache(
            options.window_cache_mib * 2**20, keeps_keys_values=bundle.manifest.vocabulary == "titles"
        )
        self.num_threads = options.threads or _default_threads(bundle)
        self._runners: dict[str, Callable[[Sequence[Any]], list[Result]]] = {
            "recommend": self._recommend,
            "encode": self._encode,
            "titles": self._read_titles,
            "put": self._put,
            "fill": self._put,
            "count": self._count,
            "similar": self._find_similar,
            "related": self._find_related,
            "vectors": self._read_vectors,
        }
        self.words = None if bundle.words is None else WordsRunner(bundle.words, bundle.reasoner)
        self.knowledge = Knowledge(bundle, self.words)
        if self.words is not None:
            self._runners |= {"words": self.words.answer, "memory": self.words.read_memory}

    @classmethod
    def open(cls, options: ModelOptions) -> "Model":
        """Raises ModelStoreError or CannotServe."""
        if options.device == "cuda" and not torch.cuda.is_available():
            raise CannotServe("AUTOMR_DEVICE: cuda was asked for, but torch finds no such device")
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        bundle = Bundle.open(options.bundle, device=automatic if options.device == "auto" else options.device)
        if options.precision != "bundle":
            try:
                set_precision(bundle.lm, options.precision)
            except ValueError as error:
                raise CannotServe(f"AUTOMR_PRECISION: {error}") from None
        prepack_matrices(bundle.lm)
        return cls(bundle, options)

    def warm_up(self) -> Ready:
        """Runs full prompts with full memory, so that the first request does not pay for lazy initialisation."""
        torch.set_num_threads(self.num_threads)
        manifest = self.bundle.manifest
        rows = self.bundle.catalogue.by_popularity[: manifest.prompt.recent_length]
        prompt = self.bundle.prompt.tokens([self.bundle.catalogue.items[row].title for row in rows])
        memory = np.repeat(encode(self.bundle.lm, [prompt]), manifest.memory.max_elements, axis=0)
        past_length = manifest.voices.past_length if manifest.voices else 0
        past = np.resize(rows, past_length if len(rows) else 0).tolist()
        query = Query(
            prompt,
            memory,
            np.ones(len(self.bundle.catalogue), dtype=bool),
            num_results=10,
            past=PastRows(past, range(len(past)), len(past)) if past else None,
        )
        for size in _WARM_BATCHES:
            recommend(self.bundle, [query] * size)
        if self.words is not None:
            self.words.warm_up(rows.tolist())
        return Ready(str(self.bundle.lm.device), self.num_threads, identity_of(manifest))

    def job(self, message: Work, arrived_at: float) -> Job[Work]:
        """The job costs the tokens that it computes: prompt, scores of the memory, at least one token for each beam."""
        cost, deadline, kind = 1, float("inf"), _KINDS[type(message)]
        if isinstance(message, Recommend | Encode):
            cost = len(self.bundle.prompt.tokens(message.titles))
        if isinstance(message, Recommend):
            num_memories = len(message.memory) // (2 * self.bundle.lm.hidden_size)
            cost += num_memories + self.bundle.manifest.generation.num_beams
            deadline = message.deadline
        if isinstance(message, AskWords):
            cost, deadline = _WORDS_COST, message.deadline
        if isinstance(message, PutItems):
            cost = len(message.items)
            kind = "put" if cost <= FEW_ITEMS else "fill"
        return Job(message.id, kind, message, cost, deadline, arrived_at, getattr(message, "caller", 0))

    def run(self, kind: str, asked: Sequence[Work]) -> list[Result]:
        """The result of each message. A batch that fails is run one by one, so that one bad job fails alone."""
        try:
            return self._runners[kind](asked)
        except Exception as error:
            if len(asked) == 1:
                log.exception("a job failed", kind=kind)
                return [Failed(asked[0].id, f"{type(error).__name__}: {error}")]
            log.warning("a batch failed, running its jobs alone", kind=kind, size=len(asked))
            return [result for each in asked for result in self.run(kind, [each])]

    def _recommend(self, asked: Sequence[Recommend]) -> list[Result]:
        answers = recommend(self.bundle, [self._query(each) for each in asked], self.windows)
        return [
            Recommended(
                id=each.id,
                items=answer.items,
                chosen=list(answer.chosen),
                weights=answer.weights.astype("<f4", copy=False).tobytes(),
                null_weight=answer.null_weight,
                timings_s=answer.timings_s,
                reasons=list(answer.reasons),
                event_shares=answer.event_shares.astype("<f4", copy=False).tobytes(),
            )
            for each, answer in zip(
                asked, map(with_all_events, asked, answers, repeat(self.knowledge.num_items)), strict=True
            )
        ]

    def _query(self, asked: Recommend) -> Query:
        return Query(
            prompt=self.bundle.prompt.tokens(asked.titles),
            memory=np.frombuffer(asked.memory, dtype="<f2").reshape(-1, self.bundle.lm.hidden_size),
            allowed=unpack_rows(asked.allowed, asked.num_items, len(self.bundle.catalogue)),
            num_results=asked.num_results,
            past=known_past(asked, self.knowledge.num_items),
        )

    def _encode(self, asked: Sequence[Encode]) -> list[Result]:
        """Keeps the windows in the cache: the next request of a user asks for the newest of them."""
        states = encode(self.bundle.lm, [self.bundle.prompt.tokens(each.titles) for each in asked], self.windows)
        return [
            Encoded(each.id, state.astype("<f2", copy=False).tobytes())
            for each, state in zip(asked, states, strict=True)
        ]

    def _read_titles(self, asked: Sequence[ReadTitles]) -> list[Result]:
        found = [self.knowledge.read_titles(each.titles) for each in asked]
        return [
            VectorsRead(each.id, part.astype("<f4", copy=False).tobytes())
            for each, part in zip(asked, found, strict=True)
        ]

    def _put(self, asked: Sequence[PutItems]) -> list[Result]:
        read = [np.frombuffer(each.vectors, dtype="<f4").reshape(-1, self.bundle.index.dimension) for each in asked]
        pairs = [pair for each, part in zip(asked, read, strict=True) for pair in zip(each.items, part, strict=False)]
        vectors = {item.title: vector for item, vector in pairs}
        self.knowledge.put([item for each in asked for item in each.items], vectors)
        return [ItemsPut(each.id) for each in asked]

    def _count(self, asked: Sequence[CountItems]) -> list[Result]:
        """Each message replaces the counts, so only the last one matters."""
        self.knowledge.count(asked[-1])
        return [ItemsCounted(each.id) for each in asked]

    def _find_related(self, asked: Sequence[FindRelated]) -> list[Result]:
        return [self._related_to(each) for each in asked]

    def _related_to(self, asked: FindRelated) -> RelatedFound:
        if asked.row >= self.knowledge.num_items:
            return RelatedFound(asked.id, [], [], [])
        allowed = unpack_rows(asked.allowed, asked.num_items, self.knowledge.num_items)
        found = related(self.bundle, asked.row, asked.num_results, allowed, self.knowledge.counts)
        return RelatedFound(
            asked.id, [each.row for each in found], [each.score for each in found], [each.table for each in found]
        )

    def _read_vectors(self, asked: Sequence[ReadVectors]) -> list[Result]:
        found = [self.knowledge.vectors(each.rows) for each in asked]
        return [
            VectorsRead(each.id, vectors.astype("<f4", copy=False).tobytes())
            for each, vectors in zip(asked, found, strict=True)
        ]

    def _find_similar(self, asked: Sequence[FindSimilar]) -> list[Result]:
        return [self._similar_to(each) for each in asked]

    def _similar_to(self, asked: FindSimilar) -> SimilarFound:
        index = self.bundle.index
        if asked.row >= len(index):
            return SimilarFound(asked.id, [], [])
        allowed = unpack_rows(asked.allowed, asked.num_items, len(self.bundle.catalogue))
        vector = index.vectors(np.array([asked.row]))
        rows, distances = (part[0] for part in index.search(vector, min(asked.num_results, len(index)), allowed))
        found = rows >= 0
        return SimilarFound(asked.id, rows[found].tolist(), distances[found].tolist())


class Loop:
    """Receives all messages that have arrived, runs one batch, sends its results; until the server closes."""

    def __init__(self, connection: socket.socket, model: Model, options: ModelOptions, traces: Traces) -> None:
        self.connection, self.model, self.traces, self.frames = connection, model, traces, Frames()
        self.pace = Pace()
        self.batcher: Batcher[Work] = Batcher(
            max_batch=options.max_batch,
            max_batch_tokens=max(options.max_batch_tokens, model.bundle.prompt.max_tokens),
            expected_s=self.pace.seconds,
        )

    def run(self) -> None:
        ended_at = time.monotonic()
        while self._receive():
            jobs, late = self.batcher.next_batch(time.monotonic())
            results: list[Result] = [Expired(job.id) for job in late]
            kind, seconds = "none", 0.0
            if jobs:
                kind, began_at = jobs[0].kind, max(ended_at, min(job.arrived_at for job in jobs))
                run_at = time.monotonic()
                results += self.model.run(kind, [job.payload for job in jobs])
                ended_at = time.monotonic()
                arrived = {job.id: (job.payload.traceparent, job.arrived_at) for job in jobs}
                trace_jobs(self.traces, kind, arrived, results, began=run_at, ended=ended_at)
                seconds = ended_at - began_at
                if kind == "fill":
                    gc.collect(1)
                    gc.freeze()  # with 100,000 items more, a full collection would take half a second
                if kind in ("recommend", "words"):
                    self.pace.observe(len(jobs), seconds)
            self._send(kind, len(jobs), seconds, results)

    def _receive(self) -> bool:
        """Waits only while there is no job to run. False when the server has closed the connection."""
        while select.select([self.connection], [], [], 0 if len(self.batcher) else None)[0]:
            data = self.connection.recv(_RECEIVE_BYTES)
            if not data:
                return False
            now = time.monotonic()
            for body in self.frames.feed(data):
                self._take(to_model.decode(body), now)
        return True

    def _take(self, message: Work | Cancel, now: float) -> None:
        if isinstance(message, Cancel):
            self.batcher.cancel(message.id)
            return
        try:
            self.batcher.add(self.model.job(message, now))
        except Exception as error:
            log.exception("a job failed", kind=_KINDS[type(message)])
            self._send("none", 0, 0.0, [Failed(message.id, f"{type(error).__name__}: {error}")])

    def _send(self, kind: str, num_jobs: int, seconds: float, results: list[Result]) -> None:
        cache = self.model.windows
        batch = Batch(kind, num_jobs, seconds, results, cache.num_hits, cache.num_misses, cache.num_bytes)
        self.connection.sendall(frame(batch))


def serve(connection: socket.socket, options: ModelOptions, open_model: Callable[[ModelOptions], Model]) -> None:
    """Serves one server until it closes the connection. Blocks."""
    with connection, contextlib.suppress(ConnectionError):  # the server was killed
        try:
            model = open_model(options)
            ready = model.warm_up()
        except (ModelStoreError, CannotServe) as error:
            connection.sendall(frame(Broken(str(error))))
            return
        gc.freeze()  # the garbage collector need not look at the model
        connection.sendall(frame(ready))
        with Traces(options.otlp_endpoint, service="automr-model").opened() as traces:
            Loop(connection, model, options, traces).run()


def main(argv: Sequence[str] | None = None) -> int:
    descriptor, options_json = sys.argv[1:] if argv is None else argv
    options = msgspec.json.decode(options_json, type=ModelOptions)
    logs.configure(level=options.log_level, format=options.log_format)
    os.nice(_NICENESS)
    transformers_logging.disable_progress_bar()  # a log is not a terminal
    serve(socket.socket(fileno=int(descriptor)), options, Model.open)
    return 0


def _default_threads(bundle: Bundle) -> int:
    """One for a small model, which leaves the other cores to the server and the store; otherwise all cores."""
    num_parameters = sum(parameter.numel() for parameter in bundle.lm.model.parameters())
    return 1 if num_parameters < _SMALL_MODEL else os.cpu_count() or 1


if __name__ == "__main__":
    raise SystemExit(main())
