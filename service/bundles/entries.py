"""A bundle that this process has open or is opening, where it lies, and how it is shown. Knows no HTTP."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from model_store.errors import BundleUntrusted, ModelStoreError
from model_store.files import read_manifest
from model_store.signature import verify
from model_store.view import BundleView
from service.engine.engine import Engine
from service.errors import BundleConflict, UnknownBundle
from service.settings import Settings
from service.store.bundles import CONFIGURED, BundleState, Fill, Source
from service.usecases.ingest import Ingest
from service.usecases.items import Items
from service.usecases.live import LiveCounts

Status = Literal["loading", "filling", "ready", "active", "failed"]


class Parts(Protocol):
    """What is open for one bundle; `service.resources.Resources` is one."""

    @property
    def view(self) -> BundleView: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def items(self) -> Items: ...
    @property
    def ingest(self) -> Ingest: ...
    @property
    def live_counts(self) -> LiveCounts: ...


P = TypeVar("P", bound=Parts)


class Shown(NamedTuple):
    """One bundle in this process. `problem`: why it could not be loaded. `bundle` and `space`: of its manifest."""

    name: str
    status: Status
    directory: str
    precision: str
    bundle: str | None
    space: str | None
    num_items: int | None
    created_at: str | None
    fill: Fill
    problem: str | None


class Listing(NamedTuple):
    """`active` and `previous` as the store says; a replica follows within seconds."""

    active: str
    previous: str | None
    bundles: list[Shown]


@dataclass(eq=False)
class Entry(Generic[P]):
    """A bundle that this process has open or is opening. `task` opens it, then fills its memory."""

    source: Source
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    parts: P | None = None
    problem: str | None = None
    task: asyncio.Task[None] | None = None


def source_of(settings: Settings, state: BundleState, name: str) -> Source:
    configured = Source(str(settings.bundle), settings.precision)
    return configured if name == CONFIGURED else state.loaded.get(name, Source(name))


def settings_of(settings: Settings, source: Source, name: str) -> Settings:
    """The settings with which a bundle is opened. Raises BundleConflict for a place that is not allowed."""
    if name == CONFIGURED:
        return settings
    return settings.model_copy(update={"bundle": place_of(settings, source), "precision": source.precision})


def place_of(settings: Settings, source: Source) -> Path:
    """Raises BundleConflict for a place outside the directory of bundles."""
    root = settings.bundles_dir
    if root is None:
        raise BundleConflict("No directory of bundles is set; start the service with AUTOMR_BUNDLES_DIR.")
    place = (root / source.directory).resolve()
    if not place.is_relative_to(root.resolve()) or place == root.resolve():
        raise BundleConflict("`directory` must lie in the directory of bundles (AUTOMR_BUNDLES_DIR).")
    return place


def check_readable(settings: Settings, source: Source) -> None:
    """Raises UnknownBundle or BundleConflict, before any replica tries to open the bundle."""
    try:
        read_manifest(place_of(settings, source))
        if settings.bundle_keys:
            verify(place_of(settings, source), settings.bundle_keys)
    except BundleUntrusted:
        raise BundleConflict(f"{source.directory} is not signed by a key of AUTOMR_BUNDLE_KEYS.") from None
    except ModelStoreError as error:
        raise UnknownBundle(f"{source.directory} cannot be read as a bundle ({type(error).__name__}).") from error
