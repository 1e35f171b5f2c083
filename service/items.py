"""The catalogue while the service runs: items come, change and go; every replica follows.

A change is written to the store first, then applied to this process: on the engine thread, as one new snapshot. Other
replicas see the store's version grow and load the same changes. An item that is deleted keeps its title, because
histories speak of it; it is only never recommended again.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import structlog

from model_store.bundle import Bundle
from model_store.catalogue import Item, clean
from model_store.inference import embed
from service import schemas
from service.engine import Engine
from service.errors import StoreUnavailable, UnknownItem
from service.memory import MemoryStore

log = structlog.get_logger("service.items")

_FOLLOW_EVERY_S = 1.0
_TITLES_PER_CALL = 64


@dataclass(frozen=True)
class Change:
    """An item as the overlay keeps it."""

    item: Item
    is_deleted: bool = False

    def body(self) -> dict[str, Any]:
        return {**asdict(self.item), "deleted": self.is_deleted}

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> "Change | None":
        """None when the bytes are not a change of ours: the store's content is input."""
        try:
            fields = dict(body)
            is_deleted = bool(fields.pop("deleted"))
            return cls(clean(Item(**fields)), is_deleted)
        except (TypeError, KeyError, ValueError, AttributeError):
            return None


class Items:
    def __init__(self, bundle: Bundle, engine: Engine, store: MemoryStore) -> None:
        self.bundle, self.engine, self.store = bundle, engine, store
        self._deleted: set[str] = set()
        self._version = -1
        self._applying = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Catches up with the overlay, then follows it. A store that is away is caught up with later."""
        await self._catch_up()
        self._task = asyncio.create_task(self._follow(), name="catalogue")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def get(self, item_id: str) -> schemas.Item:
        return _shown(self._known(item_id))

    async def put(self, item_id: str, body: schemas.ItemBody) -> schemas.Item:
        await self._change([Change(_item(item_id, body))])
        return await self.get(item_id)

    async def put_many(self, items: list[schemas.NewItem]) -> schemas.ItemsResponse:
        await self._change([Change(_item(item.item_id, item)) for item in items])
        return schemas.ItemsResponse(items=[await self.get(item.item_id) for item in items])

    async def patch(self, item_id: str, patch: schemas.ItemPatch) -> schemas.Item:
        changes = {name: getattr(patch, name) for name in patch.model_fields_set}
        await self._change([Change(replace(self._known(item_id), **changes))])
        return await self.get(item_id)

    async def delete(self, item_id: str) -> schemas.DeletedItem:
        await self._change([Change(replace(self._known(item_id), hidden=True), is_deleted=True)])
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

    async def _change(self, changes: Sequence[Change]) -> None:
        """Durable first: what is recommended here must not be unknown after a restart."""
        await self.store.put_items({change.item.item_id: change.body() for change in changes})
        await self._apply(changes)

    async def _apply(self, changes: Sequence[Change]) -> None:
        async with self._applying:
            items = [change.item for change in changes if self._differs(change.item)]
            if items:
                await self.engine.call(lambda bundle: _put(bundle, items), cost_tokens=len(items))
            for change in changes:
                (self._deleted.add if change.is_deleted else self._deleted.discard)(change.item.item_id)

    def _differs(self, item: Item) -> bool:
        catalogue = self.bundle.catalogue
        row = catalogue.rows.get(item.item_id)
        return row is None or replace(item, popularity=int(catalogue.popularity[row])) != catalogue.items[row]

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_EVERY_S)
            await self._catch_up()

    async def _catch_up(self) -> None:
        try:
            version = await self.store.items_version()
            if version == self._version:
                return
            found = {item_id: Change.read(body) for item_id, body in (await self.store.load_items()).items()}
        except StoreUnavailable:
            log.warning("store away, the catalogue waits")
            return
        if unreadable := [item_id for item_id, change in found.items() if change is None]:
            log.warning("stored items that cannot be read are left out", count=len(unreadable))
        await self._apply([change for change in found.values() if change is not None])
        self._version = version


def _item(item_id: str, body: schemas.ItemBody) -> Item:
    return Item(
        item_id=item_id,
        title=body.title,
        attributes=dict(body.attributes),
        hidden=body.hidden,
        available_from=body.available_from,
        available_until=body.available_until,
    )


def _shown(item: Item) -> schemas.Item:
    return schemas.Item(
        item_id=item.item_id,
        title=item.title,
        attributes=dict(item.attributes),
        hidden=item.hidden,
        available_from=item.available_from,
        available_until=item.available_until,
    )


def _put(bundle: Bundle, items: Sequence[Item]) -> None:
    """On the engine thread: vectors, then the catalogue, so that no row is without a vector."""
    catalogue = bundle.catalogue.with_items(items)
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
    rows, distances = (part[0] for part in bundle.index.search(vector, len(bundle.index)))
    pairs = [(int(near), float(distance)) for near, distance in zip(rows, distances, strict=True)]
    nearest = [(near, distance) for near, distance in pairs if near >= 0 and near != row and available[near]][:k]
    return schemas.Neighbors(
        item_id=item_id,
        neighbors=[
            schemas.Neighbor(
                item_id=catalogue.items[near].item_id, title=catalogue.items[near].title, distance=distance
            )
            for near, distance in nearest
        ],
    )
