"""The catalogue while the service runs: items come, change and go; every replica follows.

A change is written to the store first, then applied to this process: as one new snapshot of the catalogue, made on a
thread of its own while the engine goes on with the old one, which only embeds the titles and takes the new one. Other
replicas see the store's version grow and load the same changes. An item that is deleted keeps its title, because
histories speak of it; it is only never recommended again.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import structlog

from model_store.bundle import Bundle
from model_store.catalogue.catalogue import Catalogue, Item, clean
from model_store.inference import embed
from service.engine.engine import Engine
from service.errors import BadRequest, StoreUnavailable, UnknownItem
from service.http import schemas
from service.store.client import MemoryStore
from service.tasks import stopped

log = structlog.get_logger("service.usecases.items")

_FOLLOW_EVERY_S = 1.0
_TITLES_PER_CALL = 64


class StoredItem(schemas.Item):
    """An item as the overlay keeps it. A bundle's own attributes may be of any kind."""

    popularity: int = 0
    deleted: bool = False


class Change(NamedTuple):
    item: Item
    is_deleted: bool = False

    def body(self) -> dict[str, Any]:
        return {**asdict(self.item), "deleted": self.is_deleted}

    @classmethod
    def read(cls, item_id: str, body: Mapping[str, Any]) -> "Change | None":
        """None when the bytes are not a change of ours: the store's content is input."""
        try:
            fields = StoredItem.model_validate({**body, "item_id": item_id}).model_dump()
            is_deleted = fields.pop("deleted")
            return cls(clean(Item(**fields)), is_deleted)
        except ValueError:
            return None


class Items:
    def __init__(self, bundle: Bundle, engine: Engine, store: MemoryStore) -> None:
        self.bundle, self.engine, self.store = bundle, engine, store
        self._deleted: set[str] = set()
        self._version = -1
        self._changing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Catches up with the overlay, then follows it. A store that is away is caught up with later."""
        await self.catch_up()
        self._task = asyncio.create_task(self._follow(), name="catalogue")

    async def stop(self) -> None:
        if self._task is not None:
            await stopped(self._task)

    async def catch_up(self) -> None:
        """Applies what other replicas changed; costs one read when that is nothing."""
        try:
            async with self._changing:
                await self._load()
        except StoreUnavailable:
            log.warning("store away, the catalogue waits")

    async def get(self, item_id: str) -> schemas.Item:
        return _shown(self._known(item_id))

    async def put(self, item_id: str, body: schemas.ItemBody) -> schemas.Item:
        return (await self._change({item_id: lambda: Change(_item(item_id, body))}))[0]

    async def put_many(self, items: list[schemas.NewItem]) -> schemas.ItemsResponse:
        """Of an item that is named twice the last one counts."""
        changes = {item.item_id: partial(Change, _item(item.item_id, item)) for item in items}
        return schemas.ItemsResponse(items=await self._change(changes))

    async def patch(self, item_id: str, patch: schemas.ItemPatch) -> schemas.Item:
        fields = {name: getattr(patch, name) for name in patch.model_fields_set}
        return (await self._change({item_id: lambda: Change(_changed(self._known(item_id), fields))}))[0]

    async def delete(self, item_id: str) -> schemas.DeletedItem:
        await self._change({item_id: lambda: Change(replace(self._known(item_id), hidden=True), is_deleted=True)})
        return schemas.DeletedItem(item_id=item_id, deleted=True)

    async def neighbors(self, item_id: str, k: int) -> schemas.Neighbors:
        """Available items nearest by title."""
        self._known(item_id)
        return await self.engine.call(lambda bundle: _neighbors(bundle, item_id, k))

    def _known(self, item_id: str) -> Item:
        row = self.bundle.catalogue.rows.get(item_id)
        if row is None or item_id in self._deleted:
            raise UnknownItem("The catalogue has no such item.")
        return self.bundle.catalogue.items[row]

    async def _change(self, changes: Mapping[str, Callable[[], Change]]) -> list[schemas.Item]:
        """Durable first: what is recommended here must not be unknown after a restart.

        One at a time, each made from the newest state, so that none undoes another.
        """
        async with self._changing:
            await self._load()
            made = [make() for make in changes.values()]
            await self.store.put_items({change.item.item_id: change.body() for change in made})
            await self._apply(made)
            return [_shown(change.item) for change in made]

    async def _load(self) -> None:
        version = await self.store.items_version()
        if version == self._version:
            return
        found = [Change.read(*pair) for pair in (await self.store.load_items()).items()]
        changes = [change for change in found if change is not None]
        if len(changes) < len(found):
            log.warning("stored items that cannot be read are left out", count=len(found) - len(changes))
        await self._apply(changes)
        self._version = version

    async def _apply(self, changes: Sequence[Change]) -> None:
        items = [change.item for change in changes if self._differs(change.item)]
        if items:
            catalogue = await asyncio.to_thread(self.bundle.catalogue.with_items, items)
            await self.engine.call(lambda bundle: _put(bundle, catalogue, items), cost_tokens=len(items))
        for change in changes:
            (self._deleted.add if change.is_deleted else self._deleted.discard)(change.item.item_id)

    def _differs(self, item: Item) -> bool:
        catalogue = self.bundle.catalogue
        row = catalogue.rows.get(item.item_id)
        return row is None or replace(item, popularity=int(catalogue.popularity[row])) != catalogue.items[row]

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_EVERY_S)
            try:
                await self.catch_up()
            except Exception:  # a replica that stops following would be noticed too late
                log.exception("the catalogue could not be followed, trying again")


def _item(item_id: str, body: schemas.ItemBody) -> Item:
    return Item(
        item_id=item_id,
        title=body.title,
        attributes=dict(body.attributes),
        hidden=body.hidden,
        available_from=body.available_from,
        available_until=body.available_until,
    )


def _changed(item: Item, fields: Mapping[str, Any]) -> Item:
    """Raises BadRequest when the two ends of an item's availability, one old and one new, contradict each other."""
    changed = replace(item, **fields)
    start, end = changed.available_from, changed.available_until
    if start is not None and end is not None and start >= end:
        raise BadRequest(f"available_from ({start}) would not be earlier than available_until ({end}).")
    return changed


def _shown(item: Item) -> schemas.Item:
    return schemas.Item(
        item_id=item.item_id,
        title=item.title,
        attributes=dict(item.attributes),
        hidden=item.hidden,
        available_from=item.available_from,
        available_until=item.available_until,
    )


def _put(bundle: Bundle, catalogue: Catalogue, items: Sequence[Item]) -> None:
    """Called by the engine: vectors, then the catalogue that has the `items`, so that no row is without a vector."""
    rows = np.array([catalogue.rows[item.item_id] for item in items], dtype=np.int64)
    prompts = [bundle.prompt.tokens([item.title]) for item in items]
    for start in range(0, len(items), _TITLES_PER_CALL):
        part = slice(start, start + _TITLES_PER_CALL)
        bundle.index.put(rows[part], embed(bundle.lm, prompts[part]))
    bundle.catalogue = catalogue


def _neighbors(bundle: Bundle, item_id: str, k: int) -> schemas.Neighbors:
    catalogue = bundle.catalogue
    row = catalogue.rows[item_id]
    available = catalogue.available(time.time())
    vector = bundle.index.vectors(np.array([row]))
    available[row] = False
    rows, distances = (part[0] for part in bundle.index.search(vector, min(k, len(bundle.index)), available))
    nearest = [(int(near), float(distance)) for near, distance in zip(rows, distances, strict=True) if near >= 0]
    return schemas.Neighbors(
        item_id=item_id,
        neighbors=[
            schemas.Neighbor(
                item_id=catalogue.items[near].item_id, title=catalogue.items[near].title, distance=distance
            )
            for near, distance in nearest
        ],
    )
