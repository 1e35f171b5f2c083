"""Which changed items the model has yet to take in, and the task that sends them, the lowest catalogue row first.

The server knows a changed item as soon as the item is stored. The model reads its title first, which takes longer: so
the model may be behind. It then knows the first rows of the catalogue, and leaves out the others, which cannot be
recommended yet. Usually it is behind by one item for some milliseconds. After a start it is behind by all items that
came since the bundle was built. It takes them in while it answers requests.
"""

import asyncio
import contextlib
import heapq
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

import structlog

from model_store.catalogue.items import Item
from model_store.view import BundleView
from service.ending import cancel_and_wait
from service.errors import Draining, ModelFailed, ModelUnavailable, Overloaded

log = structlog.get_logger("service.engine.intake")

FAR_BEHIND = 1000  # items: nobody waits until a model that is so far behind knows an item
_AT_ONCE = 64  # items in a message: requests are answered in between
_TRY_AGAIN_S = 0.2

Put = Callable[[Sequence[tuple[int, Item]]], Awaitable[None]]  # pairs of a row and its item


class Intake:
    """For one event loop.

    `put` sends items to the model and returns when it knows them. `was_filled` is awaited when the model knows all
    items, after its process has started and after `tell_when_filled`. `on_refused`: called with an item that the model
    cannot take in.
    """

    def __init__(self, view: BundleView, put: Put, was_filled: Callable[[], Awaitable[None]]) -> None:
        self._view, self._put, self._was_filled = view, put, was_filled
        self.on_refused: Callable[[Item], None] = lambda item: None
        self._waiting: set[int] = set()
        self._heap: list[int] = []  # of `_waiting`
        self._sent: set[int] = set()
        self._futures: dict[int, asyncio.Future[None]] = {}
        self._must_tell = False
        self._is_wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """The number of items that the model has yet to take in."""
        return len(self._waiting) + len(self._sent)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="intake")

    async def stop(self) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)
        self._release()

    def begin_again(self) -> None:
        """For a process of the model that has just opened the bundle: all changed titles are new to it."""
        items = self._view.catalogue.items
        rows = [
            row
            for row, item in items.changed.items()
            if row >= len(items.base) or item.title != items.base_at(row).title
        ]
        self._waiting, self._heap, self._sent = set(rows), sorted(rows), set()
        self._must_tell = True
        self._is_wanted.set()

    def add(self, rows: Iterable[int]) -> None:
        """Items that are new or have another title, in the catalogue of the view."""
        for row in rows:
            if row not in self._waiting:
                self._waiting.add(row)
                heapq.heappush(self._heap, row)
        self._is_wanted.set()

    def tell_when_filled(self) -> None:
        self._must_tell = True
        self._is_wanted.set()

    async def taken_in(self, rows: Iterable[int]) -> None:
        """Returns when the model knows these items; at once if it is far behind, is unavailable or is not started.

        Raises ModelFailed for an item that the model cannot take in.
        """
        if len(self) > FAR_BEHIND or self._task is None or self._task.done():
            return
        loop = asyncio.get_running_loop()
        awaited = {
            self._futures.setdefault(row, loop.create_future())
            for row in rows
            if row in self._waiting or row in self._sent
        }
        if awaited:
            await asyncio.wait(awaited)
            for future in awaited:
                future.result()

    async def settled(self) -> None:
        """Returns when the model knows all items that it can take in; at once if it is far behind."""
        with contextlib.suppress(ModelFailed):
            await self.taken_in([*self._waiting, *self._sent])

    async def _run(self) -> None:
        while True:
            await self._is_wanted.wait()
            rows = [heapq.heappop(self._heap) for _ in range(min(_AT_ONCE, len(self._heap)))]
            self._waiting.difference_update(rows)
            self._sent.update(rows)
            try:
                if rows:
                    await self._take_in(rows)
                elif self._must_tell:
                    self._must_tell = False
                    await self._was_filled()
                else:
                    self._is_wanted.clear()
            except (ModelUnavailable, Overloaded):
                self._give_back(rows)
                self._release()
                await asyncio.sleep(_TRY_AGAIN_S)
            except Draining:
                return
            except Exception:  # go on: a model that takes nothing in would be behind for ever
                log.exception("the model cannot be told what changed, trying again")
                self._give_back(rows)
                await asyncio.sleep(_TRY_AGAIN_S)

    def _give_back(self, rows: Sequence[int]) -> None:
        self._sent.difference_update(rows)
        self.add(rows)

    async def _take_in(self, rows: Sequence[int]) -> None:
        """If the model fails, each item is sent alone, so that a bad one costs itself only."""
        items = self._view.catalogue.items
        try:
            await self._put(list(zip(rows, items.at(rows), strict=True)))
        except ModelFailed as error:
            if len(rows) > 1:
                for row in rows:
                    await self._take_in([row])
            else:
                await self._refuse(rows[0], error)
            return
        for row in rows:
            self._settle(row)

    async def _refuse(self, row: int, error: ModelFailed) -> None:
        """The row of a new item is taken by a stand-in, so that later items get the same rows here and there.

        Raises ModelFailed if the model does not take that in: then no later item can come.
        """
        items = self._view.catalogue.items
        item = items[row]
        log.error("the model cannot take in an item", item_id=item.item_id)
        if row >= len(items.base):
            await self._put([(row, replace(item, title=f"item {row}", hidden=True))])
        self.on_refused(item)
        self._settle(row, error)

    def _settle(self, row: int, error: ModelFailed | None = None) -> None:
        self._sent.discard(row)
        if row in self._waiting:  # its title has changed meanwhile
            return
        future = self._futures.pop(row, None)
        if future is not None and not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # a caller that left is no fault

    def _release(self) -> None:
        for future in self._futures.values():
            if not future.done():
                future.set_result(None)
        self._futures.clear()
