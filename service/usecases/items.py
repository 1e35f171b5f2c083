"""Changes of the catalogue while the service runs: add, replace, change and delete items, on every replica.

A change is first written to the store (the "overlay" over the bundle's catalogue), then applied in this process. A
thread makes a new snapshot of the catalogue, and this process switches to it. Then the model takes in items that are
new or have another title (`engine/intake.py`); other changes do not concern it. Other replicas ask the store every
second what changed since the version that they know: a change costs each of them the item that changed, however many
others the overlay has. A deleted item keeps its title, because histories refer to it, but it is never recommended
again. Knows no HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store.catalogue.items import Item
from model_store.view import BundleView
from service.background import Repeated
from service.engine.engine import Engine
from service.errors import BadRequest, Overloaded, UnknownItem
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.overlay import MOST_AT_ONCE, NewRecord
from service.usecases.records import Change, read_change, read_changes

log = structlog.get_logger("service.usecases.items")

T = TypeVar("T")

_FOLLOW_EVERY_S = 1.0
_FEW = 32  # records that are read without a thread
_AT_ONCE, _AT_START = 256, 10_000  # changes in one snapshot while requests are answered, and before
_MOST_TRIES = 20  # of a change, while other replicas change the same item


class PlannedChange(NamedTuple):
    """`make` gives the change when the newest catalogue is known. `is_based_on_last`: from the item as it is."""

    make: Callable[[], Change]
    is_based_on_last: bool = True


class Neighbor(NamedTuple):
    """An item near another one; `distance` is the L2 distance of their title vectors."""

    item_id: str
    title: str
    distance: float


class Items:
    def __init__(self, view: BundleView, engine: Engine, store: MemoryStore, metrics: Metrics) -> None:
        self.view, self.engine, self.store, self.metrics = view, engine, store, metrics
        self._deleted: set[str] = set()
        self._version = 0  # of the overlay: all changes up to it are applied
        self._changing = asyncio.Lock()
        self._following = Repeated("catalogue", self._catch_up, every_s=_FOLLOW_EVERY_S)
        self._changes: set[asyncio.Task[Any]] = set()
        self._at_once = _AT_START
        self._current_at = time.monotonic()
        engine.intake.on_refused = self._leave_out

    def show_metrics(self) -> None:
        """The gauge is that of this bundle from now on."""
        self.metrics.catalogue_age_seconds.set_function(lambda: time.monotonic() - self._current_at)

    async def start(self) -> None:
        """Loads the overlay, then follows it. If the store is unavailable, the overlay is loaded later."""
        await self.catch_up()
        self._at_once = _AT_ONCE
        self._following.start()

    async def stop(self) -> None:
        await self._following.stop()
        await asyncio.gather(*self._changes, return_exceptions=True)

    async def catch_up(self) -> None:
        """Applies the changes of other replicas, or logs why it could not; then they are applied later.

        Costs one read of the store when there are none.
        """
        await self._following.once()

    async def get(self, item_id: str) -> Item:
        """Raises UnknownItem."""
        return self._known(item_id)

    async def put(self, item: Item) -> Item:
        """Adds or replaces an item. A known one keeps its popularity."""
        return (await self.put_many([item]))[0]

    async def put_many(self, items: Sequence[Item]) -> list[Item]:
        """The items by id; if an id comes twice, the last one is taken."""
        made = {item.item_id: PlannedChange(partial(self._added, item), is_based_on_last=False) for item in items}
        return await self._change(list(made.values()))

    async def patch(self, item_id: str, fields: Mapping[str, Any]) -> Item:
        """Changes the given fields of an `Item`. Of `attributes`, those that are named change; None removes one.

        Raises UnknownItem, or BadRequest for an empty availability.
        """
        return (await self._change([PlannedChange(lambda: Change(_changed(self._known(item_id), fields)))]))[0]

    async def delete(self, item_id: str) -> None:
        """Raises UnknownItem."""
        await self._change([PlannedChange(lambda: Change(replace(self._known(item_id), hidden=True), is_deleted=True))])

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

    def _added(self, item: Item) -> Change:
        """An item that is replaced came when it came first; one that was deleted comes again."""
        row = self.view.catalogue.rows.get(item.item_id)
        if row is None or item.item_id in self._deleted:
            return Change(replace(item, added_at=int(time.time())))
        return Change(replace(item, added_at=self.view.catalogue.items[row].added_at))

    def _known(self, item_id: str) -> Item:
        row = self.view.catalogue.rows.get(item_id)
        if row is None or item_id in self._deleted:
            raise UnknownItem("The catalogue has no such item.")
        return self.view.catalogue.items[row]

    async def _change(self, asked: Sequence[PlannedChange]) -> list[Item]:
        """Stores the changes, then applies them: an item that was recommended must be known after a restart.

        One call at a time, each made from the newest overlay, so that no change is lost: if another replica changes
        such an item meanwhile, the change is made again from what that one wrote.
        """

        async def change() -> list[Item]:
            async with self._changing:
                for _ in range(_MOST_TRIES):
                    await self._load()
                    made = [each.make() for each in asked]
                    records = [
                        NewRecord(change.item.item_id, change.to_record(), each.is_based_on_last)
                        for change, each in zip(made, asked, strict=True)
                    ]
                    if await self.store.put_items(records, loaded=self._version) is not None:
                        await self._switch(made)
                        return [change.item for change in made]
            raise Overloaded("Others change this item at the same time.")

        items = await self._undisturbed(change())
        await self._at_model(items)
        return items

    async def _at_model(self, items: Iterable[Item]) -> None:
        found = (self.view.catalogue.rows.get(item.item_id) for item in items)
        await self.engine.intake.taken_in(row for row in found if row is not None)

    async def _undisturbed(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits `work`, which goes on when the caller leaves: half a change would give the model other rows."""
        return await asyncio.shield(_keep(self._changes, asyncio.create_task(work)))

    async def _catch_up(self) -> None:
        async def catch_up() -> None:
            async with self._changing:
                changes = await self._load()
            await self._at_model(change.item for change in changes)

        await self._undisturbed(catch_up())

    async def _load(self) -> list[Change]:
        """Applies what changed since the version that is known; own changes come again and differ in nothing."""
        version, changes = self._version, list[Change]()
        while stored := await self.store.changed_items(version):
            if len(stored) <= _FEW:
                found = [read_change(each.item_id, each.record) for each in stored]
            else:
                found = await asyncio.to_thread(read_changes, stored)
            self._tell_unusable(found.count(None))
            changes += [change for change in found if change is not None]
            version = stored[-1].version
            if len(stored) < MOST_AT_ONCE:
                break
        await self._apply(changes, self._at_once)
        self._version, self._current_at = version, time.monotonic()
        return changes

    def _tell_unusable(self, count: int) -> None:
        if count:
            self.metrics.unusable_items_total.inc(count)
            log.warning("skipped stored items that are not valid", count=count)

    async def _apply(self, changes: Sequence[Change], at_once: int) -> None:
        """In portions, so that requests are answered in between. A change that cannot be applied is left out."""
        for start in range(0, len(changes), at_once):
            portion = changes[start : start + at_once]
            try:
                await self._switch(portion)
            except Exception:
                log.exception("changes of the catalogue cannot be applied", count=len(portion))
                if len(portion) > 1:
                    await self._apply(portion, 1)
                else:
                    self._tell_unusable(1)

    async def _switch(self, changes: Sequence[Change]) -> None:
        items = [change.item for change in changes if self._differs(change.item)]
        if items:
            before = self.view.catalogue
            self.view.catalogue = after = await asyncio.to_thread(before.with_items, items)
            rows, num_before = {after.rows[item.item_id]: item for item in items}, len(before)
            self.engine.intake.add(
                row for row, item in rows.items() if row >= num_before or before.items[row].title != item.title
            )
            self.metrics.item_changes_total.inc(len(items))
        for change in changes:
            (self._deleted.add if change.is_deleted else self._deleted.discard)(change.item.item_id)

    def _leave_out(self, item: Item) -> None:
        """An item that the model cannot take in is as if it was deleted, until it changes."""

        async def leave_out() -> None:
            async with self._changing:
                self.view.catalogue = self.view.catalogue.with_items([replace(item, hidden=True)])
                self._deleted.add(item.item_id)

        self._tell_unusable(1)
        _keep(self._changes, asyncio.create_task(leave_out()))

    def _differs(self, item: Item) -> bool:
        catalogue = self.view.catalogue
        row = catalogue.rows.get(item.item_id)
        return row is None or replace(item, popularity=int(catalogue.popularity[row])) != catalogue.items[row]


def _keep(tasks: set[asyncio.Task[Any]], task: asyncio.Task[T]) -> asyncio.Task[T]:
    """Holds a task until it ends."""
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


def _changed(item: Item, fields: Mapping[str, Any]) -> Item:
    """Raises BadRequest when availability would end before it starts."""
    changed = replace(item, **fields)
    if "attributes" in fields:
        merged = {**item.attributes, **fields["attributes"]}
        changed = replace(changed, attributes={name: value for name, value in merged.items() if value is not None})
    start, end = changed.available_from, changed.available_until
    if start is not None and end is not None and start >= end:
        raise BadRequest(f"available_from ({start}) would not be earlier than available_until ({end}).")
    return changed
