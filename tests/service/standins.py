"""Small in-memory replacements of the use cases, engine and store, to test `service.http` alone."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient

from model_store.catalogue.items import Item
from service.app import create_app
from service.engine.admission import Admission
from service.engine.turns import Turns
from service.errors import StoreUnavailable, UnknownItem, UnknownUser
from service.metrics import Metrics
from service.resources import Resources
from service.settings import Settings
from service.store.erasure.deletions import Receipt
from service.store.events import Deleted, Event, UserCounts
from service.usecases.explain import ShownItem, ShownReason, UsedMemory
from service.usecases.ingest import Outcome, Wait
from service.usecases.items import Neighbor
from service.usecases.ranking.requests import Recommendation, Request, ServedModel
from service.usecases.users import TitledEvent, UserPage


@dataclass
class Recommender:
    """Answers with one item. Runs `hook` first, which may wait or raise."""

    hook: Callable[[], Any] = lambda: None
    requests: list[Request] = field(default_factory=list)
    cancelled: int = 0

    async def recommend(self, request: Request) -> Recommendation:
        self.requests.append(request)
        try:
            if (waiting := self.hook()) is not None:
                await waiting
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Recommendation(
            recommendation_id="r1",
            user_id=request.user_id,
            items=[ShownItem(1, "i1", "One", -1.0, "generated", 0.0, ShownReason("near", 0.75, "i2", "e1"), [])],
            memory=[UsedMemory("e1", "i2", "Two", 1, None, 0.5)],
            fallback=None,
            model=ServedModel(bundle="tiny", space="abc"),
            timings_ms={"total": 1.0},
        )


@dataclass
class Ingest:
    """Accepts every valid event. With `wait="visible"` runs `hook`, which may wait or raise."""

    hook: Callable[[], Any] = lambda: None
    events: list[Event] = field(default_factory=list)
    cancelled: int = 0
    reading: Turns = field(default_factory=lambda: Turns(lambda: False))

    async def submit(
        self,
        elements: Sequence[Any],
        wait: Wait,
        *,
        check: Callable[[Any], Event | str],
        timeout_s: float | None = None,
        durability: object = None,
    ) -> list[Outcome]:
        checked = [check(each) for each in elements]
        self.events += [each for each in checked if isinstance(each, Event)]
        try:
            if wait == "visible" and (waiting := self.hook()) is not None:
                await waiting
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [
            Outcome("rejected", reason=each) if isinstance(each, str) else Outcome("accepted", each.event_id)
            for each in checked
        ]


@dataclass
class Items:
    known: dict[str, Item] = field(default_factory=dict)

    async def get(self, item_id: str) -> Item:
        if item_id not in self.known:
            raise UnknownItem("There is no such item.")
        return self.known[item_id]

    async def put(self, item: Item) -> Item:
        self.known[item.item_id] = item
        return item

    async def put_many(self, items: Sequence[Item]) -> list[Item]:
        return [await self.put(item) for item in items]

    async def patch(self, item_id: str, fields: Mapping[str, Any]) -> Item:
        return await self.put(replace(await self.get(item_id), **fields))

    async def delete(self, item_id: str) -> None:
        self.known.pop(item_id, None)

    async def neighbors(self, item_id: str, k: int) -> list[Neighbor]:
        await self.get(item_id)
        return [Neighbor(f"n{n}", "N", 0.5) for n in range(k)]


class Users:
    async def get(self, user_id: str, cursor: str | None, limit: int) -> UserPage:
        if user_id == "nobody":
            raise UnknownUser("Nothing is stored about this user.")
        return UserPage(UserCounts(limit, 0), recent=[], memory=[], next_cursor=cursor)

    async def forget(self, user_id: str) -> Receipt:
        return Receipt("r", Deleted(events=2, states=1, keys=4))

    async def forget_event(self, user_id: str, event_id: str) -> bool:
        return True

    async def export(self, user_id: str) -> AsyncIterator[TitledEvent]:
        if user_id == "nobody":
            raise StoreUnavailable("The memory store does not answer.")
        for number in range(2):
            yield TitledEvent(f"e{number}", "i", "日", 1, "view", None, None, None, None)


@dataclass
class Engine:
    is_ready: bool = True
    intake: tuple[int, ...] = ()
    admission: Admission = field(default_factory=lambda: Admission(max_queue=9, max_batch=9))


class Unsealed:
    async def problem(self) -> str | None:
        return None


@dataclass
class Store:
    is_up: bool = True
    sealing: Unsealed = field(default_factory=Unsealed)

    async def ping(self) -> None:
        if not self.is_up:
            raise StoreUnavailable("The memory store does not answer.")

    probe = ping

    async def run(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        raise StoreUnavailable("The memory store does not answer.")

    async def users(self) -> AsyncIterator[str]:
        await self.ping()
        yield "u'1"


@dataclass
class Shell:
    """The application with its stand-ins, and a client that sends requests to it."""

    app: FastAPI
    client: AsyncClient
    recommender: Recommender
    ingest: Ingest
    items: Items
    engine: Engine
    store: Store

    def metric(self, name: str, **labels: str) -> float:
        return self.app.state.metrics.registry.get_sample_value(f"automr_{name}", labels) or 0.0


def resources(settings: Settings, metrics: Metrics) -> Resources:
    parts: dict[str, Any] = {
        "view": view(), "store": Store(), "engine": Engine(), "items": Items(), "ingest": Ingest(), "users": Users(),
        "recommender": Recommender(), "live_counts": None, "shown": None, "related": None, "item_list": None,
        "user_list": None, "experiments": None, "eraser": None,
        "rankings": None, "event_table": None,
    }  # fmt: skip
    parts["answers"] = parts["recommender"]
    return Resources(settings=settings, metrics=metrics, loaded_at="2026-01-01T00:00:00+00:00", **parts)


def view() -> SimpleNamespace:
    """The parts of a bundle that GET /model shows."""
    manifest = SimpleNamespace(
        name="tiny",
        space="abc",
        format_version=1,
        vocabulary="titles",
        backbone=SimpleNamespace(split_layer=2),
        prompt=SimpleNamespace(recent_length=10),
        memory=SimpleNamespace(max_elements=90),
        words=None,
    )
    return SimpleNamespace(manifest=manifest, catalogue=["a", "b", "c"])


@asynccontextmanager
async def open_standins(settings: Settings, metrics: Metrics) -> AsyncIterator[Resources]:
    yield resources(settings, metrics)


def shell(**settings: Any) -> AbstractAsyncContextManager[Shell]:
    return _shell(Settings.from_env({}, **settings))


@asynccontextmanager
async def _shell(settings: Settings) -> AsyncIterator[Shell]:
    app = create_app(settings, open_standins)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client,
    ):
        parts = app.state.resources
        yield Shell(app, client, parts.recommender, parts.ingest, parts.items, parts.engine, parts.store)


async def status_after_leaving(app: FastAPI, path: str, body: bytes) -> int:
    """POSTs JSON and closes the connection a moment later; the status that the application gives nevertheless."""
    messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0.01)
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    await app({"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}, receive, send)
    return int(sent[0]["status"])
