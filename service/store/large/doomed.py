"""Keys of very many elements that a deletion has renamed: nobody reads them any more, and they are emptied in steps.

Knows no client but `MemoryStore.run`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.store.lua import scripts
from service.store.requests import eval_command

LARGE, ELEMENTS_PER_STEP = 5000, 500  # keys of more elements are emptied in steps of so many

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


async def drain(run: Run, prefix: str) -> None:
    """`prefix`: that of the names that FORGET_USER gave to the keys. Safe to repeat."""
    keys, place = [f"{prefix}{number}" for number in range(1, scripts.NUM_DOOMED + 1)], b"0"
    while place is not None:
        (place,) = await run([eval_command(scripts.DRAIN, keys, ELEMENTS_PER_STEP, place)])
        await asyncio.sleep(0)  # other callers come first
