"""What large users have seen, kept between their requests: `seen` of the store has 12 bytes for each event.

A request of a user of few events gets all of it in its one round trip. For a user with more events, the process keeps
what it read last, one entry an item, and gets only what has come since. What it does not know yet comes in parts, each
a short command. The store names the states of `seen` (see `lua/scripts.py`): under the same name it only grows.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from service.store.events import SEEN
from service.store.keys import user_keys
from service.store.lua.scripts import MORE_SEEN
from service.store.requests import SEEN_BYTES, eval_command

MOST_BYTES = 64_000_000  # of all users together

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


class SeenStore:
    """For one event loop. `run` is `MemoryStore.run`; its errors come through.

    `states`: name and size of what is known of each user.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.states: OrderedDict[str, tuple[bytes, int]] = OrderedDict()
        self._entries: dict[str, tuple[bytes, bytes]] = {}  # one for each item, and the newest
        self._num_bytes = 0

    async def whole(self, user_id: str, part: Sequence[Any] | None) -> bytes | None:
        """All entries, some repeated; `part` is the answer of `seen_part` to the state that is known.

        None: they are being made anew meanwhile, and the user is to be read again.
        """
        while part is not None and len(part) > 1:
            more, name, start, size = part
            if start == 0:
                await self._add(user_id, (name, len(more)), b"", more)
            elif self.states.get(user_id) == (name, start):  # else another request has read on
                items, newest = self._entries[user_id]
                await self._add(user_id, (name, start + len(more)), items, newest + more)
            known = self.states.get(user_id, (b"", 0))
            if known[0] == name and known[1] >= size:
                return b"".join(self._entries[user_id])
            (part,) = await self._run([eval_command(MORE_SEEN, user_keys(user_id), *known, SEEN_BYTES)])
        self.forget(user_id)  # few events, or none
        return None if part is None else part[0] or b""

    async def _add(self, user_id: str, state: tuple[bytes, int], items: bytes, newest: bytes) -> None:
        if len(newest) >= SEEN_BYTES:
            items, newest = await asyncio.to_thread(_one_each, items + newest), b""
        self.forget(user_id)
        self.states[user_id], self._entries[user_id] = state, (items, newest)
        self._num_bytes += len(items) + len(newest)
        while self._num_bytes > MOST_BYTES and len(self.states) > 1:
            self.forget(next(iter(self.states)))

    def forget(self, user_id: str) -> None:
        if self.states.pop(user_id, None) is not None:
            self._num_bytes -= sum(map(len, self._entries.pop(user_id)))


def _one_each(entries: bytes) -> bytes:
    """One entry for each item, with its latest time."""
    found = np.frombuffer(entries, dtype=SEEN)
    found = found[np.lexsort((found["until"], found["digest"]))]
    is_last = np.append(found["digest"][1:] != found["digest"][:-1], True)
    return found[is_last & (found["digest"] != 0)].tobytes()
