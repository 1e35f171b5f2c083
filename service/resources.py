"""What is open while a process runs, in the order in which it is opened. A failure half way closes what was open.

`open_kernel`: bundle → store → engine → catalogue, enough to encode memory (worker, backfill).
`open_resources`: the kernel and everything that answers requests.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from model_store.view import BundleView
from service.engine.engine import Engine
from service.engine.process import Spawn, spawn
from service.feedback.answers import Answers
from service.metrics import Metrics
from service.settings import Settings
from service.store.client import MemoryStore
from service.store.embedded import EmbeddedServer
from service.store.shown import ShownStore
from service.usecases.encode import Worker
from service.usecases.ingest import Ingest
from service.usecases.items import Items
from service.usecases.live import LiveCounts
from service.usecases.recommend import Recommender
from service.usecases.shown import ShownLists
from service.usecases.users import Users

_LAST_JOBS_S = 2.0  # requests have ended before the engine stops; only jobs of background work can be left


@dataclass(frozen=True)
class Kernel:
    """`items` follows the catalogue overlay; without it the worker would not know items that were added later."""

    view: BundleView
    store: MemoryStore
    engine: Engine
    items: Items
    worker: Worker


@dataclass(frozen=True)
class Resources:
    """Everything that is open while the application runs. `loaded_at` is an RFC 3339 time in UTC."""

    settings: Settings
    metrics: Metrics
    view: BundleView
    store: MemoryStore
    engine: Engine
    items: Items
    ingest: Ingest
    users: Users
    recommender: Recommender
    shown: ShownLists
    answers: Answers
    live_counts: LiveCounts
    loaded_at: str


def open_view(settings: Settings) -> BundleView:
    """The server's side of the bundle that the settings name."""
    precision = None if settings.precision == "bundle" else settings.precision
    return BundleView.open_view(settings.bundle, precision=precision)


@asynccontextmanager
async def open_kernel(settings: Settings, metrics: Metrics, *, spawn: Spawn = spawn) -> AsyncIterator[Kernel]:
    """Yields when the model is warm. `spawn` starts the process of the model."""
    async with AsyncExitStack() as stack:
        view = open_view(settings)
        url = settings.store_url
        if settings.embedded_directory is not None:
            url = stack.enter_context(EmbeddedServer(settings.embedded_directory, fsync=settings.fsync)).url
        store = await MemoryStore.connect(url, timeout_s=settings.store_timeout_s)
        stack.push_async_callback(store.close)
        engine = Engine(view, settings, metrics, spawn)
        stack.push_async_callback(engine.stop, _LAST_JOBS_S)
        await engine.start()
        items = Items(view, engine, store)
        stack.push_async_callback(items.stop)
        await items.start()
        counts_events = settings.live_half_life_days > 0
        worker = Worker(view, engine, store, items, metrics, counts_events=counts_events)
        yield Kernel(view, store, engine, items, worker)


@asynccontextmanager
async def open_resources(settings: Settings, metrics: Metrics, *, spawn: Spawn = spawn) -> AsyncIterator[Resources]:
    """Yields when a request would be answered."""
    async with AsyncExitStack() as stack:
        kernel = await stack.enter_async_context(open_kernel(settings, metrics, spawn=spawn))
        view, store, engine = kernel.view, kernel.store, kernel.engine
        ingest = Ingest(view, store, kernel.items, kernel.worker, metrics)
        stack.push_async_callback(ingest.stop)
        await ingest.start(with_worker=settings.encode_in_process)
        half_life_days = settings.live_half_life_days
        live_counts = LiveCounts(view, engine, store, kernel.items, metrics, half_life_days=half_life_days)
        stack.push_async_callback(live_counts.stop)
        await live_counts.start()
        shown = ShownLists(ShownStore(store.run, kept_s=round(3600 * settings.shown_hours)), metrics)
        stack.push_async_callback(shown.stop)
        deadline_ms = settings.deadline_ms
        recommender = Recommender(view, engine, store, metrics, default_deadline_ms=deadline_ms)
        stack.push_async_callback(recommender.stop)
        metrics.bundle_info.labels(view.manifest.name, view.manifest.space).set(1)
        yield Resources(
            settings=settings,
            metrics=metrics,
            view=view,
            store=store,
            engine=engine,
            items=kernel.items,
            ingest=ingest,
            users=Users(view, store, engine, shown),
            recommender=recommender,
            shown=shown,
            answers=Answers(recommender, shown),
            live_counts=live_counts,
            loaded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
