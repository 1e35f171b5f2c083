"""Work that a process does beside its requests.

`Repeated`   every few seconds, such as a look at the store for what other processes have changed
`Deferred`   a moment after it was asked for, once for all who asked meanwhile, such as a write of what was collected
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from service.ending import cancel_and_wait
from service.errors import ModelFailed, ModelUnavailable, StoreCorrupt, StoreUnavailable
from service.logs import RepeatedWarnings

log = structlog.get_logger("service.background")
repeated = RepeatedWarnings(log)


class Repeated:
    """Does `work` again and again, with `every_s` seconds between; `at_once`: also at the start. For one event loop.

    `name` stands in log lines and names the task. The task has a context of its own: its log lines and spans do not
    belong to the request that started it.
    """

    def __init__(self, name: str, work: Callable[[], Awaitable[Any]], *, every_s: float, at_once: bool = False) -> None:
        self._name, self._work, self._every_s, self._at_once = name, work, every_s, at_once
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self._task is not None

    def start(self) -> None:
        """May be called again after `stop`."""
        self._task = asyncio.create_task(self._run(), name=self._name, context=contextvars.Context())

    async def stop(self) -> None:
        """May be called when it was not started."""
        task, self._task = self._task, None
        if task is not None:
            await cancel_and_wait(task)

    async def once(self) -> None:
        """Does the work now, in the task of the caller. An error is logged as in the repetition and not raised."""
        try:
            await self._work()
        except (StoreUnavailable, StoreCorrupt, ModelUnavailable, ModelFailed) as error:
            reason = type(error).__name__
            repeated.warning("store or model unavailable: repeated work waits", work=self._name, error=reason)
        except Exception as error:  # go on: a process that stops following the store would answer from old facts
            repeated.exception("repeated work failed, trying again", work=self._name, error=type(error).__name__)

    async def _run(self) -> None:
        if not self._at_once:
            await asyncio.sleep(self._every_s)
        while True:
            await self.once()
            await asyncio.sleep(self._every_s)


class Deferred:
    """Does `work` `after_s` seconds after it was asked for, once for all who asked meanwhile. For one event loop.

    `work` handles its own errors. The task has a context of its own, as that of `Repeated`.
    """

    def __init__(self, name: str, work: Callable[[], Awaitable[None]], *, after_s: float) -> None:
        self._name, self._work, self._after_s = name, work, after_s
        self._is_asked = False
        self._is_stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Does not wait."""
        self._is_asked = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=self._name, context=contextvars.Context())

    async def stop(self) -> None:
        """Returns when the work that was asked for is done; what is asked for from now on is done at once."""
        self._is_stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._is_asked:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._after_s):
                    await self._is_stopping.wait()
            self._is_asked = False
            await self._work()
