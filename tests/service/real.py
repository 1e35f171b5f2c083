"""The service with all its real parts around a tiny bundle, opened in the test's own process.

The model runs in a thread: the same loop and the same messages over the same kind of socket as in a process of its own,
but it starts in milliseconds, and a test can look into it. `test_process.py` starts real processes.
"""

import asyncio
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.inference import encode
from model_store.text.history import tie_key, window_ending_at
from model_store.view import BundleView
from service.app import create_app
from service.engine.engine import Engine
from service.engine.messages import ModelOptions, Result
from service.engine.model import Model, serve
from service.engine.process import spawn
from service.erasure.eraser import Eraser
from service.feedback.answers import Answers
from service.feedback.experiments import Experiments
from service.http.requests.bodies import RecommendRequest
from service.http.routes.interactions import event_or_reason
from service.http.routes.recommend import to_request
from service.metrics import Metrics
from service.resources import Resources, open_resources
from service.settings import Settings
from service.store.client import MemoryStore
from service.store.events import Event
from service.usecases.encode import Worker
from service.usecases.ingest import Ingest, Outcome
from service.usecases.items import Items
from service.usecases.live import LiveCounts
from service.usecases.ranking.requests import Recommendation
from service.usecases.recommend import Recommender
from service.usecases.seen import SeenRows
from service.usecases.shown import ShownLists
from service.usecases.timeline import Timeline, events_with_states, window_fingerprint
from service.usecases.users import Users

K, M = 3, 20  # of the bundle that tests.conftest writes
NOW = 1_700_000_000
PATIENT_MS = 20_000


class ModelThread:
    """Starts the model in a thread; stands in for `service.engine.process.spawn` and for the process it returns."""

    def __init__(self) -> None:
        self.model: Model | None = None
        self._thread: threading.Thread | None = None
        self._is_killed = False

    def __call__(self, connection: socket.socket, options: ModelOptions) -> "ModelThread":
        self._thread = threading.Thread(target=serve, args=(connection.dup(), options, self._open), daemon=True)
        self._thread.start()
        return self

    def _open(self, options: ModelOptions) -> Model:
        self.model = Model.open(options)
        return self.model

    def wait(self, timeout: float | None = None) -> int:
        assert self._thread is not None
        self._thread.join(0 if self._is_killed else timeout)
        if self._is_killed:
            return -9
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired("model", timeout or 0.0)
        return 0

    def kill(self) -> None:
        """A thread cannot be killed: it is left alone, and ends when it finds the socket closed."""
        self._is_killed = True


@dataclass(frozen=True)
class Service:
    """`view` is the bundle on the side of the server, `bundle` the one on the side of the model."""

    view: BundleView
    thread: ModelThread | None
    engine: Engine
    store: MemoryStore
    items: Items
    ingest: Ingest
    worker: Worker
    recommender: Recommender
    users: Users
    shown: ShownLists
    answers: Answers
    experiments: Experiments
    live_counts: LiveCounts
    eraser: Eraser
    metrics: Metrics

    @property
    def model(self) -> Model:
        assert self.thread is not None and self.thread.model is not None, "the model runs in a process of its own"
        return self.thread.model

    @property
    def bundle(self) -> Bundle:
        return self.model.bundle

    @property
    def space(self) -> str:
        return self.view.manifest.space

    async def submit(self, elements: Sequence[Any], wait: Literal["durable", "visible"]) -> list[Outcome]:
        """Validates JSON elements as POST /interactions does, and sends them."""
        return await self.ingest.submit([event_or_reason(element) for element in elements], wait)

    async def timeline(self, user_id: str) -> Timeline:
        return Timeline(await self.store.recall(user_id, self.space, events_with_states(self.view)), self.view)

    async def seen(self, user_id: str) -> set[str]:
        """Ids of the items that the user has had."""
        seen = (await self.store.recall_and_seen(user_id, self.space, 1)).seen
        rows = SeenRows(self.view.catalogue).of(seen, self.view.catalogue, NOW)
        return {self.view.catalogue.items[row].item_id for row in rows.tolist()}

    async def work_off(self) -> None:
        """Until the encode queue is empty."""
        while await self.store.backlog():
            await self.worker.work(block_ms=1)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"automr_{name}", labels) or 0.0


def settings_for(bundle: Path, url: str, **settings: Any) -> Settings:
    """Encoding happens when the test calls for it, and live events are not counted, unless the test says otherwise.

    A request and a call to the store have more time than elsewhere: on a busy machine a second can pass in one step.
    """
    own = {"threads": 1, "encode_in_process": False, "live_half_life_days": 0}
    chosen = own | {"deadline_ms": PATIENT_MS, "store_timeout_s": PATIENT_MS / 1000} | settings
    return Settings.from_env({}, bundle=bundle, store=url, **chosen)


def parts_of(resources: Resources, thread: ModelThread | None) -> Service:
    return Service(
        view=resources.view,
        thread=thread,
        engine=resources.engine,
        store=resources.store,
        items=resources.items,
        ingest=resources.ingest,
        worker=resources.ingest.worker,
        recommender=resources.recommender,
        users=resources.users,
        shown=resources.shown,
        answers=resources.answers,
        experiments=resources.experiments,
        live_counts=resources.live_counts,
        eraser=resources.eraser,
        metrics=resources.metrics,
    )


@asynccontextmanager
async def open_service(bundle: Path, url: str, *, in_process: bool = False, **settings: Any) -> AsyncIterator[Service]:
    """`in_process` starts the model in a process of its own, which takes seconds."""
    thread = None if in_process else ModelThread()
    chosen = settings_for(bundle, url, **settings)
    async with open_resources(chosen, Metrics(), spawn=thread or spawn) as resources:
        yield parts_of(resources, thread)


async def ask(service: Service, **request: Any) -> Recommendation:
    """Validates a JSON request as POST /recommend does, and sends it."""
    return await service.recommender.recommend(to_request(RecommendRequest(**request)))


@asynccontextmanager
async def busy(service: Service) -> AsyncIterator[Callable[[], None]]:
    """The model is in the middle of a batch until the yielded function is called, or the block ends."""
    started, release = threading.Event(), threading.Event()
    find_similar = service.model._runners["similar"]

    def wait(asked: Sequence[Any]) -> list[Result]:
        started.set()
        release.wait(10)
        return find_similar(asked)

    service.model._runners["similar"] = wait
    call = asyncio.create_task(service.engine.similar(0, 1, service.view.catalogue.available(0)))
    try:
        await asyncio.to_thread(started.wait, 10)
        yield release.set
    finally:
        release.set()
        await call
        service.model._runners["similar"] = find_similar


@asynccontextmanager
async def open_app(
    bundle: Path, url: str, *, thread: ModelThread | None = None, **settings: Any
) -> AsyncIterator[tuple[FastAPI, AsyncClient]]:
    """`thread`: where the model runs, for a test that looks into it."""
    app = create_app(settings_for(bundle, url, **settings), partial(open_resources, spawn=thread or ModelThread()))
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client,
    ):
        yield app, client


def interaction(number: int, user_id: str = "u", **fields: Any) -> dict[str, Any]:
    facts = {"event_id": f"e{number:03}", "user_id": user_id, "item_id": f"i{number % 7}", "timestamp": NOW + number}
    return facts | fields


def history(count: int, user_id: str = "u") -> list[dict[str, Any]]:
    return [interaction(number, user_id) for number in range(count)]


def in_order(events: Sequence[Event]) -> list[Event]:
    """The documented order, stated once more."""
    return sorted(events, key=lambda event: (event.timestamp, tie_key(event.user_id, event.item_id), event.event_id))


def states_from_scratch(events: Sequence[Event], bundle: Bundle) -> dict[str, tuple[NDArray[np.float16], bytes]]:
    """Event id -> state and fingerprint, of the newest K + M, encoded one window at a time."""
    ordered = in_order(events)
    titles = bundle.catalogue.titles(event.item_id for event in ordered)
    found = {}
    for position, event in list(enumerate(ordered))[-(K + M) :]:
        window = window_ending_at(titles, position, K)
        state = encode(bundle.lm, [bundle.prompt.tokens(window)])[0]
        found[event.event_id] = (state, window_fingerprint(window))
    return found
