"""/items: the catalogue, changed while the service runs."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError

from model_store.catalogue import items as catalogue
from service.errors import AllRejected
from service.http.body import JsonRoute
from service.http.dependencies import ItemIdPath, ListTurn, NumNeighbors, ResourcesDep, while_connected
from service.http.fields import reason, unknown_fields
from service.http.schemas.items import (
    DeletedItem,
    Item,
    ItemBody,
    ItemPatch,
    ItemResult,
    ItemsRequest,
    ItemsResponse,
    Neighbors,
    NewItem,
)

router = APIRouter(prefix="/items", tags=["items"], route_class=JsonRoute)


@router.post("")
async def put_items(body: ItemsRequest, resources: ResourcesDep) -> ItemsResponse:
    """Adds or replaces many items at once. A wrong element is rejected with a reason and does not affect the others."""
    found = [item_or_reason(element) for element in body.items]
    results = [
        ItemResult(index=index, item_id=None, status="rejected", reason=each)
        if isinstance(each, str)
        else ItemResult(index=index, item_id=each.item_id, status="accepted")
        for index, each in enumerate(found)
    ]
    items = [each for each in found if not isinstance(each, str)]
    if not items:
        raise AllRejected([result.model_dump() for result in results], "items")
    return ItemsResponse.model_validate({"items": await resources.items.put_many(items), "results": results})


def item_or_reason(element: Any) -> catalogue.Item | str:
    """The item of one JSON element, or why it is refused."""
    if isinstance(element, dict) and len(element) > len(NewItem.model_fields):
        return unknown_fields(name for name in element if name not in NewItem.model_fields)
    try:
        return catalogue.Item(**NewItem.model_validate(element).model_dump())
    except ValidationError as error:
        return reason(error)


@router.get("/{item_id}")
async def get_item(item_id: ItemIdPath, resources: ResourcesDep) -> Item:
    """One item of the catalogue."""
    return Item.model_validate(await resources.items.get(item_id))


@router.put("/{item_id}")
async def put_item(item_id: ItemIdPath, body: ItemBody, resources: ResourcesDep) -> Item:
    """Adds or replaces an item; a new one can be recommended within seconds."""
    return Item.model_validate(await resources.items.put(catalogue.Item(item_id, **body.model_dump())))


@router.patch("/{item_id}")
async def patch_item(item_id: ItemIdPath, body: ItemPatch, resources: ResourcesDep) -> Item:
    """Changes only the fields that are given. `attributes` are merged: null removes an attribute."""
    return Item.model_validate(await resources.items.patch(item_id, body.model_dump(exclude_unset=True)))


@router.delete("/{item_id}")
async def delete_item(item_id: ItemIdPath, resources: ResourcesDep) -> DeletedItem:
    """Deletes an item: it is never recommended again."""
    await resources.items.delete(item_id)
    return DeletedItem(item_id=item_id, deleted=True)


@router.get("/{item_id}/neighbors", dependencies=[ListTurn])
async def get_neighbors(
    item_id: ItemIdPath, request: Request, resources: ResourcesDep, k: NumNeighbors = 10
) -> Neighbors:
    """The items whose titles are nearest in the index."""
    neighbors = await while_connected(request, resources.items.neighbors(item_id, k))
    return Neighbors.model_validate({"item_id": item_id, "neighbors": neighbors})
