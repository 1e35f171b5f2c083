"""A task that loses a cancellation is cancelled again."""

import asyncio

import pytest

from service import ending
from service.ending import cancel_and_wait


async def test_a_lost_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_CANCEL_AGAIN_S", 0.01)
    lost = 0

    async def loses_two() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost > 2:
                    raise

    tasks = [asyncio.create_task(loses_two()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await cancel_and_wait(*tasks)
    assert lost == 3 and all(task.cancelled() for task in tasks)


async def test_nothing_to_cancel_is_no_error() -> None:
    await cancel_and_wait()
