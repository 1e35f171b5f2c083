"""What is open while a process runs, in the order it is opened; whatever fails half way closes what was open.

bundle → store → engine          the kernel: enough to encode memory (worker, backfill)
+ catalogue, ingest, recommender  everything that answers requests
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from transformers.utils import logging as transformers_logging

from model_store.bundle import Bundle
from model_store.lm.precision import set_precision
from model_store.lm.prepacked import prepack_matrices
from service.engine.engine import Engine
from service.errors import SettingsError
from service.http.dependencies import Resources
from service.http.schemas import ModelInfo
from service.metrics import Metrics
from service.settings import Settings, variable
from service.store.client import MemoryStore
from service.store.embedded import EmbeddedServer
from service.usecases.encode import Worker
from service.usecases.ingest import Ingest
from service.usecases.items import Items
from service.usecases.recommend import Recommender
from service.usecases.users import Users


@dataclass(frozen=True)
class Kernel:
    """`items` follows the catalogue overlay, without which late items would be unknown to the encoder."""

    bundle: Bundle
    store: MemoryStore
    engine: Engine
    items: Items
    worker: Worker


@asynccontextmanager
async def open_kernel(settings: Settings, metrics: Metrics) -> AsyncIterator[Kernel]:
    """Yields when warm."""
    transformers_logging.disable_progress_bar()  # a log is no terminal
    async with AsyncExitStack() as stack:
        bundle = _open_bundle(settings)
        url = settings.store_url
        if settings.embedded_directory is not None:
            url = stack.enter_context(EmbeddedServer(settings.embedded_directory, fsync=settings.fsync)).url
        store = await MemoryStore.connect(url, timeout_s=settings.store_timeout_s)
        stack.push_async_callback(store.close)
        engine = Engine(bundle, settings, metrics)
        stack.push_async_callback(engine.stop, settings.drain_s)
        await engine.start()
        items = Items(bundle, engine, store)
        stack.push_async_callback(items.stop)
        await items.start()
        yield Kernel(bundle, store, engine, items, Worker(bundle, engine, store, items, metrics))


@asynccontextmanager
async def open_resources(settings: Settings, metrics: Metrics) -> AsyncIterator[Resources]:
    async with AsyncExitStack() as stack:
        kernel = await stack.enter_async_context(open_kernel(settings, metrics))
        bundle, store, engine = kernel.bundle, kernel.store, kernel.engine
        ingest = Ingest(bundle, store, kernel.items, kernel.worker, metrics)
        stack.push_async_callback(ingest.stop)
        await ingest.start(with_worker=settings.encode_in_process)
        recommender = Recommender(bundle, engine, store, metrics, settings)
        stack.push_async_callback(recommender.stop)
        metrics.bundle_info.labels(bundle.manifest.name, bundle.manifest.space).set(1)
        loaded_at = datetime.now(UTC).isoformat(timespec="seconds")
        yield Resources(
            settings=settings,
            metrics=metrics,
            recommender=recommender,
            ingest=ingest,
            items=kernel.items,
            users=Users(bundle, store),
            engine=engine,
            store=store,
            describe=lambda: describe(bundle, loaded_at),
        )


def describe(bundle: Bundle, loaded_at: str) -> ModelInfo:
    manifest = bundle.manifest
    return ModelInfo(
        bundle=manifest.name,
        space=manifest.space,
        format=manifest.format_version,
        vocabulary=manifest.vocabulary,
        split_layer=manifest.backbone.split_layer,
        recent_length=manifest.prompt.recent_length,
        max_memory=manifest.memory.max_elements,
        num_items=len(bundle.catalogue),
        loaded_at=loaded_at,
    )


def _open_bundle(settings: Settings) -> Bundle:
    """In the precision that was asked for: states and scores differ a little from those of the bundle's own."""
    bundle = Bundle.open(settings.bundle, device=_device(settings.device))
    if settings.precision != "bundle":
        try:
            set_precision(bundle.lm, settings.precision)
        except ValueError as error:
            raise SettingsError([f"{variable('precision')}: {error}"]) from None
    prepack_matrices(bundle.lm)
    return bundle


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise SettingsError(["AUTOMR_DEVICE: cuda was asked for, but torch finds no such device"])
    return asked if asked != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
