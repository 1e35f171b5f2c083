"""Small in-memory collaborators, typed by `service.http.dependencies`, so that the HTTP shell can be tested alone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from pydantic import ValidationError

from service.app import create_app
from service.errors import StoreUnavailable, UnknownItem, UnknownUser
from service.http import schemas
from service.http.dependencies import Resources
from service.http.fields import reason
from service.metrics import Metrics
from service.settings import Settings


@dataclass
class Recommender:
    """Runs `hook` first, which may wait or raise."""

    hook: Callable[[], Any] = lambda: None
    requests: list[schemas.RecommendRequest] = field(default_factory=list)
    cancelled: int = 0

    async def recommend(self, request: schemas.RecommendRequest) -> schemas.RecommendResponse:
        self.requests.append(request)
        try:
            if (waiting := self.hook()) is not None:
                await waiting
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        item = schemas.RecommendedItem(rank=1, item_id="i1", title="One", score=-1.0, source="generated", distance=0.0)
        return schemas.RecommendResponse(
            recommendation_id="r1",
            user_id=request.user_id,
            items=[item],
            memory=[],
            fallback=None,
            model=schemas.ModelName(bundle="tiny", space="abc"),
            timings_ms={"total": 1.0},
        )


class Ingest:
    async def submit(self, elements: list[Any], wait: Literal["durable", "visible"]) -> schemas.InteractionsResponse:
        return schemas.InteractionsResponse(results=[self._judge(*each) for each in enumerate(elements)])

    def _judge(self, index: int, element: Any) -> schemas.InteractionResult:
        try:
            event = schemas.Interaction.model_validate(element)
        except ValidationError as error:
            return schemas.InteractionResult(index=index, event_id=None, status="rejected", reason=reason(error))
        return schemas.InteractionResult(index=index, event_id=event.event_id or f"e{index}", status="accepted")


@dataclass
class Items:
    known: dict[str, schemas.Item] = field(default_factory=dict)

    async def get(self, item_id: str) -> schemas.Item:
        if item_id not in self.known:
            raise UnknownItem("There is no such item.")
        return self.known[item_id]

    async def put(self, item_id: str, body: schemas.ItemBody) -> schemas.Item:
        self.known[item_id] = schemas.Item(**body.model_dump(exclude={"item_id"}), item_id=item_id)
        return self.known[item_id]

    async def put_many(self, items: list[schemas.NewItem]) -> schemas.ItemsResponse:
        return schemas.ItemsResponse(items=[await self.put(item.item_id, item) for item in items])

    async def patch(self, item_id: str, patch: schemas.ItemPatch) -> schemas.Item:
        changed = (await self.get(item_id)).model_copy(update=patch.model_dump(exclude_unset=True))
        self.known[item_id] = changed
        return changed

    async def delete(self, item_id: str) -> schemas.DeletedItem:
        return schemas.DeletedItem(item_id=item_id, deleted=self.known.pop(item_id, None) is not None)

    async def neighbors(self, item_id: str, k: int) -> schemas.Neighbors:
        await self.get(item_id)
        found = [schemas.Neighbor(item_id=f"n{n}", title="N", distance=0.5) for n in range(k)]
        return schemas.Neighbors(item_id=item_id, neighbors=found)


class Users:
    async def get(self, user_id: str, cursor: str | None, limit: int) -> schemas.UserPage:
        if user_id == "nobody":
            raise UnknownUser("Nothing is kept about this user.")
        counts = schemas.Counts(events=limit, states=0)
        return schemas.UserPage(user_id=user_id, counts=counts, recent=[], memory=[], next_cursor=cursor)

    async def forget(self, user_id: str) -> schemas.ForgottenUser:
        return schemas.ForgottenUser(user_id=user_id, events=2, states=1, keys=4)

    async def forget_event(self, user_id: str, event_id: str) -> schemas.ForgottenEvent:
        return schemas.ForgottenEvent(user_id=user_id, event_id=event_id, forgotten=True)

    async def export(self, user_id: str) -> AsyncIterator[dict[str, Any]]:
        if user_id == "nobody":
            raise StoreUnavailable("The memory store does not answer.")
        for number in range(2):
            yield {"event_id": f"e{number}", "title": "日"}


@dataclass
class Engine:
    is_ready: bool = True


@dataclass
class Store:
    is_up: bool = True

    async def ping(self) -> None:
        if not self.is_up:
            raise StoreUnavailable("The memory store does not answer.")

    async def users(self) -> AsyncIterator[str]:
        await self.ping()
        yield "u'1"


@dataclass
class Shell:
    """The application with its stand-ins, and a client that talks to it."""

    app: FastAPI
    client: AsyncClient
    recommender: Recommender
    items: Items
    engine: Engine
    store: Store

    def metric(self, name: str, **labels: str) -> float:
        return self.app.state.metrics.registry.get_sample_value(f"automr_{name}", labels) or 0.0


def model_info() -> schemas.ModelInfo:
    return schemas.ModelInfo(
        bundle="tiny",
        space="abc",
        format=1,
        vocabulary="titles",
        split_layer=2,
        recent_length=10,
        max_memory=90,
        num_items=3,
        loaded_at="2026-01-01T00:00:00+00:00",
    )


def resources(settings: Settings, metrics: Metrics) -> Resources:
    return Resources(
        settings=settings,
        metrics=metrics,
        recommender=Recommender(),
        ingest=Ingest(),
        items=Items(),
        users=Users(),
        engine=Engine(),
        store=Store(),
        describe=model_info,
    )


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
        yield Shell(app, client, parts.recommender, parts.items, parts.engine, parts.store)
