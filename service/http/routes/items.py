"""/items: the catalogue, changed while the service runs."""

from fastapi import APIRouter, Request

from service.http.body import JsonRoute
from service.http.dependencies import ItemIdPath, ItemsDep, NumNeighbors, get_resources
from service.http.schemas import DeletedItem, Item, ItemBody, ItemPatch, ItemsRequest, ItemsResponse, Neighbors

router = APIRouter(prefix="/items", tags=["items"], route_class=JsonRoute)


@router.post("")
async def put_items(body: ItemsRequest, request: Request) -> ItemsResponse:
    """Adds or replaces many items at once."""
    return await (await get_resources(request)).items.put_many(body.items)


@router.get("/{item_id}")
async def get_item(item_id: ItemIdPath, items: ItemsDep) -> Item:
    """One item of the catalogue."""
    return await items.get(item_id)


@router.put("/{item_id}")
async def put_item(item_id: ItemIdPath, body: ItemBody, request: Request) -> Item:
    """Adds or replaces an item; a new one can be recommended within seconds."""
    return await (await get_resources(request)).items.put(item_id, body)


@router.patch("/{item_id}")
async def patch_item(item_id: ItemIdPath, body: ItemPatch, request: Request) -> Item:
    """Changes only the fields that are given."""
    return await (await get_resources(request)).items.patch(item_id, body)


@router.delete("/{item_id}")
async def delete_item(item_id: ItemIdPath, items: ItemsDep) -> DeletedItem:
    """Takes an item out of the catalogue; it is never recommended again."""
    return await items.delete(item_id)


@router.get("/{item_id}/neighbors")
async def get_neighbors(item_id: ItemIdPath, items: ItemsDep, k: NumNeighbors = 10) -> Neighbors:
    """The nearest items in the index."""
    return await items.neighbors(item_id, k)
