"""Admission: an idle model admits everything, a late request is refused at once, a slow store closes nothing."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine import admission as module
from service.engine.admission import Admission, Pace, ServerPace, Throttle
from service.errors import Overloaded

BATCH_S, JOB_S = 0.010, 0.002  # seconds of a batch, and of each job in it


def learned(batches: list[tuple[int, float]]) -> Pace:
    pace = Pace()
    for num_jobs, seconds in batches:
        pace.observe(num_jobs, seconds)
    return pace


def experienced(*, max_queue: int = 1000, max_batch: int = 4) -> Admission:
    """An admission that has seen batches of all sizes."""
    admission = Admission(max_queue=max_queue, max_batch=max_batch)
    for size in (*range(1, max_batch + 1), 1):
        admission.model_pace.observe(size, BATCH_S + JOB_S * size)
    return admission


@contextmanager
def at_model(admission: Admission, num_jobs: int) -> Iterator[None]:
    """So many admitted requests wait for the model."""
    with ExitStack() as stack:
        for _ in range(num_jobs):
            stack.enter_context(admission.admitted(time.monotonic() + 1e6))
        admission.num_at_model += num_jobs
        yield
        admission.num_at_model -= num_jobs


def recall(admission: Admission, stack: ExitStack) -> None:
    """An admitted request waits for the store until the stack closes."""
    stack.enter_context(admission.admitted(time.monotonic() + 10))


def admits(admission: Admission, timeout_s: float) -> bool:
    try:
        with admission.admitted(time.monotonic() + timeout_s):
            return True
    except Overloaded:
        return False


def test_nothing_is_expected_before_the_first_batch() -> None:
    assert Pace().seconds(10) == 0.0


def test_the_fixed_time_and_the_time_of_a_job_are_told_apart() -> None:
    pace = learned([(size, 0.010 + 0.002 * size) for size in (1, 16, 4, 8, 1, 16)])
    assert pace.seconds(1) == pytest.approx(0.012, rel=1e-6)
    assert pace.seconds(64, num_batches=4) == pytest.approx(4 * 0.010 + 64 * 0.002, rel=1e-6)


def test_batches_of_one_size_are_taken_as_proportional() -> None:
    pace = learned([(4, 0.02)] * 5)
    assert pace.seconds(4) == pytest.approx(0.02) and pace.seconds(8) == pytest.approx(0.04)


def test_old_batches_are_forgotten() -> None:
    pace = learned([(1, 5.0), (4, 5.0), *[(1, 0.01), (4, 0.02)] * 40])
    assert pace.seconds(4) == pytest.approx(0.02, rel=0.05)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), min_size=1, max_size=40), st.integers(1, 500))
def test_an_estimate_is_never_negative_and_grows_with_the_queue(batches: list[tuple[int, float]], count: int) -> None:
    pace = learned(batches)
    assert pace.seconds(count) >= -1e-9
    assert pace.seconds(count + 1) >= pace.seconds(count) - 1e-9
    assert pace.seconds(count, 2) >= pace.seconds(count, 1) - 1e-9


def test_an_idle_model_admits_everything_however_slow_it_was() -> None:
    admission = Admission(max_queue=9, max_batch=4)
    admission.model_pace.observe(1, 100.0)
    admission.server_pace.seconds = 100.0
    assert admission.expected_wait_s == 0.0 and admits(admission, 0.001)


def test_a_late_request_is_refused_and_told_when_to_come_back() -> None:
    admission = experienced()
    expected_s = 5 * BATCH_S + 17 * JOB_S
    with at_model(admission, 16):
        assert admission.expected_wait_s == pytest.approx(expected_s, rel=0.05)
        assert admits(admission, 2 * expected_s)
        with pytest.raises(Overloaded) as caught, admission.admitted(time.monotonic() + expected_s / 2):
            pass
    assert caught.value.retry_after_s == pytest.approx(expected_s, rel=0.05)


def test_requests_count_before_the_model_gets_them() -> None:
    admission = experienced()
    with ExitStack() as stack:
        for _ in range(40):
            recall(admission, stack)
        assert not admits(admission, 20 * JOB_S)
    assert admission.expected_wait_s == 0.0 and admits(admission, 10 * JOB_S)


def test_a_request_that_fails_counts_no_longer() -> None:
    admission = experienced()
    with pytest.raises(ZeroDivisionError), admission.admitted(time.monotonic() + 10):
        1 / 0  # noqa: B018
    assert admission.expected_wait_s == 0.0


def test_a_slow_store_does_not_close_an_idle_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that the store keeps for long are not counted: the model has nothing to do."""
    admission = experienced(max_queue=100)
    monkeypatch.setattr(module, "_SLOW_STORE_S", 0.01)
    with ExitStack() as stack:
        for _ in range(90):
            recall(admission, stack)
        assert not admits(admission, 20 * JOB_S)
        time.sleep(0.02)
        assert admits(admission, 20 * JOB_S)


def test_a_busy_server_refuses_even_if_its_model_is_quick() -> None:
    admission = experienced()
    admission.server_pace.seconds = 0.1
    with ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(admission.admitted(time.monotonic() + 10))
        assert admits(admission, 2.0) and not admits(admission, 1.0)


async def test_the_pace_of_the_server_is_learned_while_its_loop_is_busy() -> None:
    num_admitted = [100]
    pace = ServerPace(lambda: num_admitted[0])
    pace.start()
    try:
        await asyncio.sleep(0.15)
        assert pace.seconds == 0.0, "an idle loop says nothing about its pace"
        for _ in range(20):
            await asyncio.sleep(0)
            time.sleep(0.02)  # the work of two answers
            pace.count_answer()
            pace.count_answer()
        learned = pace.seconds
        assert 0.005 < learned < 0.02
        num_admitted[0] = 1
        await asyncio.sleep(0.5)
        assert pace.seconds < learned, "a standstill would be remembered for ever"
    finally:
        pace.stop()


def test_short_deadlines_of_one_caller_do_not_close_the_service_for_others() -> None:
    """While the event loop has time, each request is judged by its own deadline."""
    admission = experienced()
    with at_model(admission, 1):
        for _ in range(500):
            assert not admission.sheds() and not admits(admission, 0.001)
        assert sum(admission.sheds() for _ in range(500)) == 0


def test_an_idle_service_reads_every_request_also_right_after_a_flood() -> None:
    admission = experienced()
    for _ in range(1000):
        if not admission.throttles[0].refuses():
            admission.throttles[0].count_refused()
    assert sum(admission.sheds() for _ in range(100)) == 0
    with at_model(admission, 1):
        assert sum(admission.sheds() for _ in range(100)) > 90


def test_more_refusals_than_requests_do_not_close_the_throttle() -> None:
    throttle = Throttle(random.Random(1))
    for _ in range(50):
        throttle.count_refused()
    assert sum(throttle.refuses() for _ in range(100)) == 0


def test_a_throttle_refuses_nothing_while_requests_are_admitted() -> None:
    throttle = Throttle(random.Random(1))
    assert not any(throttle.refuses() for _ in range(1000))


def test_a_throttle_refuses_most_of_a_flood_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in eight requests can be admitted; the others that are read are refused by the admission."""
    throttle, now = Throttle(random.Random(1)), [0.0]
    monkeypatch.setattr("service.engine.admission.time.monotonic", lambda: now[0])
    num_read = num_admitted = 0
    for number in range(40_000):
        now[0] = number / 10_000
        if not throttle.refuses():
            num_read += 1
            if num_admitted < number / 8:
                num_admitted += 1
            else:
                throttle.count_refused()
    assert num_admitted > 0.9 * 40_000 / 8, "the throttle leaves the service idle"
    assert num_read < 0.3 * 40_000, "the throttle lets a flood pass"
    now[0] += 5.0
    refused = 0
    for _ in range(1000):
        now[0] += 0.01
        refused += throttle.refuses()
    assert refused < 20, "the throttle goes on after the flood"


def test_the_queue_is_bounded() -> None:
    admission = experienced(max_queue=3)
    with at_model(admission, 3):
        assert not admits(admission, 1000)
    assert admits(admission, 1000)


@given(st.lists(st.floats(0.001, 0.5), max_size=60), st.integers(1, 8))
def test_who_is_admitted_is_answered_in_time_by_a_model_of_steady_pace(timeouts: list[float], max_batch: int) -> None:
    """All requests come at once; each admitted one is answered before its deadline."""
    admission = experienced(max_batch=max_batch)
    with ExitStack() as stack:
        for timeout_s in timeouts:
            if admits(admission, timeout_s):
                stack.enter_context(at_model(admission, 1))
                num_jobs = admission.num_at_model
                answered_s = -(-num_jobs // max_batch) * BATCH_S + num_jobs * JOB_S
                assert num_jobs == 1 or answered_s <= timeout_s, "an admitted request would be late"
