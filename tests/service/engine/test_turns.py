"""Turns of writes: bounded work, callers in rotation, rest while recommendations are in work, refusals with a time."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.engine.turns import EVENTS_PER_PLACE, MOST_WAITING, PLACES, PLACES_ALONE, READING_FOR_S, Turns
from service.errors import Overloaded
from service.identity.principal import Principal, caller


@contextmanager
def acting(key_id: str) -> Iterator[None]:
    token = caller.set(Principal(key_id))
    try:
        yield
    finally:
        caller.reset(token)


class Writes:
    """Writes that last until `end` is called for them."""

    def __init__(self, *, is_reading: bool = True) -> None:
        self.turns = Turns(lambda: is_reading, rest=0.0)
        self.started: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, name: str, key_id: str = "a", *, num_events: int = 1) -> None:
        async def write() -> None:
            async with self.turns.turn(num_events):
                self.started.append(name)
                await self._ends[name].wait()

        self._ends[name] = asyncio.Event()
        with acting(key_id):  # the task takes the context along
            self.tasks[name] = asyncio.create_task(write())
        await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)


async def test_a_bounded_number_of_writes_is_in_work_and_a_large_one_is_alone() -> None:
    writes = Writes()
    for number in range(PLACES + 3):
        await writes.begin(str(number))
    assert writes.started == [str(number) for number in range(PLACES)]
    await writes.begin("large", num_events=500)
    await writes.begin("last")
    for number in range(PLACES + 3):
        await writes.end(str(number))
    assert writes.started[-1] == "large", "a small write that came later has passed it"
    await writes.end("large")
    await writes.end("last")


async def test_without_recommendations_more_writes_are_in_work_and_the_store_writes_them_together() -> None:
    writes = Writes(is_reading=False)
    for number in range(8):
        await writes.begin(str(number), num_events=100)
    assert len(writes.started) == PLACES_ALONE // 5, "100 events take 5 places"
    for number in range(8):
        await writes.end(str(number))


async def test_there_are_few_places_for_a_moment_after_a_recommendation() -> None:
    is_reading = True
    turns, started = Turns(lambda: is_reading, rest=0.0), 0

    async def write() -> None:
        nonlocal started
        async with turns.turn(500):
            started += 1
            await asyncio.sleep(READING_FOR_S / 4)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(write())
        await asyncio.sleep(0)
        is_reading = False
        await asyncio.sleep(READING_FOR_S / 8)
        assert started == 1, "a recommendation that comes next would meet many writes"
        await asyncio.sleep(READING_FOR_S * 1.3)
        assert started > 4, "writes wait though nobody reads"


async def test_callers_take_turns() -> None:
    writes = Writes()
    await writes.begin("now", num_events=PLACES * EVENTS_PER_PLACE)
    for number in range(5):
        await writes.begin(f"loud {number}", "loud", num_events=500)
    await writes.begin("quiet", "quiet", num_events=500)
    await writes.end("now")
    await writes.end("loud 0")
    assert writes.started[-1] == "quiet", "the flood of one caller keeps another waiting"
    await writes.end("quiet")
    for number in range(1, 5):
        await writes.end(f"loud {number}")


async def test_who_waits_too_long_a_line_is_refused_and_told_when_to_come_back() -> None:
    writes = Writes()
    for number in range(PLACES + MOST_WAITING):
        await writes.begin(str(number))
    with pytest.raises(Overloaded) as caught, acting("a"):
        async with asyncio.timeout(5), writes.turns.turn(1):
            pass
    assert (caught.value.retry_after_s or 0) >= 1
    for task in writes.tasks.values():
        task.cancel()


async def test_a_flood_leaves_room_in_the_line_for_another_caller() -> None:
    writes = Writes()
    for number in range(PLACES + MOST_WAITING):
        await writes.begin(str(number), "loud")
    await writes.begin("quiet", "quiet")
    await writes.end("0")
    await writes.end("1")
    assert "quiet" in writes.started[-2:], "the flood of one caller keeps another waiting"
    for task in writes.tasks.values():
        task.cancel()


async def test_a_caller_who_leaves_the_line_frees_it() -> None:
    writes = Writes()
    await writes.begin("now", num_events=500)
    await writes.begin("left", num_events=500)
    await writes.begin("next", num_events=500)
    writes.tasks["left"].cancel()
    await asyncio.sleep(0)
    await writes.end("now")
    assert writes.started == ["now", "next"]
    await writes.end("next")
    await writes.begin("after", num_events=500)
    assert writes.started[-1] == "after"
    await writes.end("after")


async def test_a_caller_who_has_left_no_longer_counts_among_those_who_wait() -> None:
    """Also while nothing moves: the write before them is slow."""
    writes = Writes()
    await writes.begin("now", num_events=500)
    for number in range(MOST_WAITING):
        await writes.begin(f"left {number}")
    for name, task in writes.tasks.items():
        if name != "now":
            task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await writes.begin("next")
    assert not writes.tasks["next"].done(), "callers who have left still fill the line"
    await writes.end("now")
    assert writes.started == ["now", "next"]
    await writes.end("next")


async def test_small_writes_go_on_at_once_when_the_large_one_before_them_leaves() -> None:
    writes = Writes()
    await writes.begin("now")
    await writes.begin("large", num_events=500)
    await writes.begin("small")
    writes.tasks["large"].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert writes.started == ["now", "small"]
    for name in writes.started:
        await writes.end(name)


async def test_no_place_is_lost_when_a_caller_leaves_in_the_moment_of_its_turn() -> None:
    writes = Writes()
    await writes.begin("now", num_events=500)
    await writes.begin("left", num_events=500)
    writes._ends["now"].set()
    await asyncio.sleep(0)  # its end has called the next one, which has not run yet
    writes.tasks["left"].cancel()
    await asyncio.wait({writes.tasks["left"]}, timeout=5)
    await writes.begin("next", num_events=500)
    assert writes.started[-1] == "next" and "left" not in writes.started
    await writes.end("next")


@pytest.mark.parametrize("is_reading", [False, True])
async def test_writes_have_half_of_the_time_while_recommendations_are_in_work(is_reading: bool) -> None:
    turns = Turns(lambda: is_reading)
    began = time.monotonic()
    for _ in range(5):
        async with turns.turn(500):
            await asyncio.sleep(0.02)
    took_s = time.monotonic() - began
    assert took_s > 0.17 if is_reading else took_s < 0.17, f"{took_s:.2f} s"
