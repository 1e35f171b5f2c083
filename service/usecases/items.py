"""Changes of the catalogue while the service runs: add, replace, change and delete items, on every replica.

A change is first written to the store (the "overlay" over the bundle's catalogue), then applied in this process. A
thread makes a new snapshot of the catalogue, the model embeds the new titles and changes its own copy, and then this
process switches to the snapshot. So this process never asks the model about an item that the model does not have yet.
Other replicas poll the version number of the overlay and load the changes. A deleted item keeps its title, because
histories refer to it, but it is never recommended again. Knows no HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model_store.catalogue.items import Item, clean
from model_store.view import BundleView
from service.engine.engine import Engine
from service.errors import BadRequest, ModelFailed, ModelUnavailable, StoreUnavailable, UnknownItem
from service.logs import RepeatedWarnings
from service.store.client import MemoryStore

log = structlog.get_logger("service.usecases.items")
repeated = RepeatedWarnings(log)

T = TypeVar("T")

_FOLLOW_EVERY_S = 1.0
_CANCEL_AGAIN_S = 1.0


class StoredItem(BaseModel):
    """An item as the overlay stores it. Attributes are not checked: those of a bundle may have any JSON type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    item_id: str
    title: str
    attributes: dict[str, Any] = {}
    hidden: bool = False
    available_from: int | None = None
    available_until: int | None = None
    popularity: int = 0
    deleted: bool = False


class Change(NamedTuple):
    """The new content of an item."""

    item: Item
    is_deleted: bool = False

    def to_stored(self) -> dict[str, Any]:
        return {**asdict(self.item), "deleted": self.is_deleted}

    @classmethod
    def from_stored(cls, item_id: str, body: Mapping[str, Any]) -> "Change | None":
        """None when the stored object is not a valid item: another program may have written it."""
        try:
            fields = StoredItem.model_validate({**body, "item_id": item_id}).model_dump()
            is_deleted = fields.pop("deleted")
            return cls(clean(Item(**fields)), is_deleted)
        except ValueError:
            return None


class Neighbor(NamedTuple):
    """An item near another one; `distance` is the L2 distance of their title vectors."""

    item_id: str
    title: str
    distance: float


class Items:
    def __init__(self, view: BundleView, engine: Engine, store: MemoryStore) -> None:
        self.view, self.engine, self.store = view, engine, store
        self._deleted: set[str] = set()
        self._version = -1
        self._changing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._changes: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Loads the overlay, then follows it. If the store is unavailable, the overlay is loaded later."""
        await self.catch_up()
        self._task = asyncio.create_task(self._follow(), name="catalogue")

    async def stop(self) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)
        await asyncio.gather(*self._changes, return_exceptions=True)

    async def catch_up(self) -> None:
        """Applies the changes of other replicas. Costs one read of the store when there are none."""
        try:
            await self._undisturbed(self._load_alone())
        except StoreUnavailable:
            repeated.warning("store away, changes of the catalogue are loaded later")
        except (ModelUnavailable, ModelFailed):
            repeated.warning("model away, changes of the catalogue are loaded later")

    async def get(self, item_id: str) -> Item:
        """Raises UnknownItem."""
        return self._known(item_id)

    async def put(self, item: Item) -> Item:
        """Adds or replaces an item. A known one keeps its popularity."""
        return (await self._change({item.item_id: lambda: Change(item)}))[0]

    async def put_many(self, items: Sequence[Item]) -> list[Item]:
        """The items by id; if an id comes twice, the last one is taken."""
        return await self._change({item.item_id: partial(Change, item) for item in items})

    async def patch(self, item_id: str, fields: Mapping[str, Any]) -> Item:
        """Changes the given fields of an `Item`. Raises UnknownItem, or BadRequest for an empty availability."""
        return (await self._change({item_id: lambda: Change(_changed(self._known(item_id), fields))}))[0]

    async def delete(self, item_id: str) -> None:
        """Raises UnknownItem."""
        await self._change({item_id: lambda: Change(replace(self._known(item_id), hidden=True), is_deleted=True)})

    async def recount(self, live: NDArray[np.float64]) -> None:
        """Replaces the numbers of events since training, by catalogue row: they order popular items."""

        async def recount() -> None:
            async with self._changing:
                self.view.catalogue = await asyncio.to_thread(self.view.catalogue.with_live, live)

        await self._undisturbed(recount())

    async def neighbors(self, item_id: str, k: int) -> list[Neighbor]:
        """The available items whose titles are nearest, nearest first. Raises UnknownItem."""
        self._known(item_id)
        catalogue = self.view.catalogue
        row = catalogue.rows[item_id]
        allowed = catalogue.available(time.time())
        allowed[row] = False
        found = await self.engine.similar(row, k, allowed)
        nearest = catalogue.items.at(row for row, _ in found)
        return [
            Neighbor(item.item_id, item.title, distance) for item, (_, distance) in zip(nearest, found, strict=True)
        ]

    def _known(self, item_id: str) -> Item:
        row = self.view.catalogue.rows.get(item_id)
        if row is None or item_id in self._deleted:
            raise UnknownItem("The catalogue has no such item.")
        return self.view.catalogue.items[row]

    async def _change(self, changes: Mapping[str, Callable[[], Change]]) -> list[Item]:
        """Stores the changes, then applies them: an item that was recommended must be known after a restart.

        One call at a time, each made from the newest overlay, so that no change is lost.
        """

        async def change() -> list[Item]:
            async with self._changing:
                await self._load()
                made = [make() for make in changes.values()]
                await self.store.put_items({change.item.item_id: change.to_stored() for change in made})
                await self._apply(made)
                return [change.item for change in made]

        return await self._undisturbed(change())

    async def _undisturbed(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits `work`, which goes on when the caller leaves: half a change would give the model other rows."""
        task = asyncio.create_task(work)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _load_alone(self) -> None:
        async with self._changing:
            await self._load()

    async def _load(self) -> None:
        version = await self.store.items_version()
        if version == self._version:
            return
        found = [Change.from_stored(*pair) for pair in (await self.store.load_items()).items()]
        changes = [change for change in found if change is not None]
        if len(changes) < len(found):
            log.warning("skipped stored items that are not valid", count=len(found) - len(changes))
        await self._apply(changes)
        self._version = version

    async def _apply(self, changes: Sequence[Change]) -> None:
        items = [change.item for change in changes if self._differs(change.item)]
        if items:
            catalogue = await asyncio.to_thread(self.view.catalogue.with_items, items)
            await self.engine.put_items(items)
            self.view.catalogue = catalogue
        for change in changes:
            (self._deleted.add if change.is_deleted else self._deleted.discard)(change.item.item_id)

    def _differs(self, item: Item) -> bool:
        catalogue = self.view.catalogue
        row = catalogue.rows.get(item.item_id)
        return row is None or replace(item, popularity=int(catalogue.popularity[row])) != catalogue.items[row]

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_EVERY_S)
            try:
                await self.catch_up()
            except Exception:  # go on: a replica that stops following would serve an old catalogue unnoticed
                log.exception("loading changes of the catalogue failed, trying again")


def _changed(item: Item, fields: Mapping[str, Any]) -> Item:
    """Raises BadRequest when availability would end before it starts."""
    changed = replace(item, **fields)
    start, end = changed.available_from, changed.available_until
    if start is not None and end is not None and start >= end:
        raise BadRequest(f"available_from ({start}) would not be earlier than available_until ({end}).")
    return changed


async def cancel_and_wait(*tasks: "asyncio.Task[None]") -> None:
    """Cancel tasks, wait for them, ignore their results."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        # Repeat: a cancellation that coincides with a timeout of the store's client can get lost.
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)
