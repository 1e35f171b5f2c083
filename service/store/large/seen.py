"""What large users have seen, kept between their requests: `seen` of the store has 12 bytes for each event.

A request of a user of few events gets all of it in its one round trip. For a user of more, the process keeps what it
read last, one entry an item, and gets only what has come since. What it does not know yet comes in parts, each a short
command. The store names the states of `seen` (see `lua/scripts.py`): under the same name it only grows.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from service.store.events import SEEN
from service.store.keys import user_keys
from service.store.lua.scripts import MORE_SEEN
from service.store.requests import SEEN_BYTES, eval_command

MOST_BYTES = 64_000_000  # of all users together

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


class _Known(NamedTuple):
    """The first `size` bytes of the state `name`: `items` has one entry for each item, `newest` the last entries."""

    name: bytes
    size: int
    items: bytes = b""
    newest: bytes = b""


class SeenStore:
    """For one event loop. `run` is `MemoryStore.run`; its errors come through."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._num_bytes = 0

    def known(self, user_id: str) -> tuple[bytes, int]:
        """Name and size of the state that this process knows."""
        known = self._known.get(user_id)
        return (known.name, known.size) if known else (b"", 0)

    async def whole(self, user_id: str, part: Sequence[Any]) -> bytes:
        """All entries, some repeated; `part` is the answer of `seen_part` to what is `known`."""
        while len(part) > 1:
            more, name, start, size = part
            known = self._known.get(user_id) if start else _Known(name, 0)
            if known is None or (known.name, known.size) != (name, start):  # another request has read on
                known = self._known.get(user_id) or _Known(b"", 0)
            else:
                known = await _with(known, more)
                self._keep(user_id, known)
            if known.name == name and known.size >= size:
                return known.items + known.newest
            args = known.name, known.size, SEEN_BYTES
            (part,) = await self._run([eval_command(MORE_SEEN, user_keys(user_id), *args)])
        self._forget(user_id)
        found: bytes = part[0] or b""
        return found

    def _keep(self, user_id: str, known: _Known) -> None:
        self._forget(user_id)
        self._known[user_id] = known
        self._num_bytes += len(known.items) + len(known.newest)
        while self._num_bytes > MOST_BYTES and len(self._known) > 1:
            self._forget(next(iter(self._known)))

    def _forget(self, user_id: str) -> None:
        known = self._known.pop(user_id, None)
        if known is not None:
            self._num_bytes -= len(known.items) + len(known.newest)


async def _with(known: _Known, more: bytes) -> _Known:
    items, newest = known.items, known.newest + more
    if len(newest) >= SEEN_BYTES:
        items, newest = await asyncio.to_thread(_one_each, items + newest), b""
    return _Known(known.name, known.size + len(more), items, newest)


def _one_each(entries: bytes) -> bytes:
    """One entry for each item, with its latest time."""
    found = np.frombuffer(entries, dtype=SEEN)
    found = found[np.lexsort((found["until"], found["digest"]))]
    is_last = np.append(found["digest"][1:] != found["digest"][:-1], True)
    return found[is_last & (found["digest"] != 0)].tobytes()
