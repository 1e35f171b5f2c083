"""What is open while a process runs, in the order in which it is opened. A failure half way closes what was open.

`open_kernel`: store → bundle → engine → catalogue, enough to encode memory (backfill).
`open_resources`: the store, then `Bundles`, which opens everything that answers requests for one bundle or several.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, TypeVar

import structlog

from model_store.answers import LATEST, POPULAR, TRENDING
from model_store.signature import verify
from model_store.view import BundleView
from service.bundles.bundles import Bundles
from service.ending import cancel_and_wait
from service.engine.engine import Engine
from service.engine.process import Spawn, spawn
from service.erasure.eraser import Eraser
from service.errors import SettingsError
from service.event_types.table import EventTable
from service.feedback.answers import Answers
from service.feedback.experiments import Experiments
from service.feedback.explored import ExploredItems
from service.feedback.outcomes import Outcomes
from service.feedback.pages import Pages
from service.metrics import Metrics
from service.settings import Settings
from service.store.bundles import BundleStore
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.feedback.explored import ExploredStore
from service.store.feedback.outcomes import ExperimentStore, OutcomeStore
from service.store.pages import PageStore
from service.store.sealing.master import MasterKeys
from service.store.servers.tls import Certificates
from service.store.shown import ShownStore
from service.usecases.browsing.items import ItemList
from service.usecases.browsing.rankings import Rankings
from service.usecases.browsing.related import RelatedItems
from service.usecases.browsing.users import UserList
from service.usecases.encode import Worker
from service.usecases.ingest import Ingest
from service.usecases.items import Items
from service.usecases.live import LiveCounts
from service.usecases.ranking.cold_start import ColdStart
from service.usecases.recommend import Recommender
from service.usecases.shown import ShownLists
from service.usecases.users import Users

log = structlog.get_logger("service.resources")

T = TypeVar("T", bound="Stoppable")

_SECONDS_PER_DAY = 86_400
_LAST_JOBS_S = 2.0  # requests have ended before the engine stops; only jobs of background work can be left


class Stoppable(Protocol):
    async def stop(self) -> None: ...


@dataclass(frozen=True)
class Kernel:
    """`items` follows the catalogue overlay; without it the worker would not know items that were added later."""

    view: BundleView
    store: MemoryStore
    engine: Engine
    items: Items
    worker: Worker


@dataclass(frozen=True)
class Shared:
    """What all bundles of a process use together."""

    store: MemoryStore
    event_table: EventTable
    shown: ShownLists
    explored: ExploredItems
    outcomes: Outcomes
    experiments: Experiments
    eraser: Eraser
    bundles: "Bundles[Resources]"


@dataclass(frozen=True)
class Resources:
    """Everything that answers requests with one bundle. `loaded_at` is an RFC 3339 time in UTC.

    `bundles`: all bundles of this process; None where there can be only one.
    """

    settings: Settings
    metrics: Metrics
    view: BundleView
    store: MemoryStore
    event_table: EventTable
    engine: Engine
    items: Items
    ingest: Ingest
    users: Users
    recommender: Recommender
    shown: ShownLists
    answers: Answers
    related: RelatedItems
    item_list: ItemList
    rankings: Rankings
    user_list: UserList
    experiments: Experiments
    live_counts: LiveCounts
    eraser: Eraser
    loaded_at: str
    bundles: "Bundles[Resources] | None" = None

    def current(self) -> "Resources":
        """The resources of the bundle that answers now. Call it once for each request."""
        return self if self.bundles is None else self.bundles.active


def open_view(settings: Settings) -> BundleView:
    """The server's side of the bundle that the settings name. Raises BundleError, also for one that is not trusted."""
    if settings.bundle_keys:
        verify(settings.bundle, settings.bundle_keys)
    precision = None if settings.precision == "bundle" else settings.precision
    return BundleView.open_view(settings.bundle, precision=precision)


def master_keys(settings: Settings) -> MasterKeys | None:
    """None where records are not encrypted. Raises SettingsError."""
    lines = settings.plain_encryption_keys
    try:
        return MasterKeys.read(lines) if lines else None
    except ValueError as error:
        raise SettingsError([f"AUTOMR_ENCRYPTION_KEYS: {error}"]) from None


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[MemoryStore]:
    """The store that the settings name; an embedded one is started and ends afterwards. Raises StartupError."""
    async with AsyncExitStack() as stack:
        url, server = settings.store_url, None
        if settings.embedded_directory is not None:
            server = stack.enter_context(EmbeddedServer(settings.embedded_directory, fsync=settings.fsync))
            url = server.url
        certificates = Certificates(settings.store_ca, settings.store_cert, settings.store_cert_key)
        store = await MemoryStore.connect(url, timeout_s=settings.store_timeout_s, certificates=certificates)
        if server is not None:
            store.problem_of_server = server.problem
        store.durability, store.num_replicas = settings.durability, settings.durable_replicas
        store.tombstones.kept_s = round(_SECONDS_PER_DAY * settings.tombstone_days)
        store.sealing.master = master_keys(settings)
        stack.push_async_callback(store.close)
        yield store


@asynccontextmanager
async def _open_event_table(store: MemoryStore) -> AsyncIterator[EventTable]:
    table = EventTable(store)
    await table.start()
    try:
        yield table
    finally:
        await table.stop()


@asynccontextmanager
async def open_kernel(
    settings: Settings, metrics: Metrics, *, event_table: EventTable | None = None, spawn: Spawn = spawn
) -> AsyncIterator[Kernel]:
    """Yields when the model is warm. `spawn` starts the process of the model.

    Without `event_table`, the store is opened, and its table of event types is followed.
    """
    async with AsyncExitStack() as stack:
        view = await asyncio.to_thread(open_view, settings)
        if event_table is None:
            store = await stack.enter_async_context(open_store(settings))
            event_table = await stack.enter_async_context(_open_event_table(store))
        store = event_table.store
        event_table.add(view)
        stack.callback(event_table.remove, view)
        engine = Engine(view, settings, metrics, spawn)
        stack.push_async_callback(engine.stop, _LAST_JOBS_S)
        items = _stopped(stack, Items(view, engine, store, metrics))
        loading = asyncio.create_task(items.start(), name="changed-items")  # while the process of the model starts
        stack.push_async_callback(cancel_and_wait, loading)
        await engine.start()
        await loading
        await engine.intake.settled()
        counts_events = settings.live_half_life_days > 0
        worker = Worker(view, engine, store, items, metrics, counts_events=counts_events)
        yield Kernel(view, store, engine, items, worker)


@asynccontextmanager
async def open_resources(settings: Settings, metrics: Metrics, *, spawn: Spawn = spawn) -> AsyncIterator[Resources]:
    """Yields when a request would be answered: the resources of the bundle that answers first."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings))
        event_table = await stack.enter_async_context(_open_event_table(store))
        if problem := await store.sealing.problem():
            log.error("records of users cannot be read", reason=problem)
        kept_s = round(3600 * settings.shown_hours)
        most_explored = settings.explored_times
        shown_store = ShownStore(store.run, store.tombstones, kept_s=kept_s, most_explored=most_explored)
        shown = _stopped(stack, ShownLists(shown_store, metrics))
        explored = _stopped(stack, ExploredItems(ExploredStore(store.run, most=most_explored)))
        explored.start()
        outcomes = Outcomes(OutcomeStore(store.run))
        experiments = _stopped(stack, Experiments(ExperimentStore(store.run), outcomes, metrics))
        await experiments.start()
        eraser = _stopped(stack, Eraser(store, metrics, minutes=settings.erasure_minutes))
        eraser.start()

        def open_one(chosen: Settings) -> AbstractAsyncContextManager[Resources]:
            together = Shared(store, event_table, shown, explored, outcomes, experiments, eraser, bundles)
            return _open_bundle(chosen, metrics, together, spawn)

        bundles: Bundles[Resources] = _stopped(stack, Bundles(settings, metrics, BundleStore(store.run), open_one))
        yield await bundles.start()


@asynccontextmanager
async def _open_bundle(settings: Settings, metrics: Metrics, shared: Shared, spawn: Spawn) -> AsyncIterator[Resources]:
    """Yields when the bundle could answer. What takes long for a large catalogue is made in a thread."""
    async with AsyncExitStack() as stack:
        store, shown = shared.store, shared.shown
        kernel = await stack.enter_async_context(
            open_kernel(settings, metrics, event_table=shared.event_table, spawn=spawn)
        )
        view, engine = kernel.view, kernel.engine
        kernel.worker.counts_events = False  # until this bundle answers
        ingest = _stopped(stack, Ingest(view, store, kernel.items, kernel.worker, metrics))
        counting = partial(LiveCounts, view, engine, store, kernel.items, metrics)
        live_counts = await asyncio.to_thread(counting, half_life_days=settings.live_half_life_days)
        _stopped(stack, live_counts).start()
        explored = await asyncio.to_thread(shared.explored.add, view)
        stack.callback(shared.explored.remove, explored)
        shares = dict(zip((POPULAR, TRENDING, LATEST), settings.cold_start, strict=True))
        cold_start = ColdStart(shares, live_counts.trending)
        recommending = partial(Recommender, view, engine, store, metrics, cold_start=cold_start, explored=explored.of)
        recommender = await asyncio.to_thread(recommending, default_deadline_ms=settings.deadline_ms)
        _stopped(stack, recommender)
        answers = Answers(
            recommender,
            shown,
            Pages(PageStore(store.run, store.tombstones)),
            experiments=shared.experiments,
            metrics=metrics,
            recommender_of=partial(_recommender_of, shared.bundles),
        )
        _stopped(stack, answers)
        settle, erase = shared.outcomes.settle, shared.eraser.delete
        yield Resources(
            settings=settings,
            metrics=metrics,
            view=view,
            store=store,
            event_table=shared.event_table,
            engine=engine,
            items=kernel.items,
            ingest=ingest,
            users=Users(view, store, engine, shown, settle=settle, erase=erase, metrics=metrics),
            recommender=recommender,
            shown=shown,
            related=RelatedItems(view, engine, kernel.items),
            item_list=ItemList(view, kernel.items),
            rankings=Rankings(view, live_counts),
            user_list=UserList(store),
            answers=answers,
            experiments=shared.experiments,
            live_counts=live_counts,
            eraser=shared.eraser,
            loaded_at=datetime.now(UTC).isoformat(timespec="seconds"),
            bundles=shared.bundles,
        )


def _stopped(stack: AsyncExitStack, part: T) -> T:
    """The part, which is stopped when the stack is closed."""
    stack.push_async_callback(part.stop)
    return part


def _recommender_of(bundles: Bundles[Resources], name: str) -> Recommender | None:
    parts = bundles.named(name)
    return None if parts is None else parts.recommender
