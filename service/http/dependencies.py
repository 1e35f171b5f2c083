"""What routes may ask for: the typed resources of the application and the parameters they share.

The protocols say what the HTTP shell needs of each collaborator; the shell knows none of their classes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar
from urllib.parse import unquote

from fastapi import Depends, Path, Query, Request
from pydantic import BeforeValidator

from service.errors import ClientGone, Draining, NotReady
from service.http import fields, schemas
from service.metrics import Metrics
from service.settings import Settings

T = TypeVar("T")


class Recommending(Protocol):
    async def recommend(self, request: schemas.RecommendRequest) -> schemas.RecommendResponse: ...


class Ingesting(Protocol):
    async def submit(
        self, elements: list[Any], wait: Literal["durable", "visible"]
    ) -> schemas.InteractionsResponse: ...


class Catalogue(Protocol):
    """Raises UnknownItem."""

    async def get(self, item_id: str) -> schemas.Item: ...
    async def put(self, item_id: str, body: schemas.ItemBody) -> schemas.Item: ...
    async def put_many(self, items: list[schemas.NewItem]) -> schemas.ItemsResponse: ...
    async def patch(self, item_id: str, patch: schemas.ItemPatch) -> schemas.Item: ...
    async def delete(self, item_id: str) -> schemas.DeletedItem: ...
    async def neighbors(self, item_id: str, k: int) -> schemas.Neighbors: ...


class UserDirectory(Protocol):
    """Raises UnknownUser (not when forgetting: that may be repeated), BadRequest for a foreign cursor."""

    async def get(self, user_id: str, cursor: str | None, limit: int) -> schemas.UserPage: ...
    async def forget(self, user_id: str) -> schemas.ForgottenUser: ...
    async def forget_event(self, user_id: str, event_id: str) -> schemas.ForgottenEvent: ...
    def export(self, user_id: str) -> AsyncIterator[dict[str, Any]]: ...


class EngineState(Protocol):
    @property
    def is_ready(self) -> bool: ...


class Store(Protocol):
    async def ping(self) -> Any: ...
    def users(self) -> AsyncIterator[str]: ...


@dataclass(frozen=True)
class Resources:
    """Everything that is open while the application runs."""

    settings: Settings
    metrics: Metrics
    recommender: Recommending
    ingest: Ingesting
    items: Catalogue
    users: UserDirectory
    engine: EngineState
    store: Store
    describe: Callable[[], schemas.ModelInfo]


# Coroutines, all of them: FastAPI sends plain functions through a thread, at a millisecond a request.
async def get_resources(request: Request) -> Resources:
    resources = getattr(request.app.state, "resources", None)
    if not isinstance(resources, Resources):
        raise NotReady("The bundle is still loading.")
    return resources


ResourcesDep = Annotated[Resources, Depends(get_resources)]


async def get_recommender(resources: ResourcesDep) -> Recommending:
    return resources.recommender


async def get_ingest(resources: ResourcesDep) -> Ingesting:
    return resources.ingest


async def get_items(resources: ResourcesDep) -> Catalogue:
    return resources.items


async def get_users(resources: ResourcesDep) -> UserDirectory:
    return resources.users


async def ensure_ready(request: Request, resources: ResourcesDep) -> None:
    """Raises unless a request would be answered in full right now."""
    if getattr(request.app.state, "is_draining", False):
        raise Draining("The service is shutting down.")
    if not resources.engine.is_ready:
        raise NotReady("The model is warming up.")
    try:
        async with asyncio.timeout(resources.settings.store_timeout_s):
            await resources.store.ping()
    except TimeoutError:
        raise NotReady("The memory store does not answer.") from None


RecommenderDep = Annotated[Recommending, Depends(get_recommender)]
IngestDep = Annotated[Ingesting, Depends(get_ingest)]
ItemsDep = Annotated[Catalogue, Depends(get_items)]
UsersDep = Annotated[UserDirectory, Depends(get_users)]


def _decoded(segment: str) -> str:
    """Paths reach the routes percent-encoded (see middleware.Edge), so `a%2Fb` is the id `a/b`."""
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("must be percent-encoded UTF-8") from None


UserIdPath = Annotated[fields.UserId, BeforeValidator(_decoded), Path(description="percent-encoded")]
ItemIdPath = Annotated[fields.ItemId, BeforeValidator(_decoded), Path(description="percent-encoded")]
EventIdPath = Annotated[fields.EventId, BeforeValidator(_decoded), Path(description="percent-encoded")]
Cursor = Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before")]
Limit = Annotated[int, Query(ge=1, le=500)]
NumNeighbors = Annotated[int, Query(ge=1, le=100)]


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`, or cancels it when the caller hangs up. Call it after the body is read."""
    waiting = asyncio.current_task()
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_left = True
        if waiting is not None:
            waiting.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and waiting is not None and not waiting.uncancel():  # else somebody else wants an end too
            raise ClientGone("The caller hung up.") from None
        raise
    finally:
        watching.cancel()
