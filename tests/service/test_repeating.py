"""Work that is repeated: at its times, not after the stop, and a stop without a start is no error."""

import asyncio

import pytest

from service.repeating import Repeated


@pytest.mark.parametrize("at_once", [False, True])
async def test_work_is_repeated_until_the_stop(at_once: bool) -> None:
    times: list[float] = []

    async def work() -> None:
        times.append(asyncio.get_running_loop().time())

    repeated = Repeated(work, every_s=0.05, name="test", at_once=at_once)
    await repeated.stop()
    began = asyncio.get_running_loop().time()
    repeated.start()
    async with asyncio.timeout(5):
        while len(times) < 3:
            await asyncio.sleep(0.01)
    await repeated.stop()
    assert (times[0] - began < 0.04) == at_once and times[1] - times[0] >= 0.04
    number = len(times)
    await asyncio.sleep(0.12)
    assert len(times) == number, "it goes on after the stop"
