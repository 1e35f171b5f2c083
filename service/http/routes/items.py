"""/items: the catalogue, changed while the service runs."""

from fastapi import APIRouter, Request

from model_store.catalogue import items as catalogue
from service.http.body import JsonRoute
from service.http.dependencies import ItemIdPath, NumNeighbors, ResourcesDep, while_connected
from service.http.schemas import DeletedItem, Item, ItemBody, ItemPatch, ItemsRequest, ItemsResponse, Neighbors

router = APIRouter(prefix="/items", tags=["items"], route_class=JsonRoute)


@router.post("")
async def put_items(body: ItemsRequest, resources: ResourcesDep) -> ItemsResponse:
    """Adds or replaces many items at once."""
    items = [catalogue.Item(**item.model_dump()) for item in body.items]
    return ItemsResponse.model_validate({"items": await resources.items.put_many(items)})


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
    """Changes only the fields that are given."""
    return Item.model_validate(await resources.items.patch(item_id, body.model_dump(exclude_unset=True)))


@router.delete("/{item_id}")
async def delete_item(item_id: ItemIdPath, resources: ResourcesDep) -> DeletedItem:
    """Deletes an item: it is never recommended again."""
    await resources.items.delete(item_id)
    return DeletedItem(item_id=item_id, deleted=True)


@router.get("/{item_id}/neighbors")
async def get_neighbors(
    item_id: ItemIdPath, request: Request, resources: ResourcesDep, k: NumNeighbors = 10
) -> Neighbors:
    """The items whose titles are nearest in the index."""
    neighbors = await while_connected(request, resources.items.neighbors(item_id, k))
    return Neighbors.model_validate({"item_id": item_id, "neighbors": neighbors})
