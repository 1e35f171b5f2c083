"""What large users have seen, kept between their requests: `seen` of the store has 12 bytes for each event.

A request of a user of few events gets all of it in its one round trip. For a user with more events, the process keeps
what it read last, one entry an item, and gets only what has come since. What it does not know yet comes in parts, each
a short command. The store names the states of `seen` (see `lua/scripts.py`): under the same name it only grows. But a
replica that took over may have grown in another way. So a reader sends the last bytes that it has read, too, and gets
everything anew where the store has others.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.store.events import SEEN
from service.store.keys import user_keys
from service.store.lua.scripts import MORE_SEEN
from service.store.requests import NOTHING_SEEN, SEEN_BYTES, SeenFrom, eval_command

MOST_BYTES = 64_000_000  # of all users together
KEPT_S = 600  # a user who was not read for so long is forgotten: another process may have deleted the user
COMPARED_BYTES = 100 * SEEN.itemsize

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


@dataclass(frozen=True, eq=False)
class Known:
    state: SeenFrom
    items: bytes  # one entry for each item
    newest: bytes  # entries that came after those
    until: float  # time of the loop

    @property
    def num_bytes(self) -> int:
        return len(self.items) + len(self.newest)


NOTHING = Known(NOTHING_SEEN, b"", b"", 0.0)


class SeenStore:
    """For one event loop. `run` is `MemoryStore.run`; its errors come through.

    `known`: users of whom something is kept. Who was read last comes last.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.known: OrderedDict[str, Known] = OrderedDict()
        self._num_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    async def whole(self, user_id: str, part: Sequence[Any] | None) -> bytes | None:
        """All entries, some repeated; `part` is the answer of `seen_part` to the state that is known.

        None: they are being made anew meanwhile, and the user is to be read again.
        """
        while part is not None and len(part) > 1:
            more, name, start, size = part
            before = self.known.get(user_id, NOTHING)
            if start == 0:
                await self._add(user_id, SeenFrom(name, 0, b""), b"", b"", more)
            elif before.state[:2] == (name, start):  # else another request has read on
                await self._add(user_id, before.state, before.items, before.newest, more)
            after = self.known.get(user_id, NOTHING)
            if after.state.name == name and after.state.size >= size:
                return after.items + after.newest
            (part,) = await self._run([eval_command(MORE_SEEN, user_keys(user_id), *after.state, SEEN_BYTES)])
        self.forget(user_id)  # few events, or none
        return None if part is None else part[0] or b""

    async def _add(self, user_id: str, state: SeenFrom, items: bytes, newest: bytes, more: bytes) -> None:
        end = (state.end + more)[-COMPARED_BYTES:]
        state, newest = SeenFrom(state.name, state.size + len(more), end), newest + more
        known = self._keep(user_id, state, items, newest)
        if len(newest) >= SEEN_BYTES:
            items = await asyncio.to_thread(_one_each, items + newest)
            if self.known.get(user_id) is known:  # else the user was deleted, or another request has read on
                self._keep(user_id, state, items, b"")

    def _keep(self, user_id: str, state: SeenFrom, items: bytes, newest: bytes) -> Known:
        self.forget(user_id)
        until = asyncio.get_running_loop().time() + KEPT_S
        known = self.known[user_id] = Known(state, items, newest, until)
        self._num_bytes += known.num_bytes
        while self._num_bytes > MOST_BYTES and len(self.known) > 1:
            self.forget(next(iter(self.known)))
        if self._timer is None:
            self._forget_unused()
        return known

    def forget(self, user_id: str) -> None:
        if (known := self.known.pop(user_id, None)) is not None:
            self._num_bytes -= known.num_bytes

    def _forget_unused(self) -> None:
        """Now, and again when the next user is due."""
        loop = asyncio.get_running_loop()
        while self.known:
            user_id, known = next(iter(self.known.items()))
            if known.until > loop.time():
                self._timer = loop.call_at(known.until, self._forget_unused)
                return
            self.forget(user_id)
        self._timer = None


def _one_each(entries: bytes) -> bytes:
    """One entry for each item, with its latest time."""
    found = np.frombuffer(entries, dtype=SEEN)
    found = found[np.lexsort((found["until"], found["digest"]))]
    is_last = np.append(found["digest"][1:] != found["digest"][:-1], True)
    return found[is_last & (found["digest"] != 0)].tobytes()
