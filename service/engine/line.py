"""Where the requests of a greedy caller wait, so that those of quiet callers find little work before them.

What is in work slows all others: it shares the event loop, and a batch of the model takes longer with more jobs. So
while several callers ask, a caller with more than its equal part of the requests in work begins another one only while
few are in work: one batch at the model, and one on its way. The other requests wait here, callers in rotation, before
any work is done for them. A caller waits here only if it has more than its part and is not alone.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.engine.shares import Shares, is_greedy
from service.engine.waiting import Lines, Waiting
from service.identity.principal import caller


class Line:
    """For one event loop. `shares` knows who asks. `batch`: most jobs of a quick batch; see `Admission.quick_batch`.

    `rest`: after a request that has waited, its place rests for so many times as long as the work took.
    """

    def __init__(self, shares: Shares, batch: Callable[[], int], *, rest: float = 0.0) -> None:
        self._shares, self._batch, self._rest = shares, batch, rest
        self._lines = Lines()
        self._in_work: Counter[str] = Counter()
        self._num_in_work = 0

    @property
    def num_waiting(self) -> int:
        return self._lines.num_waiting

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Wraps the work for a request that is admitted. True if it has waited."""
        owner = caller.get().key_id
        waits = (self._lines.num_waiting > 0 and owner in self._lines) or not self._is_free(owner)
        if waits:
            await self._wait(owner)
        else:
            self._began(owner)
        began = time.monotonic()
        try:
            yield waits
        finally:
            if waits and self._rest:
                rest_s = self._rest * (time.monotonic() - began)
                asyncio.get_running_loop().call_later(rest_s, self._ended, owner)
            else:
                self._ended(owner)

    def _is_free(self, owner: str) -> bool:
        has_part = not is_greedy(self._in_work[owner], self._num_in_work, len(self._shares.asked))
        return has_part or self._num_in_work < 2 * self._batch()

    async def _wait(self, owner: str) -> None:
        waiting = self._lines.join(owner)
        try:
            await waiting.turn.wait()
        except asyncio.CancelledError:
            if not self._lines.leave(waiting):
                self._ended(owner)
            raise

    def _began(self, owner: str) -> None:
        self._in_work[owner] += 1
        self._num_in_work += 1

    def _ended(self, owner: str) -> None:
        self._in_work[owner] -= 1
        self._num_in_work -= 1
        if not self._in_work[owner]:
            del self._in_work[owner]
        while self._lines.num_waiting and (first := self._first_free()):
            self._began(first.owner)
            self._lines.call(first)

    def _first_free(self) -> Waiting | None:
        return next((each for each in self._lines.firsts() if self._is_free(each.owner)), None)
