"""The laws of the queue: nothing lost, nothing twice, budget and order kept, nobody starved."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.batching import BACKGROUND_SHARE, Batcher, Job
from service.errors import DeadlineExceeded, Draining, Overloaded

KINDS = ("recommend", "call", "encode")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(
    *, max_queue: int = 100, max_batch: int = 4, max_batch_tokens: int = 100, wait_s: float = 0.0
) -> tuple[Batcher, Clock]:
    clock = Clock()
    batcher = Batcher(
        max_queue=max_queue,
        max_batch=max_batch,
        max_batch_tokens=max_batch_tokens,
        wait_s=wait_s,
        clock=clock,
    )
    return batcher, clock


def job(kind: str = "recommend", cost: int = 1, deadline: float | None = None) -> Job:
    return Job(kind, None, cost, deadline)


def drain(batcher: Batcher) -> list[list[Job]]:
    batches = []
    while batcher.depth:
        batches.append(batcher.next_batch(0))
    return batches


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 150), st.booleans()), max_size=40))
def test_every_job_comes_out_once_in_order_and_within_budget(asked: list[tuple[str, int, bool]]) -> None:
    batcher, _ = make()
    jobs = [job(kind, cost) for kind, cost, _ in asked]
    for each in jobs:
        batcher.submit(each)
    cancelled = {each for each, (_, _, leaves) in zip(jobs, asked, strict=True) if leaves and each.future.cancel()}
    batches = drain(batcher)
    delivered = [each for batch in batches for each in batch]
    assert len(delivered) == len(set(delivered)), "a job was delivered twice"
    assert set(delivered) == set(jobs) - cancelled, "a job was lost, or a cancelled one delivered"
    for kind in KINDS:
        alive = [each for each in jobs if each.kind == kind and each not in cancelled]
        assert [each for each in delivered if each.kind == kind] == alive, f"{kind} jobs changed their order"
    for batch in batches:
        assert len({each.kind for each in batch}) <= 1
        assert len(batch) <= batcher.max_batch
        assert len(batch) == 1 or sum(each.cost_tokens for each in batch) <= batcher.max_batch_tokens


@given(st.lists(st.sampled_from(("recommend", "call")), min_size=1, max_size=30))
def test_the_oldest_job_leads(kinds: list[str]) -> None:
    batcher, _ = make()
    waiting = [job(kind) for kind in kinds]
    for each in waiting:
        batcher.submit(each)
    while waiting:
        batch = batcher.next_batch(0)
        assert batch[0] is waiting[0]
        waiting = [each for each in waiting if each not in batch]


def test_background_work_is_never_starved_and_never_in_the_way() -> None:
    batcher, _ = make(max_batch=1)
    kinds = []
    for _ in range(3 * BACKGROUND_SHARE):
        batcher.submit(job("recommend"))
        batcher.submit(job("encode"))
        kinds.append(batcher.next_batch(0)[0].kind)
    assert kinds == (["recommend"] * (BACKGROUND_SHARE - 1) + ["encode"]) * 3


def test_a_full_lane_refuses_at_once_and_the_other_stays_open() -> None:
    batcher, _ = make(max_queue=2)
    for _ in range(2):
        batcher.submit(job())
    with pytest.raises(Overloaded) as caught:
        batcher.submit(job())
    assert caught.value.retry_after_s
    batcher.submit(job("encode"))


def test_callers_who_left_make_room() -> None:
    batcher, clock = make(max_queue=2)
    gone, late = job(), job(deadline=clock.now + 1)
    batcher.submit(gone).cancel()
    batcher.submit(late)
    clock.now += 2
    batcher.submit(job())
    batcher.submit(job())
    assert isinstance(late.future.exception(0), DeadlineExceeded)


def test_an_expired_job_costs_nothing_and_is_told() -> None:
    batcher, clock = make()
    late, alive = job(deadline=clock.now + 1), job(deadline=clock.now + 9)
    batcher.submit(late)
    batcher.submit(alive)
    clock.now += 1
    assert batcher.next_batch(0) == [alive]
    assert isinstance(late.future.exception(0), DeadlineExceeded)


def paced(job_s: float, *, max_batch: int) -> tuple[Batcher, Clock]:
    """A batcher that knows what a job takes."""
    batcher, clock = make(max_batch=max_batch)
    for size in (1, 2):
        for _ in range(size):
            batcher.submit(job())
        batch = batcher.next_batch(0)
        clock.now += job_s * size
        batcher.ran(batch)
    return batcher, clock


def test_a_job_that_would_be_late_makes_room_for_one_in_time() -> None:
    batcher, clock = paced(1.0, max_batch=2)
    late, soon = batcher.submit(job(deadline=clock.now + 1.5)), batcher.submit(job(deadline=clock.now + 2.5))
    assert [each.future for each in batcher.next_batch(0)] == [soon]
    with pytest.raises(DeadlineExceeded):
        late.result(0)


def test_no_more_are_dropped_than_must_be() -> None:
    """Eight of nine fit in time: their batch is shorter without the ninth, and one who has time stays as well."""
    batcher, clock = paced(0.1, max_batch=16)
    hurried = [batcher.submit(job(deadline=clock.now + 0.95)) for _ in range(9)]
    patient = batcher.submit(job(deadline=clock.now + 10))
    taken = [each.future for each in batcher.next_batch(0)]
    assert taken == [*hurried[1:], patient]


def test_a_wrong_pace_is_seen_again() -> None:
    batcher, clock = make()
    batcher.submit(job())
    batch = batcher.next_batch(0)
    clock.now += 100
    batcher.ran(batch)
    batcher.submit(job("call"))
    asked = [batcher.submit(job(deadline=clock.now + 1)) for _ in range(3)]
    assert sum(future.done() for future in asked) == 0
    batches = drain(batcher)
    assert sum(len(batch) for batch in batches if batch[0].kind == "recommend") == 1, "nobody would ever run again"


def test_a_job_that_was_handed_out_can_no_longer_be_cancelled() -> None:
    batcher, _ = make()
    future = batcher.submit(job())
    batcher.next_batch(0)
    assert not future.cancel()


def test_close_lets_queued_jobs_finish() -> None:
    batcher, _ = make()
    queued = job()
    batcher.submit(queued)
    batcher.close()
    with pytest.raises(Draining):
        batcher.submit(job())
    assert batcher.depth == 1
    assert batcher.next_batch(None) == [queued]
    assert batcher.is_done and batcher.next_batch(None) == []


def test_close_can_drop_queued_jobs() -> None:
    batcher, _ = make()
    futures = [batcher.submit(job()), batcher.submit(job("encode")), batcher.submit(job())]
    futures[2].cancel()
    batcher.close(drop=True)
    assert all(isinstance(future.exception(0), Draining) for future in futures[:2])
    assert batcher.is_done


def test_a_job_waits_for_company_but_not_for_long() -> None:
    batcher = Batcher(max_queue=9, max_batch=2, max_batch_tokens=99, wait_s=0.05)
    batcher.submit(job())
    started = time.monotonic()
    threading.Timer(0.01, lambda: batcher.submit(job())).start()
    assert len(batcher.next_batch(1)) == 2
    assert time.monotonic() - started < 0.045, "a full batch left late"
    batcher.submit(job())
    assert len(batcher.next_batch(1)) == 1


def test_an_idle_thread_is_woken_and_an_empty_queue_times_out() -> None:
    batcher = Batcher(max_queue=9, max_batch=2, max_batch_tokens=99, wait_s=0)
    assert batcher.next_batch(0.001) == []
    threading.Timer(0.005, lambda: batcher.submit(job())).start()
    assert len(batcher.next_batch(5)) == 1


def test_many_threads_lose_nothing() -> None:
    batcher = Batcher(max_queue=10_000, max_batch=7, max_batch_tokens=99, wait_s=0.0001)
    delivered: list[Job] = []

    def take() -> None:
        while not batcher.is_done:
            delivered.extend(batcher.next_batch(0.01))

    def send() -> None:
        for number in range(200):
            batcher.submit(job(KINDS[number % len(KINDS)]))

    takers = [threading.Thread(target=take) for _ in range(2)]
    senders = [threading.Thread(target=send) for _ in range(4)]
    for thread in takers + senders:
        thread.start()
    for thread in senders:
        thread.join()
    batcher.close()
    for thread in takers:
        thread.join()
    assert len(delivered) == len(set(delivered)) == 800


def test_an_unknown_kind_is_a_bug_in_its_sender() -> None:
    with pytest.raises(ValueError, match="bug"):
        job("sing")
