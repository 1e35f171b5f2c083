"""Who is let in: nobody who would be late, everybody when idle, and those who left count no more."""

import random
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.batching import Batcher, Job
from service.errors import DeadlineExceeded, Overloaded
from tests.service.engine.test_batching import Clock, job, make

BATCH_S, JOB_S = 0.010, 0.002  # what an engine of these tests takes for a batch, and for each job in it


def run_one(batcher: Batcher, clock: Clock) -> int:
    """Takes a batch, lets its time pass, answers it."""
    batch = batcher.next_batch(0)
    clock.now += (BATCH_S + JOB_S * len(batch)) if batch else 0.0
    for each in batch:
        each.future.set_result(clock.now)
    batcher.ran(batch)
    return len(batch)


def experienced(**options: int) -> tuple[Batcher, Clock]:
    """A batcher that has seen batches of all sizes run."""
    batcher, clock = make(**options)
    for size in (*range(1, batcher.max_batch + 1), 1):
        for _ in range(size):
            batcher.submit(job())
        run_one(batcher, clock)
    return batcher, clock


def admits(batcher: Batcher, timeout_s: float) -> bool:
    try:
        with batcher.admission(timeout_s):
            return True
    except Overloaded:
        return False


def test_an_idle_engine_refuses_nothing_however_slow_it_was() -> None:
    batcher, clock = make()
    batcher.submit(job())
    batcher.next_batch(0)
    clock.now += 100
    batcher.ran([job()])
    assert batcher.expected_s == 0.0 and admits(batcher, 0.001)


def test_a_request_that_would_be_late_is_refused_and_told_when_to_come_back() -> None:
    batcher, _ = experienced()
    for _ in range(16):
        batcher.submit(job())
    expected_s = 5 * BATCH_S + 17 * JOB_S
    assert batcher.expected_s == pytest.approx(expected_s, rel=0.05)
    assert admits(batcher, 2 * expected_s)
    with pytest.raises(Overloaded) as caught, batcher.admission(expected_s / 2):
        pass
    assert caught.value.retry_after_s == pytest.approx(expected_s, rel=0.05)


def test_what_runs_is_waited_for_and_what_is_left_of_it_shrinks() -> None:
    batcher, clock = experienced()
    batcher.submit(job())
    batcher.next_batch(0)
    at_first = batcher.expected_s
    clock.now += BATCH_S / 2
    assert batcher.expected_s == pytest.approx(at_first - BATCH_S / 2)


def test_background_work_takes_its_share() -> None:
    batcher, _ = experienced()
    for _ in range(4):
        batcher.submit(job("encode"))
    run_one(batcher, Clock())
    batcher.submit(job())
    before = batcher.expected_s
    for _ in range(40):
        batcher.submit(job())
        batcher.submit(job("encode"))
    assert batcher.expected_s > before


def test_those_admitted_count_before_their_jobs_are_there() -> None:
    batcher, _ = experienced()
    within = [batcher.admission(10) for _ in range(40)]
    for each in within:
        each.__enter__()
    assert batcher.depth == 0 and not admits(batcher, 10 * JOB_S)
    for each in within:
        each.__exit__(None, None, None)
    assert admits(batcher, 10 * JOB_S)


def test_a_caller_who_left_makes_room_at_once() -> None:
    batcher, _ = experienced()
    futures = [batcher.submit(job()) for _ in range(20)]
    for future in futures:
        assert future.cancel()
    assert batcher.depth == 0 and batcher.expected_s == 0.0
    assert batcher.next_batch(0) == []


@given(
    st.lists(st.tuples(st.floats(0, 0.02), st.sampled_from((0.03, 0.1, 0.5))), min_size=1, max_size=150),
    st.integers(1, 8),
)
def test_whoever_is_let_in_is_answered_in_time(arrivals: list[tuple[float, float]], max_batch: int) -> None:
    """Arrivals in any rhythm on an engine of steady pace: all admitted are answered, in order, by their deadline.

    Give or take the jobs that joined the same batch later: they were not there when the time was counted.
    """
    batcher, clock = experienced(max_batch=max_batch)
    admitted: list[tuple[Job, float]] = []  # with the time until which it has to be answered
    busy_until = clock.now
    batch: list[Job] = []
    arrives = clock.now
    for pause, timeout_s in arrivals:
        arrives += pause
        while busy_until <= arrives and (batch or batcher.depth):
            batch, busy_until = _turn(batcher, clock, batch, busy_until)
        clock.now = arrives
        if not admits(batcher, timeout_s):
            continue
        admitted.append((job(), arrives + timeout_s))
        batcher.submit(admitted[-1][0])
        if not batch:
            batch, busy_until = _turn(batcher, clock, batch, arrives)
    while batch or batcher.depth:
        batch, busy_until = _turn(batcher, clock, batch, busy_until)
    ends = [each.future.result(0) for each, _ in admitted]
    assert ends == sorted(ends), "answers overtook each other"
    for end, (each, deadline) in zip(ends, admitted, strict=True):
        in_time = max(deadline, each.submitted_at + BATCH_S + JOB_S)
        assert end <= in_time + max_batch * JOB_S + 1e-9, "an answer came too late"


def _turn(batcher: Batcher, clock: Clock, batch: list[Job], now: float) -> tuple[list[Job], float]:
    """At `now` the engine is done with `batch`: it answers, takes the next one, and is busy until the returned time."""
    clock.now = now
    for each in batch:
        each.future.set_result(now)
    if batch:
        batcher.ran(batch)
    following = batcher.next_batch(0)
    return following, now + BATCH_S + JOB_S * len(following) if following else now


def test_a_storm_of_cancellations_loses_no_future() -> None:
    """Senders, leavers and the engine at once: every future ends, and the queue is empty at the end."""
    batcher = Batcher(max_queue=50, max_batch=7, max_batch_tokens=99, wait_s=0)
    sent: list[Job] = []

    def engine() -> None:
        while not batcher.is_done:
            batch = batcher.next_batch(0.01)
            for each in batch:
                each.future.set_result(each)
            batcher.ran(batch)

    def caller(seed: int) -> None:
        dice = random.Random(seed)
        for number in range(300):
            deadline = time.monotonic() + dice.choice((0.0, 0.001, 10.0))
            mine = job(("recommend", "call", "encode")[number % 3], deadline=deadline)
            try:
                with batcher.admission(10):
                    future = batcher.submit(mine)
                    sent.append(mine)
                    if dice.random() < 0.5:
                        future.cancel()
            except Overloaded:
                time.sleep(0.0005)

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(4)]
    runner = threading.Thread(target=engine)
    for thread in (*threads, runner):
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    runner.join(10)
    assert not runner.is_alive() and batcher.depth == 0 and sent
    for each in sent:
        with suppress(CancelledError, DeadlineExceeded):
            assert each.future.result(0) is each
    assert batcher.expected_s == 0.0, "somebody is waited for who is not there"


def test_an_answer_that_came_too_late_counts_as_late_whenever_it_was_given_up() -> None:
    batcher, _ = experienced()
    batcher.submit(job())
    before = batcher._correction.factor
    for _ in range(20):
        with batcher.admission(10) as admission:
            admission.has_missed = True
    assert batcher._correction.factor > before == 1.0, "giving up early passes for being quick"
