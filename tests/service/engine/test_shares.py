"""Fair shares: a key that floods the service does not take the places of another one; alone it has all of them."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager

import pytest

from service.engine.admission import Admission
from service.engine.shares import ASKING_S, Shares
from service.errors import Overloaded
from service.identity.principal import Principal, caller, lane, lane_of

JOB_S = 0.01


@contextmanager
def acting(key_id: str) -> Iterator[None]:
    token, place = caller.set(Principal(key_id)), lane.set(lane_of(key_id))
    try:
        yield
    finally:
        caller.reset(token)
        lane.reset(place)


def admit(admission: Admission, key_id: str, stack: ExitStack, *, deadline_s: float = 1.0) -> bool:
    with acting(key_id):
        try:
            stack.enter_context(admission.admitted(time.monotonic() + deadline_s))
            return True
        except Overloaded:
            return False


def flood(admission: Admission, key_id: str, stack: ExitStack, *, times: int = 200) -> int:
    return sum(admit(admission, key_id, stack) for _ in range(times))


def paced(*, max_queue: int = 1000) -> Admission:
    """Its event loop takes `JOB_S` for each answer: in a second, 60 requests may wait."""
    admission = Admission(max_queue=max_queue, max_batch=4)
    admission.server_pace.seconds = JOB_S
    return admission


def test_a_key_that_is_alone_leaves_a_place_for_one_that_asks_rarely() -> None:
    admission = paced()
    with ExitStack() as stack:
        assert 51 <= flood(admission, "a", stack) <= 54
        assert admit(admission, "b", stack), "the flood of one key takes all places"


def test_where_no_key_is_asked_for_all_places_are_taken() -> None:
    with ExitStack() as stack:
        assert 59 <= flood(paced(), "", stack) <= 61


def test_after_a_moment_a_flood_leaves_half_of_the_places_to_another_key() -> None:
    admission = paced()
    with ExitStack() as flooded, ExitStack() as stack:
        flood(admission, "a", flooded)
        admit(admission, "b", stack)
        flooded.close()
        assert 29 <= flood(admission, "a", flooded) <= 31
        assert flood(admission, "b", stack, times=20) == 20, "the flood of one key takes the places of another"


def test_several_floods_together_leave_half_of_the_places_to_a_quiet_key() -> None:
    admission = paced()
    with ExitStack() as flooded, ExitStack() as stack:
        admit(admission, "quiet", stack)
        stack.close()
        taken = [admit(admission, key_id, flooded) for _ in range(100) for key_id in ("a", "b", "c")]
        assert sum(taken) <= 40
        assert flood(admission, "quiet", stack, times=5) == 5


def test_the_queue_is_shared_too() -> None:
    admission = Admission(max_queue=10, max_batch=4)
    with ExitStack() as stack:
        admit(admission, "b", ExitStack())
        assert flood(admission, "a", stack) == 5
        assert flood(admission, "b", stack, times=3) == 3


def test_equal_callers_are_not_slowed() -> None:
    admission = paced()
    with ExitStack() as stack:
        taken = [admit(admission, key_id, stack) for _ in range(20) for key_id in ("a", "b")]
    assert sum(taken) >= 38


def test_a_caller_who_has_left_is_forgotten() -> None:
    now = [0.0]
    shares = Shares(lambda: now[0])
    for number in range(1000):
        shares.part(str(number))
    now[0] += ASKING_S + 0.1
    assert shares.part("a") == 1.0 and len(shares.asked) == 1
    shares.began("a")
    shares.ended("a")
    assert not shares._in_work


def test_what_one_key_has_refused_is_not_refused_to_another_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    admission = paced()
    admission.server_pace.is_busy = True
    other = next(name for name in map(str, range(100)) if lane_of(name) != lane_of("a"))
    with ExitStack() as stack:
        for _ in range(500):
            if not admission.sheds(lane_of("a")):
                admit(admission, "a", stack)
        assert sum(admission.sheds(lane_of("a")) for _ in range(100)) > 50
        assert sum(admission.sheds(lane_of(other)) for _ in range(100)) == 0


async def test_lists_of_one_key_do_not_refuse_those_of_another() -> None:
    admission, lists = Admission(max_queue=8, max_batch=4), AsyncExitStack()
    with acting("quiet"):
        async with admission.list_turn():
            pass

    async def ask(key_id: str) -> bool:
        with acting(key_id):
            try:
                async with asyncio.timeout(0.05):
                    await lists.enter_async_context(admission.list_turn())
            except Overloaded:
                return False
            except TimeoutError:
                pass
            return True

    async with lists:
        asked = await asyncio.gather(*(ask("loud") for _ in range(20)))
        assert 4 <= sum(asked) <= 5, "a flood of lists is not bounded"
        assert await ask("quiet"), "a flood of lists takes all places"
