"""Lists to look through: GET /items, GET /items/{item_id}/related, GET /users, GET /popular, /trending and /latest."""

from fastapi import APIRouter, Request

from service.http.access.routes import ScopedRoute
from service.http.dependencies import (
    By,
    Cursor,
    FilterText,
    ItemIdPath,
    Limit,
    ListTurn,
    NumNeighbors,
    Prefix,
    ResourcesDep,
    SearchWords,
    while_connected,
)
from service.http.requests.filters import condition_of_text
from service.http.schemas.items import ItemsPage, RankedItems, RelatedItems
from service.http.schemas.users import UsersPage
from service.identity.tenants import of_tenant
from service.resources import Resources
from service.usecases.browsing.rankings import Ranking

router = APIRouter(route_class=ScopedRoute, dependencies=[ListTurn])


@router.get("/items", tags=["items"])
async def list_items(
    resources: ResourcesDep,
    query: SearchWords = "",
    filter: FilterText = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> ItemsPage:
    """The catalogue in pages, hidden items too: all of it, or what has the words of a query and passes a filter."""
    condition = None if filter is None else condition_of_text(filter)
    return ItemsPage.model_validate(await resources.item_list.page(query, condition, limit, cursor))


@router.get("/items/{item_id}/related", tags=["items"])
async def get_related(
    item_id: ItemIdPath, request: Request, resources: ResourcesDep, k: NumNeighbors = 10, by: By = "behaviour"
) -> RelatedItems:
    """The items that go together with this one: for users (`behaviour`), or by the words of their titles (`words`)."""
    found = await while_connected(request, resources.related.of(item_id, k, by))
    return RelatedItems.model_validate({"item_id": item_id, "related": found})


@router.get("/users", tags=["users"])
async def list_users(
    resources: ResourcesDep, prefix: Prefix = "", limit: Limit = 50, cursor: Cursor = None
) -> UsersPage:
    """The users of whom events are stored, in pages and in no order."""
    return UsersPage.model_validate(await resources.user_list.page(of_tenant(prefix), limit, cursor))


@router.get("/popular", tags=["items"])
async def list_popular(resources: ResourcesDep, k: NumNeighbors = 10, filter: FilterText = None) -> RankedItems:
    """What most users chose, in training and since then; live events fade."""
    return await _ranked(resources, "popular", k, filter)


@router.get("/trending", tags=["items"])
async def list_trending(resources: ResourcesDep, k: NumNeighbors = 10, filter: FilterText = None) -> RankedItems:
    """What users choose more in these days than in the weeks before; empty while no events are counted."""
    return await _ranked(resources, "trending", k, filter)


@router.get("/latest", tags=["items"])
async def list_latest(resources: ResourcesDep, k: NumNeighbors = 10, filter: FilterText = None) -> RankedItems:
    """The items that came while the service ran, the newest first."""
    return await _ranked(resources, "latest", k, filter)


async def _ranked(resources: Resources, ranking: Ranking, k: int, text: str | None) -> RankedItems:
    condition = None if text is None else condition_of_text(text)
    return RankedItems.model_validate({"items": await resources.rankings.of(ranking, k, condition)})
