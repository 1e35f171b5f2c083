"""The service with all its real parts around a tiny bundle, opened in the test's own process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.inference import encode
from model_store.text.history import tie_key, window_ending_at, window_fingerprint
from service.app import create_app
from service.engine.engine import Engine
from service.http.dependencies import Resources
from service.metrics import Metrics
from service.resources import open_resources
from service.settings import Settings
from service.store.client import MemoryStore
from service.store.events import Event
from service.usecases.encode import Worker
from service.usecases.ingest import Ingest
from service.usecases.items import Items
from service.usecases.recommend import Recommender
from service.usecases.seen import SeenRows
from service.usecases.timeline import Timeline, events_needed, title_of
from service.usecases.users import Users

K, M = 3, 20  # of the bundle that tests.conftest writes
NOW = 1_700_000_000


@dataclass(frozen=True)
class Service:
    bundle: Bundle
    engine: Engine
    store: MemoryStore
    items: Items
    ingest: Ingest
    worker: Worker
    recommender: Recommender
    users: Users
    metrics: Metrics

    @property
    def space(self) -> str:
        return self.bundle.manifest.space

    async def timeline(self, user_id: str) -> Timeline:
        return Timeline(await self.store.recall(user_id, self.space, events_needed(self.bundle)), self.bundle)

    async def seen(self, user_id: str) -> set[str]:
        """Ids of the items that the user has had."""
        digests = (await self.store.recall_and_seen(user_id, self.space, 1))[1]
        rows = SeenRows(self.bundle.catalogue).of(digests, self.bundle.catalogue)
        return {self.bundle.catalogue.items[row].item_id for row in rows.tolist()}

    async def work_off(self) -> None:
        """Until the encode queue is empty."""
        while await self.store.backlog():
            await self.worker.work(block_ms=1)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"automr_{name}", labels) or 0.0


def settings_for(bundle: Path, url: str, **settings: Any) -> Settings:
    """Encoding happens when the test says so, unless it says otherwise; so does what engine and handlers share."""
    chosen = {"threads": 1, "encode_in_process": False, "engine_thread": "own"} | settings
    return Settings.from_env({}, bundle=bundle, store=url, **chosen)


def parts_of(resources: Resources) -> Service:
    ingest = cast(Ingest, resources.ingest)
    return Service(
        bundle=ingest.bundle,
        engine=cast(Engine, resources.engine),
        store=cast(MemoryStore, resources.store),
        items=cast(Items, resources.items),
        ingest=ingest,
        worker=ingest.worker,
        recommender=cast(Recommender, resources.recommender),
        users=cast(Users, resources.users),
        metrics=resources.metrics,
    )


@asynccontextmanager
async def open_service(bundle: Path, url: str, **settings: Any) -> AsyncIterator[Service]:
    async with open_resources(settings_for(bundle, url, **settings), Metrics()) as resources:
        yield parts_of(resources)


@asynccontextmanager
async def open_app(bundle: Path, url: str, **settings: Any) -> AsyncIterator[tuple[FastAPI, AsyncClient]]:
    app = create_app(settings_for(bundle, url, **settings))
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
    titles = [title_of(event.item_id, bundle) for event in ordered]
    found = {}
    for position, event in list(enumerate(ordered))[-(K + M) :]:
        window = window_ending_at(titles, position, K)
        state = encode(bundle.lm, [bundle.prompt.tokens(window)])[0]
        found[event.event_id] = (state, window_fingerprint(window))
    return found
