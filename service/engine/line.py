"""Where the recommendations of a greedy caller wait, so that those of quiet callers find little work before them.

What is in work slows all others: it shares the event loop, and a batch of the model takes longer with more jobs. So
while several callers ask, a caller with more than its equal part of the requests in work begins another one only while
few are in work: one batch at the model, and one on its way. The other requests wait here, callers in rotation, before
any work is done for them. Callers with their part or less do not wait here, nor does a caller who is alone.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.engine.shares import Shares
from service.engine.waiting import Lines
from service.identity.principal import caller


class Line:
    """For one event loop. `batch`: most jobs of a batch that is still quick; see `Admission.quick_batch`."""

    def __init__(self, batch: Callable[[], int]) -> None:
        self._batch = batch
        self._shares = Shares()
        self._lines = Lines()
        self._num_in_work = 0

    def __len__(self) -> int:
        return len(self._lines)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Wraps the work for a request. True if it has waited."""
        owner = caller.get().key_id
        self._shares.asks(owner)
        waits = owner in self._lines or not self._is_free(owner)
        if waits:
            await self._wait(owner)
        else:
            self._began(owner)
        try:
            yield waits
        finally:
            self._ended(owner)

    def _is_free(self, owner: str) -> bool:
        return self._num_in_work < 2 * self._batch() or not self._shares.is_greedy(owner)

    async def _wait(self, owner: str) -> None:
        waiting = self._lines.join(owner)
        try:
            await waiting.turn.wait()
        except asyncio.CancelledError:
            if not self._lines.leave(waiting):
                self._ended(owner)
            raise

    def _began(self, owner: str) -> None:
        self._num_in_work += 1
        self._shares.began(owner)

    def _ended(self, owner: str) -> None:
        self._num_in_work -= 1
        self._shares.ended(owner)
        while first := next((each for each in self._lines.firsts() if self._is_free(each.owner)), None):
            self._began(first.owner)
            self._lines.call(first)
