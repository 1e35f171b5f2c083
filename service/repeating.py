"""Work that a process repeats while it runs, such as a look at the store for what other processes have changed."""

import asyncio
from collections.abc import Awaitable, Callable

from service.ending import cancel_and_wait


class Repeated:
    """Does `work` again and again until it is stopped, with `every_s` seconds between; `at_once`: also at the start.

    `work` deals with its errors: one that comes out of it ends the repetition. For one event loop.
    """

    def __init__(
        self, work: Callable[[], Awaitable[None]], *, every_s: float, name: str, at_once: bool = False
    ) -> None:
        self._work, self._every_s, self._name, self._at_once = work, every_s, name, at_once
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Also if it was not started."""
        if self._task is not None:
            await cancel_and_wait(self._task)

    async def _run(self) -> None:
        if not self._at_once:
            await asyncio.sleep(self._every_s)
        while True:
            await self._work()
            await asyncio.sleep(self._every_s)
