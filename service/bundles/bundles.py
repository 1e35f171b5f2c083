"""Which bundles this process has open, and which of them answers. Follows what the store says (`store/bundles.py`).

A bundle is opened beside the one that answers, with a process of the model of its own; it is warm before it can answer.
A switch is one assignment: a request takes `active` once and uses nothing else until its end, so no answer mixes two
bundles. The bundle that answered before stays open, so that a rollback is the same assignment. Knows no HTTP.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Generic

import structlog

from model_store.errors import ModelStoreError
from service.background import Repeated
from service.bundles.entries import Entry, Listing, P, Shown, Status, check_readable, settings_of, source_of
from service.bundles.fill import fill
from service.ending import cancel_and_wait
from service.engine.intake import FAR_BEHIND
from service.errors import BundleConflict, ServiceError, StoreCorrupt, StoreUnavailable, UnknownBundle
from service.garbage import free_what_was_closed
from service.logs import RepeatedWarnings
from service.metrics import Metrics
from service.settings import Settings
from service.store.bundles import CONFIGURED, BundleState, BundleStore, Fill, Source
from service.usecases.encode import Worker, backfill

log = structlog.get_logger("service.bundles")
repeated = RepeatedWarnings(log)

_FOLLOW_EVERY_S = 1.0
_MOST_LOADED = 4
_LAST_REQUESTS_S = 60.0  # the longest deadline of a request


OpenOne = Callable[[Settings], AbstractAsyncContextManager[P]]


class Bundles(Generic[P]):
    """For one event loop. `open_one` opens a bundle that the given settings name."""

    def __init__(self, settings: Settings, metrics: Metrics, store: BundleStore, open_one: OpenOne[P]) -> None:
        self.settings, self.metrics, self.store, self._open_one = settings, metrics, store, open_one
        self._entries: dict[str, Entry[P]] = {}
        self._active_name = CONFIGURED
        self._active: P
        self._wanted: str | None = None  # is being opened to be activated
        self._changing = asyncio.Lock()
        self._following = Repeated("bundles", self._follow, every_s=_FOLLOW_EVERY_S)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> P:
        """The parts that answer. Take them once for each request."""
        return self._active

    def named(self, name: str) -> P | None:
        """The parts of a bundle that is open, else None."""
        entry = self._entries.get(name)
        return entry.parts if entry is not None else None

    async def start(self) -> P:
        """Opens the bundle that answered last, else the configured one. Raises when that one does not open."""
        state = await self._read()
        self._active_name = state.active
        if state.active != CONFIGURED:
            await self._open(state.active, source_of(self.settings, state, state.active))
        parts = self.named(state.active)
        self._active_name = state.active if parts is not None else CONFIGURED
        self._active = (
            parts if parts is not None else await self._enter(CONFIGURED, source_of(self.settings, state, CONFIGURED))
        )
        await self._hand_over(None, self._active)
        self._following.start()
        return self._active

    async def stop(self) -> None:
        await self._following.stop()
        await cancel_and_wait(*self._tasks)
        for name in list(self._entries):
            await self._close(self._entries.pop(name))

    # ---- calls of operators

    async def listing(self) -> Listing:
        state, fills = await self.store.read(), await self.store.fills()
        names = dict.fromkeys([CONFIGURED, *state.loaded, *self._entries])
        return Listing(
            state.active, state.previous, [self._shown(name, state, fills.get(name, Fill())) for name in names]
        )

    async def load(self, name: str, source: Source) -> Listing:
        """Asks every replica to open a bundle; returns at once. Raises BundleConflict, or BadRequest for its place."""
        await asyncio.to_thread(check_readable, self.settings, source)

        def loaded(state: BundleState) -> BundleState:
            if name == CONFIGURED or state.loaded.get(name, source) != source:
                raise BundleConflict(f"The name {name} is taken by another bundle; choose another, or unload it first.")
            if len(state.loaded) >= _MOST_LOADED and name not in state.loaded:
                raise BundleConflict(f"{_MOST_LOADED} bundles are loaded already; unload one first.")
            return replace(state, loaded={**state.loaded, name: source})

        if name in self._entries and self._entries[name].problem is not None:
            await self._close(self._entries.pop(name))  # try again
        if name not in (await self.store.read()).loaded:
            await self.store.drop_fill(name)  # of another bundle that had the name
        await self._change(loaded)
        return await self.listing()

    async def unload(self, name: str) -> Listing:
        """Raises UnknownBundle, and BundleConflict for the bundle that answers."""

        def unloaded(state: BundleState) -> BundleState:
            if name not in state.loaded:
                raise UnknownBundle(f"No bundle {name} was loaded.")
            if name == state.active:
                raise BundleConflict(f"{name} answers now; activate another bundle first.")
            loaded = {each: source for each, source in state.loaded.items() if each != name}
            return replace(state, loaded=loaded, previous=None if state.previous == name else state.previous)

        await self._change(unloaded)
        await self.store.drop_fill(name)
        return await self.listing()

    async def activate(self, name: str, *, is_forced: bool = False) -> Listing:
        """Returns when this process answers with the bundle; other replicas follow.

        Raises UnknownBundle, and BundleConflict while it is loading, could not be loaded, or, unless forced, while its
        memory is not filled.
        """
        if name == CONFIGURED:
            await self._open_configured()
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownBundle(f"No bundle {name} is loaded; load it first with POST /bundles.")
        if entry.parts is None:
            raise BundleConflict(f"{name} {'failed to load: ' + entry.problem if entry.problem else 'is loading'}.")
        if not is_forced and not self._is_filled(entry, (await self.store.fills()).get(name, Fill())):
            raise BundleConflict(f"{name} does not know all memory and items yet; wait, or say `force`: true.")
        await self._change(lambda state: state.activated(name))
        self._wanted = None
        return await self.listing()

    async def rollback(self) -> Listing:
        """Activates the bundle that answered before. Raises BundleConflict when there is none."""
        previous = (await self.store.read()).previous
        if previous is None:
            raise BundleConflict("No other bundle has answered before this one.")
        return await self.activate(previous, is_forced=True)

    async def _change(self, change: Callable[[BundleState], BundleState]) -> None:
        while True:
            state = await self.store.read()
            if (new := change(state)) == state or await self.store.write(new):
                break
        await self._follow()

    # ---- following

    async def _follow(self) -> None:
        await self._apply(await self.store.read())

    async def _apply(self, state: BundleState) -> None:
        async with self._changing:
            for name in [*state.loaded, *([CONFIGURED] if state.active == CONFIGURED else [])]:
                self._begin(name, source_of(self.settings, state, name))
            parts = self.named(state.active)
            if parts is not None and state.active != self._active_name:
                await self._switch(state.active, parts)
            kept = {*state.loaded, state.active, state.previous, self._active_name, self._wanted}
            for name in self._entries.keys() - kept:
                self._run(self._release(self._entries.pop(name)))
            self._active.ingest.worker.others = self._other_workers()

    def _begin(self, name: str, source: Source) -> None:
        """Begins to open a bundle that is not open."""
        if name not in self._entries:
            self._entries[name] = Entry(source)
            self._entries[name].task = _task(self._prepare(name, source))

    async def _prepare(self, name: str, source: Source) -> None:
        await self._open(name, source)
        parts = self.named(name)
        if parts is not None and name != CONFIGURED and self.settings.encode_in_process:
            await fill(name, parts.ingest.worker, self.store)

    async def _open_configured(self) -> None:
        """It is not open when another bundle answered at the start."""
        self._wanted = CONFIGURED
        if CONFIGURED in self._entries and self._entries[CONFIGURED].problem is not None:
            await self._close(self._entries.pop(CONFIGURED))  # try again
        self._begin(CONFIGURED, source_of(self.settings, BundleState(), CONFIGURED))
        task = self._entries[CONFIGURED].task
        if task is not None:
            await asyncio.wait([task])

    async def _open(self, name: str, source: Source) -> None:
        """Sets `parts` of the entry, or `problem`."""
        try:
            await self._enter(name, source)
        except (ServiceError, ModelStoreError, OSError) as error:
            self._entries[name].problem = str(error)
            log.error("a bundle could not be loaded", name=name, reason=str(error))

    async def _enter(self, name: str, source: Source) -> P:
        entry = self._entries.setdefault(name, Entry(source))
        parts = await entry.stack.enter_async_context(self._open_one(settings_of(self.settings, source, name)))
        entry.parts = parts
        if name != self._active_name:
            self._active.ingest.worker.others = self._other_workers()  # before its memory is filled
        log.info("bundle loaded", name=name, space=parts.view.manifest.space)
        return parts

    async def _switch(self, name: str, parts: P) -> None:
        """The new parts know all changes of items and counts before they answer."""
        await parts.items.catch_up()
        await parts.live_counts.following.once()
        before, self._active_name, self._active = self._active, name, parts
        self.metrics.bundle_switches_total.inc()
        log.info("another bundle answers", name=name, bundle=parts.view.manifest.name)
        await self._hand_over(before, parts)

    async def _hand_over(self, before: P | None, parts: P) -> None:
        """Metrics and the encode queue follow the bundle that answers."""
        manifest = parts.view.manifest
        self.metrics.show_bundle(manifest.name, manifest.space, manifest.created_at)
        parts.engine.show_metrics()
        parts.items.show_metrics()
        parts.live_counts.show_metrics()
        parts.ingest.worker.counts_events = self.settings.live_half_life_days > 0
        await parts.ingest.start(with_worker=self.settings.encode_in_process)
        if before is not None:
            before.ingest.worker.counts_events, before.ingest.worker.others = False, []
            await before.ingest.stop()
            self._run(self._settle(parts))

    async def _settle(self, parts: P) -> None:
        """Counts the events of all users again: which pairs are new depends on what this bundle knows."""
        with contextlib.suppress(ServiceError):
            await backfill(parts.ingest.worker)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = _task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _other_workers(self) -> list[Worker]:
        """Workers of other spaces: a new event becomes memory there, too."""
        spaces, found = {self._active.view.manifest.space}, []
        for entry in self._entries.values():
            if entry.parts is not None and entry.parts.view.manifest.space not in spaces:
                spaces.add(entry.parts.view.manifest.space)
                found.append(entry.parts.ingest.worker)
        return found

    async def _close(self, entry: Entry[P]) -> None:
        """Requests that took the bundle before it was replaced are answered first."""
        if entry.task is not None:
            await cancel_and_wait(entry.task)
        if entry.parts is not None:
            await entry.parts.engine.admission.until_idle(_LAST_REQUESTS_S)
        await entry.stack.aclose()

    async def _release(self, entry: Entry[P]) -> None:
        await self._close(entry)
        entry.parts = None
        free_what_was_closed()

    # ---- reading the state

    async def _read(self) -> BundleState:
        try:
            return await self.store.read()
        except (StoreUnavailable, StoreCorrupt):
            repeated.warning("store unavailable: the configured bundle answers")
            return BundleState()

    def _is_filled(self, entry: Entry[P], fill: Fill) -> bool:
        """Also when the states of the bundle that answers are its own. Not before its model knows the new items."""
        assert entry.parts is not None
        if len(entry.parts.engine.intake) > FAR_BEHIND:
            return False
        return fill.is_done or entry.parts.view.manifest.space == self._active.view.manifest.space

    def _shown(self, name: str, state: BundleState, fill: Fill) -> Shown:
        entry = self._entries.get(name)
        source = source_of(self.settings, state, name)
        manifest = entry.parts.view.manifest if entry is not None and entry.parts is not None else None
        return Shown(
            name=name,
            status=self._status(name, entry, fill),
            directory=source.directory,
            precision=source.precision,
            bundle=manifest.name if manifest else None,
            space=manifest.space if manifest else None,
            num_items=manifest.num_items if manifest else None,
            created_at=manifest.created_at if manifest else None,
            fill=fill,
            problem=entry.problem if entry else None,
        )

    def _status(self, name: str, entry: Entry[P] | None, fill: Fill) -> Status:
        if name == self._active_name:
            return "active"
        if entry is None or (entry.parts is None and entry.problem is None):
            return "loading"
        if entry.problem is not None:
            return "failed"
        return "ready" if self._is_filled(entry, fill) else "filling"


def _task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """In a context of its own: its log lines do not belong to the request that caused it."""
    return asyncio.create_task(work, name="bundles", context=contextvars.Context())
