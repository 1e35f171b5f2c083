"""The line of recommendations: a greedy caller keeps few requests in work while others ask, and no place is lost."""

import asyncio
import random
from collections import Counter

from service.engine.line import Line
from service.engine.shares import Shares
from tests.service.engine.test_shares import acting

BATCH = 2
FEW = 2 * BATCH


class Work:
    """Requests that are in work until one of them is ended."""

    def __init__(self, rest: float = 0.0) -> None:
        self.shares = Shares()
        self.line = Line(self.shares, lambda: BATCH, rest=rest)
        self.in_work: dict[int, str] = {}
        self.most: Counter[str] = Counter()  # of each caller, in work at once
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._ends: dict[int, asyncio.Event] = {}

    async def begin(self, key_id: str, times: int = 1) -> None:
        for _ in range(times):
            number = len(self.tasks)
            self._ends[number] = asyncio.Event()
            with acting(key_id):  # the task takes the context along
                self.tasks[number] = asyncio.create_task(self._request(number, key_id))
        await asyncio.sleep(0)

    async def _request(self, number: int, key_id: str) -> None:
        self.shares.part(key_id)
        async with self.line.turn():
            self.in_work[number] = key_id
            self.most[key_id] = max(self.most[key_id], self.count(key_id))
            try:
                await self._ends[number].wait()
            finally:
                del self.in_work[number]

    def count(self, key_id: str) -> int:
        return list(self.in_work.values()).count(key_id)

    async def end(self, number: int) -> None:
        self._ends[number].set()
        await self.tasks[number]
        await asyncio.sleep(0)

    async def end_all(self) -> None:
        while self.in_work:
            await self.end(next(iter(self.in_work)))

    async def end_all_of(self, count: int) -> None:
        for number in list(self.in_work)[:count]:
            await self.end(number)

    async def cancel(self, number: int) -> None:
        self.tasks[number].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_caller_who_is_alone_waits_for_nobody() -> None:
    work = Work()
    await work.begin("loud", 50)
    assert work.count("loud") == 50 and not work.line.num_waiting
    await work.end_all()


async def test_while_others_ask_a_flood_has_few_requests_in_work() -> None:
    work = Work()
    await work.begin("quiet")
    await work.end(0)
    await work.begin("loud", 50)
    assert work.count("loud") == FEW, "the flood does not wait for its turn"
    for _ in range(20):
        await work.end(next(iter(work.in_work)))
        assert work.count("loud") == FEW, "a place stays empty, or too much is in work"
    await work.end_all()
    assert len(work.tasks) == 51 and all(task.done() for task in work.tasks.values()), "a request never had its turn"


async def test_a_quiet_caller_passes_the_line() -> None:
    work = Work()
    await work.begin("quiet")
    await work.begin("loud", 50)
    await work.begin("quiet")
    assert work.count("quiet") == 2, "a quiet caller waits behind a flood"
    await work.end_all()


async def test_equal_callers_do_not_wait_for_each_other() -> None:
    work = Work()
    for _ in range(20):
        for key_id in ("a", "b", "c"):
            await work.begin(key_id)
    assert len(work.in_work) == 60 and not work.line.num_waiting
    await work.end_all()


async def test_two_floods_have_their_turns_in_rotation() -> None:
    work = Work()
    await work.begin("quiet")
    await work.end(0)
    for key_id in ("a", "b"):
        await work.begin(key_id, 30)
    served: Counter[str] = Counter()
    for _ in range(20):
        number = next(iter(work.in_work))
        served[work.in_work[number]] += 1
        await work.end(number)
    assert abs(served["a"] - served["b"]) <= FEW + 1, served
    await work.end_all()


async def test_callers_who_leave_lose_no_place() -> None:
    """Whoever leaves, and whenever: in the line, in work, or in the moment of its turn."""
    dice = random.Random(1)
    for _ in range(20):
        work = Work()
        await work.begin("quiet")
        await work.begin("loud", 12)
        while waiting := [number for number, task in work.tasks.items() if not task.done()]:
            number = dice.choice(waiting)
            if number in work.in_work and dice.random() < 0.5:
                work._ends[number].set()  # those in the line may be called in this round of the loop
                await asyncio.sleep(0)
            await work.cancel(dice.choice(waiting))
        assert not work.line.num_waiting
        await work.begin("loud", FEW + 1)
        assert work.count("loud") == FEW, "a place was lost, or counted twice"
        await work.end_all()


async def test_a_place_of_a_flood_rests_as_long_as_the_work_took_and_others_do_not_wait_for_it() -> None:
    work = Work(rest=1.0)
    work.shares.part("quiet")
    await work.begin("loud", FEW + 2)
    for _ in range(FEW):  # these have not waited
        await work.end(next(iter(work.in_work)))
    assert work.count("loud") == 2
    await work.begin("loud", FEW)
    await asyncio.sleep(0.2)
    await work.end_all_of(2)
    assert work.count("loud") == FEW - 2, "the places do not rest"
    await work.begin("quiet")
    assert work.count("quiet") == 1
    async with asyncio.timeout(10):
        while len(work.in_work) < FEW:
            await asyncio.sleep(0.01)
    await work.end_all()
