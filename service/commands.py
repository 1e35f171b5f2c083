"""The commands beside `serve`: an encode worker, a backfill of all users, dead letters, the import of interactions."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import structlog

from service.erasure.eraser import Eraser
from service.errors import SettingsError
from service.event_files import read_interactions
from service.http.routes.interactions import event_or_reason
from service.metrics import Metrics
from service.resources import open_kernel, open_resources, open_store
from service.settings import Settings
from service.store.deadletters import DeadLetters
from service.store.events import Event
from service.usecases.encode import backfill
from service.usecases.ingest import DELETED, Outcome, Wait
from service.watchdog import end_within

log = structlog.get_logger("service.commands")

T = TypeVar("T")
DeadLetterAction = Literal["list", "replay", "drop"]
Submit = Callable[[Sequence[Event | str], Wait], Awaitable[list[Outcome]]]

_LINES_PER_SUBMIT = 500


async def run_worker(settings: Settings) -> None:
    """Runs until SIGTERM, SIGHUP or Ctrl-C. Entries that it has not finished go to another worker."""
    stop = _stop_signal(within_s=settings.drain_s)
    async with open_resources(settings.model_copy(update={"encode_in_process": True}), Metrics()):
        await stop.wait()


def _stop_signal(*, within_s: float) -> asyncio.Event:
    """Is set at the first signal; the second one, or `within_s` seconds, ends the process at once.

    SIGHUP stays ignored where it is (nohup).
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def on_signal(number: signal.Signals) -> None:
        end_within(within_s)
        for each in numbers:
            loop.remove_signal_handler(each)
        stop.set()
        log.info("stopping", signal=number.name, within_s=within_s)

    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    return stop


async def run_backfill(settings: Settings) -> dict[str, int]:
    """Returns the numbers of users and of states that were computed."""
    async with open_kernel(settings, Metrics()) as kernel:
        return await backfill(kernel.worker)


async def run_deadletters(settings: Settings, action: DeadLetterAction) -> list[str]:
    """Lists, replays or drops the users who could not be encoded; returns the lines to print."""
    async with open_store(settings) as store:
        letters = DeadLetters(store.run, is_cluster=store.is_cluster)
        found = await letters.all()
        if action == "list":
            return [json.dumps(letter._asdict()) for letter in found]
        users = [letter.user_id for letter in found]
        if action == "replay" and users:
            await store.request_encoding(users)  # first, so that a kill in between loses nobody
        return [json.dumps({action: await letters.remove(users)})]


async def run_compact(settings: Settings) -> dict[str, Any]:
    """Has the store rewrite its files; returns what it answered when that is done."""
    async with open_store(settings) as store:
        eraser = Eraser(store, Metrics(), minutes=0)
        try:
            return (await eraser.compact(None))._asdict()
        finally:
            await eraser.stop()


async def run_import(settings: Settings, path: Path) -> int:
    """Sends a file of interactions to the store, without a server. Returns their number."""
    async with open_resources(settings, Metrics()) as resources:
        return await import_file(resources.ingest.submit, path)


async def run_export(settings: Settings, out: Path) -> dict[str, Any]:
    """Writes the live store as a data set; returns its manifest. Raises SettingsError, also without pyarrow."""
    try:
        from service.export.dataset import export
    except ImportError:
        raise SettingsError(["export needs pyarrow: pip install '.[train]'"]) from None
    async with open_kernel(settings, Metrics()) as kernel:
        return await export(kernel.store, kernel.view.catalogue.items, out, kernel.view.event_types)


async def import_file(submit: Submit, path: Path) -> int:
    """Sends the interactions of a file (see `event_files`); returns their number when memory holds them.

    Repeating it changes nothing. Raises SettingsError with the line number at the first line that cannot be read or is
    rejected; earlier lines may be stored by then.
    """
    num_events = num_conflicts = num_deleted = 0
    with closing(read_interactions(path)) as interactions:
        for lines in _pieces(interactions, _LINES_PER_SUBMIT):
            events = {number: event_or_reason(fields) for number, fields in lines}
            for number, outcome in zip(events, await submit(list(events.values()), "visible"), strict=True):
                if outcome.reason == DELETED:
                    num_deleted += 1
                elif outcome.status == "rejected":
                    raise SettingsError([f"{path}:{number}: {outcome.reason}"])
                num_conflicts += outcome.status == "conflict"
            num_events += len(events)
    if num_conflicts:
        log.warning("events that differ from stored ones were not imported", conflicts=num_conflicts)
    if num_deleted:
        log.warning("events of users who were deleted since were not imported", events=num_deleted)
    log.info("imported", interactions=num_events)
    return num_events


def _pieces(elements: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(elements)
    while piece := list(islice(iterator, size)):
        yield piece
