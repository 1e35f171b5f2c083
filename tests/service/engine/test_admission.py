"""Admission: an idle model admits everything, a late request is refused at once, a slow store closes nothing."""

import time
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine import admission as module
from service.engine.admission import Admission, Pace
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
        admission.pace.observe(size, BATCH_S + JOB_S * size)
    return admission


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
    admission.pace.observe(1, 100.0)
    assert admission.expected_wait_s == 0.0 and admits(admission, 0.001)


def test_a_late_request_is_refused_and_told_when_to_come_back() -> None:
    admission = experienced()
    admission.num_at_model = 16
    expected_s = 5 * BATCH_S + 17 * JOB_S
    assert admission.expected_wait_s == pytest.approx(expected_s, rel=0.05)
    assert admits(admission, 2 * expected_s)
    with pytest.raises(Overloaded) as caught, admission.admitted(time.monotonic() + expected_s / 2):
        pass
    assert caught.value.retry_after_s == pytest.approx(expected_s, rel=0.05)


def test_requests_count_before_the_model_gets_them() -> None:
    admission = experienced()
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(admission.admitted(time.monotonic() + 10))
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
            stack.enter_context(admission.admitted(time.monotonic() + 10))
        assert not admits(admission, 20 * JOB_S)
        time.sleep(0.02)
        assert admission.expected_wait_s == 0.0 and admits(admission, 20 * JOB_S)


def test_the_queue_is_bounded() -> None:
    admission = experienced(max_queue=3)
    admission.num_at_model = 3
    with pytest.raises(Overloaded, match="3 requests are waiting"), admission.admitted(time.monotonic() + 1000):
        pass


@given(st.lists(st.floats(0.001, 0.5), max_size=60), st.integers(1, 8))
def test_who_is_admitted_is_answered_in_time_by_a_model_of_steady_pace(timeouts: list[float], max_batch: int) -> None:
    """All requests come at once; each admitted one is answered before its deadline."""
    admission = experienced(max_batch=max_batch)
    for timeout_s in timeouts:
        if admits(admission, timeout_s):
            admission.num_at_model += 1
            num_jobs = admission.num_at_model
            answered_s = -(-num_jobs // max_batch) * BATCH_S + num_jobs * JOB_S
            assert num_jobs == 1 or answered_s <= timeout_s, "an admitted request would be late"
