"""Turns of writes: how `POST /interactions` shares the event loop, the store and the disk with recommendations.

    a write comes → waits for its turn (callers in rotation), or is refused → works → its place rests → the next one

A large write takes more of the places than a small one. While recommendations are in work, and for a moment after,
there are few places, and each one rests after a write as long as the write took, so that writes have at most about half
of the time. At other times there are more, because writes that the store takes together wait for its disk together.
Too many waiting writes are refused at once with `Retry-After`. Nothing is lost: senders repeat, and nothing counts
twice.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.engine.shares import Shares
from service.engine.waiting import Lines
from service.errors import Overloaded
from service.identity.principal import caller

PLACES, PLACES_ALONE = 8, 32  # beside recommendations, and without
EVENTS_PER_PLACE = 25
READING_FOR_S = 0.2  # after a recommendation more are expected
MOST_WAITING = 256
_FORGET = 0.9  # weight of the mean time of writes relative to the next one


class Turns:
    """For one event loop. `has_readers`: whether recommendations are in work. `rest`: seconds after one of a write."""

    def __init__(self, has_readers: Callable[[], bool], *, rest: float = 1.0) -> None:
        self._has_readers, self._rest = has_readers, rest
        self._taken = 0
        self._read_until = 0.0
        self._lines = Lines()
        self._mean_s = 0.0
        self._shares = Shares()

    @asynccontextmanager
    async def turn(self, num_events: int) -> AsyncIterator[None]:
        """Wraps a write. Raises Overloaded at once if too many wait, for a greedy caller if half as many do.

        A caller of whom no write waits is not refused.
        """
        owner = caller.get().key_id
        part = self._shares.part(owner)
        if owner in self._lines and self._lines.num_waiting >= part * MOST_WAITING:
            wait_s = self._lines.num_waiting * self._mean_s * (1 + self._rest)
            raise Overloaded("Too many events are waiting to be stored.", retry_after_s=max(1.0, wait_s))
        places = min(1 + num_events // EVENTS_PER_PLACE, PLACES)
        self._shares.began(owner)
        try:
            await self._wait(owner, places)
            began = time.monotonic()
            try:
                yield
            finally:
                self._finished(places, time.monotonic() - began)
        finally:
            self._shares.ended(owner)

    async def _wait(self, owner: str, places: int) -> None:
        waiting = self._lines.join(owner, places)
        self._call_next()
        try:
            await waiting.turn.wait()
        except asyncio.CancelledError:
            if self._lines.leave(waiting):
                self._call_next()  # others may have waited behind a large write that is gone
            else:
                self._free_places(places)
            raise

    def _call_next(self) -> None:
        """Lets those in whose places are free. A large write that is next is not passed by smaller ones."""
        while self._lines.num_waiting:
            first = self._lines.firsts()[0]
            if self._taken and self._taken + first.places > self._num_places():
                return
            self._taken += first.places
            self._lines.call(first)

    def is_reading(self) -> bool:
        """Whether recommendations are in work, or were a moment ago."""
        now = time.monotonic()
        if self._has_readers():
            self._read_until = now + READING_FOR_S
        return now < self._read_until

    def _num_places(self) -> int:
        return PLACES if self.is_reading() else PLACES_ALONE

    def _finished(self, places: int, seconds: float) -> None:
        self._mean_s = _FORGET * self._mean_s + (1 - _FORGET) * seconds
        if self._rest and self._has_readers():
            asyncio.get_running_loop().call_later(self._rest * seconds, self._free_places, places)
        else:
            self._free_places(places)

    def _free_places(self, places: int) -> None:
        self._taken -= places
        self._call_next()
