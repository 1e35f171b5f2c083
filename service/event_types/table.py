"""The table of event types that is in force: that of the bundle until one is put, then the one that was put last.

Each process follows the store and gives the table to the store's client and to the views of the bundles. What is seen,
window, memory and votes of a user follow at the next read. Live counts follow when a worker has counted the users
again: one process asks for all of them, and goes on after a crash.
"""

import secrets

from model_store.event_types import EventTypes
from model_store.view import BundleView
from service.background import Repeated
from service.event_types.stored import EventTypeStore
from service.store.client import MemoryStore
from service.store.lua.sorting import sorting_of
from service.store.sealing.walk import seal_user

_LOOK_EVERY_S = 1.0
_USERS_PER_REQUEST = 500


class EventTable:
    """One for each store of a process, for one event loop."""

    def __init__(self, store: MemoryStore) -> None:
        self.store, self._puts = store, EventTypeStore(store.run)
        self.types, self.number = EventTypes(), 0
        self.is_counted = True  # whether all users were asked to be counted by this table
        self._of_bundle: EventTypes | None = None
        self._views: list[BundleView] = []
        self._owner = secrets.token_hex(8)
        self._following = Repeated("event-types", self._follow, every_s=_LOOK_EVERY_S)

    async def start(self) -> None:
        """Raises StoreUnavailable."""
        await self.catch_up()
        self._following.start()

    async def stop(self) -> None:
        await self._following.stop()

    def add(self, view: BundleView) -> None:
        """From now on this view has the table in force. The table of the first one counts where none was put."""
        if self._of_bundle is None:
            self._of_bundle = view.event_types
        self._views.append(view)
        self._use(*((self._of_bundle, 0) if self.number == 0 else (self.types, self.number)))

    def remove(self, view: BundleView) -> None:
        self._views = [each for each in self._views if each is not view]

    async def put(self, types: EventTypes) -> None:
        """Puts a table in force: here at once, on other replicas within about a second."""
        await self._puts.put(types, self.number)
        await self.catch_up()

    async def catch_up(self) -> None:
        """Raises StoreUnavailable."""
        found = await self._puts.read()
        if found.types is not None and found.number >= self.number:
            self._use(found.types, found.number)
        name, _ = sorting_of(self.types, self.number)
        self.is_counted = self.number == 0 or found.counted == name

    def _use(self, types: EventTypes, number: int) -> None:
        self.types, self.number = types, number
        self.store.use_event_types(types, number)
        for view in self._views:
            view.event_types = types

    async def _follow(self) -> None:
        await self.catch_up()
        if not self.is_counted and await self._puts.lease_counting(self._owner):
            await self._count_all()

    async def _count_all(self) -> None:
        """Asks for the encoding of all users, which counts them, too; ends early when another table was put."""
        name, _ = sorting_of(self.types, self.number)
        users: list[str] = []
        async for user_id in self.store.users():
            await seal_user(self.store, user_id)  # sealed events have labels of the table
            users.append(user_id)
            if len(users) == _USERS_PER_REQUEST:
                await self.store.request_encoding(users)
                users = []
                if not await self._puts.lease_counting(self._owner):
                    return
        await self.store.request_encoding(users)
        await self._puts.counted(name)
        await self.catch_up()
