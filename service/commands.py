"""The commands beside `serve`: an encode worker, a backfill of all users, dead letters, the import of interactions."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import structlog

from service.ending import end_within
from service.erasure.eraser import Eraser
from service.erasure.retention import prune
from service.errors import SettingsError
from service.event_files import Unreadable, read_interactions
from service.event_types.table import EventTable
from service.http.routes.interactions import event_or_reason
from service.metrics import Metrics
from service.resources import open_kernel, open_resources, open_store
from service.settings import Settings
from service.store.deadletters import DeadLetters
from service.store.events import Event
from service.store.sealing.walk import seal_all
from service.tracing.traces import Traces
from service.usecases.encode import backfill
from service.usecases.ingest import DELETED, Outcome, Wait

log = structlog.get_logger("service.commands")

T = TypeVar("T")
DeadLetterAction = Literal["list", "replay", "drop"]
Submit = Callable[[Sequence[Event | str], Wait], Awaitable[list[Outcome]]]

_LINES_PER_SUBMIT = 500
_SECONDS_PER_DAY = 86_400
_LINES_SHOWN, _REASONS_SHOWN, _REASONS_COUNTED = 20, 10, 100


async def run_worker(settings: Settings) -> None:
    """Runs until SIGTERM, SIGHUP or Ctrl-C. Entries that it has not finished go to another worker."""
    stop = _stop_signal(within_s=settings.drain_s)
    with Traces(settings.otlp_endpoint, ratio=settings.trace_ratio).opened():
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


async def run_seal(settings: Settings) -> dict[str, int]:
    """Seals the records of all users with the first master key; returns how many were changed."""
    async with open_store(settings) as store:
        event_table = EventTable(store)
        await event_table.catch_up()
        return await seal_all(store)


async def run_prune(settings: Settings, *, days: float | None, most: int | None, is_trial: bool) -> dict[str, int]:
    """Deletes events that are older than `days`, or not among the newest `most` of their user; returns how many."""
    async with open_store(settings) as store:
        event_table = EventTable(store)
        await event_table.catch_up()
        before = None if days is None else int(time.time() - _SECONDS_PER_DAY * days)
        return (await prune(store, before=before, most=most, is_trial=is_trial))._asdict()


async def run_compact(settings: Settings) -> dict[str, Any]:
    """Has the store rewrite its files; returns what it answered when that is done."""
    async with open_store(settings) as store:
        eraser = Eraser(store, Metrics(), minutes=0)
        try:
            return (await eraser.compact(None))._asdict()
        finally:
            await eraser.stop()


async def run_import(settings: Settings, path: Path, rejected: Path | None = None) -> int:
    """Sends a file of interactions to the store, without a server. Returns their number. See `import_file`."""
    async with open_resources(settings, Metrics()) as resources:
        return await import_file(resources.ingest.submit, path, rejected)


async def run_export(settings: Settings, out: Path) -> dict[str, Any]:
    """Writes the live store as a data set; returns its manifest. Raises SettingsError, also without pyarrow."""
    try:
        from service.export.dataset import export
    except ImportError:
        raise SettingsError(["export needs pyarrow: pip install '.[train]'"]) from None
    async with open_kernel(settings, Metrics()) as kernel:
        return await export(kernel.store, kernel.view.catalogue.items, out, kernel.view.event_types)


class Refused:
    """Refused lines: all of them in a file, as JSON lines with `line`, `reason` and what the line has; a few in memory.

    The file has also the lines that are no mistake and were left out. `file` None: beside the imported one.
    """

    def __init__(self, path: Path, file: Path | None) -> None:
        self.file = path.with_name(path.name + ".rejected.jsonl") if file is None else file
        self.path, self.number = path, 0
        self._first: list[str] = []
        self._reasons: Counter[str] = Counter()
        self._is_written, self._is_begun = True, False

    def add(self, number: int, reason: str, fields: Any) -> None:
        self.number += 1
        if len(self._first) < _LINES_SHOWN:
            self._first.append(f"{self.path}:{number}: {reason}")
        self._reasons[reason if reason in self._reasons or len(self._reasons) < _REASONS_COUNTED else "other"] += 1
        self.write(number, reason, fields)

    def write(self, number: int, reason: str, fields: Any) -> None:
        kept = fields.line if isinstance(fields, Unreadable) else fields
        record = json.dumps({"line": number, "reason": reason, "interaction": kept}, ensure_ascii=False)
        try:
            with self.file.open("a" if self._is_begun else "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(record + "\n")
            self._is_begun = True
        except OSError:
            self._is_written = False

    def problems(self, num_lines: int) -> list[str]:
        """The first refused lines, and how often each reason occurs."""
        if not self.number:
            return []
        counts = ", ".join(f"{count} × {reason}" for reason, count in self._reasons.most_common(_REASONS_SHOWN))
        where = f"all of them are in {self.file}" if self._is_written else f"{self.file} could not be written"
        return [
            *self._first,
            f"{self.number} of {num_lines} lines were refused, the others are stored: {counts}; {where}",
        ]


async def import_file(submit: Submit, path: Path, rejected: Path | None = None) -> int:
    """Sends the interactions of a file (see `event_files`); returns their number when memory holds them.

    Repeating it changes nothing. A line that is refused keeps no other one back; if there are such lines, raises
    SettingsError at the end, with the first ones, the number of each reason, and the file `rejected` with all of them.
    Events that differ from stored ones, and those of deleted users, are in this file, too, and raise nothing.
    Raises it with the line number at once where the rest of the file cannot be read; earlier lines are stored by then.
    """
    statuses: Counter[str] = Counter()
    refused, num_lines = Refused(path, rejected), 0
    try:
        with closing(read_interactions(path)) as interactions:
            for lines in _pieces(interactions, _LINES_PER_SUBMIT):
                outcomes = await submit([_event_of(fields) for _, fields in lines], "visible")
                num_lines += len(lines)
                for (number, fields), outcome in zip(lines, outcomes, strict=True):
                    status = "deleted" if outcome.reason == DELETED else outcome.status
                    statuses[status] += 1
                    if status == "rejected":
                        refused.add(number, outcome.reason or "", fields)
                    elif status in ("conflict", "deleted"):
                        refused.write(number, outcome.reason or "", fields)
                log.info("importing", lines=num_lines, rejected=refused.number)
    except SettingsError as error:
        raise SettingsError([*error.problems, *refused.problems(num_lines)]) from error
    if statuses["conflict"]:
        log.warning(
            "events that differ from stored ones were not imported",
            conflicts=statuses["conflict"],
            file=str(refused.file),
        )
    if statuses["deleted"]:
        log.warning(
            "events of users who were deleted since were not imported",
            events=statuses["deleted"],
            file=str(refused.file),
        )
    log.info("imported", interactions=num_lines - refused.number, **statuses)
    if refused.number:
        raise SettingsError(refused.problems(num_lines))
    return num_lines


def _event_of(fields: Any) -> Event | str:
    return fields.reason if isinstance(fields, Unreadable) else event_or_reason(fields)


def _pieces(elements: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(elements)
    while piece := list(islice(iterator, size)):
        yield piece
