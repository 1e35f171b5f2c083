"""Work beside requests. Repeated: at its times, not after the stop, whatever error it raises; its cause is logged once.

Deferred: once for all who asked, and what was asked for is done before the stop returns.
"""

import asyncio

import pytest
import structlog
from structlog.testing import capture_logs

from service.background import Deferred, Repeated
from service.errors import StoreUnavailable
from service.logs import RepeatedWarnings


@pytest.mark.parametrize("at_once", [False, True])
async def test_work_is_repeated_until_the_stop(at_once: bool) -> None:
    times: list[float] = []

    async def work() -> None:
        times.append(asyncio.get_running_loop().time())

    repeated = Repeated("test", work, every_s=0.05, at_once=at_once)
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


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (StoreUnavailable("away"), ("warning", "store or model unavailable: repeated work waits")),
        (ValueError("a fault"), ("error", "repeated work failed, trying again")),
    ],
)
async def test_an_error_does_not_end_the_repetition_and_is_logged_once(
    error: Exception, line: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    async def work() -> None:
        nonlocal failures
        failures += 1
        raise error

    monkeypatch.setattr("service.background.repeated", RepeatedWarnings(structlog.get_logger()))
    repeated = Repeated("test", work, every_s=0.01, at_once=True)
    with capture_logs() as lines:
        repeated.start()
        async with asyncio.timeout(5):
            while failures < 3:
                await asyncio.sleep(0.01)
        await repeated.stop()
    told = [(each["log_level"], each["event"], each["work"], each["error"]) for each in lines]
    assert told == [(*line, "test", type(error).__name__)]


async def test_it_can_be_started_again() -> None:
    done = 0

    async def work() -> None:
        nonlocal done
        done += 1

    repeated = Repeated("test", work, every_s=60, at_once=True)
    for number in (1, 2):
        repeated.start()
        async with asyncio.timeout(5):
            while done < number:
                await asyncio.sleep(0.01)
        await repeated.stop()
        assert not repeated.is_running


async def test_deferred_work_is_done_once_for_all_who_asked_and_before_the_stop_returns() -> None:
    done = 0

    async def work() -> None:
        nonlocal done
        done += 1

    deferred = Deferred("test", work, after_s=0.02)
    await deferred.stop()
    deferred = Deferred("test", work, after_s=0.02)
    for _ in range(3):
        deferred.ask()
    assert done == 0, "the caller waits for the work"
    async with asyncio.timeout(5):
        while not done:
            await asyncio.sleep(0.01)
    deferred.ask()
    await deferred.stop()
    assert done == 2


async def test_what_is_asked_for_while_the_work_runs_is_done_after_it() -> None:
    waiting, written = {1}, list[list[int]]()

    async def work() -> None:
        taken = sorted(waiting)
        waiting.clear()
        if not written:
            waiting.add(2)
            deferred.ask()
        await asyncio.sleep(0)
        written.append(taken)

    deferred = Deferred("test", work, after_s=0.01)
    deferred.ask()
    async with asyncio.timeout(5):
        while len(written) < 2:
            await asyncio.sleep(0.01)
    assert written == [[1], [2]]
