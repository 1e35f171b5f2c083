"""The batcher loses no job, returns none twice, keeps budget and order, and starves no lane."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.batching import BACKGROUND_SHARE, SMALL_SHARE, Batcher, Job

KINDS = ("recommend", "put", "encode")
NEVER = float("inf")
Jobs = list[Job[None]]


def make(
    *, max_batch: int = 4, max_batch_tokens: int = 100, expected_s: Callable[[int], float] = lambda num_jobs: 0.0
) -> Batcher[None]:
    return Batcher(max_batch=max_batch, max_batch_tokens=max_batch_tokens, expected_s=expected_s)


def job(number: int, kind: str = "recommend", cost: int = 1, deadline: float = NEVER) -> Job[None]:
    return Job(number, kind, None, cost, deadline)


def filled(jobs: Jobs) -> Batcher[None]:
    batcher = make()
    for each in jobs:
        batcher.add(each)
    return batcher


def all_batches(batcher: Batcher[None]) -> list[Jobs]:
    batches = []
    while len(batcher):
        batches.append(batcher.next_batch(0.0)[0])
    return batches


def ids(jobs: Jobs) -> list[int]:
    return [each.id for each in jobs]


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 150), st.booleans()), max_size=40))
def test_every_job_is_returned_once_in_order_and_within_the_budget(asked: list[tuple[str, int, bool]]) -> None:
    jobs = [job(number, kind, cost) for number, (kind, cost, _) in enumerate(asked)]
    batcher = filled(jobs)
    cancelled = {number for number, (_, _, is_cancelled) in enumerate(asked) if is_cancelled}
    for number in cancelled:
        batcher.cancel(number)
    batches = all_batches(batcher)
    returned = [each for batch in batches for each in batch]
    assert len(returned) == len(set(returned)), "a job was returned twice"
    assert set(ids(returned)) == set(range(len(jobs))) - cancelled, "a job was lost, or a cancelled one returned"
    for kind in KINDS:
        alive = [each for each in jobs if each.kind == kind and each.id not in cancelled]
        assert [each for each in returned if each.kind == kind] == alive, f"{kind} jobs changed their order"
    for batch in batches:
        assert len({each.kind for each in batch}) <= 1, "a batch mixes kinds"
        assert len(batch) <= batcher.max_batch
        assert len(batch) == 1 or sum(each.cost_tokens for each in batch) <= batcher.max_batch_tokens


@given(st.lists(st.sampled_from(("recommend", "put")), min_size=1, max_size=30))
def test_the_oldest_job_leads(kinds: list[str]) -> None:
    waiting = [job(number, kind) for number, kind in enumerate(kinds)]
    batcher = filled(waiting)
    while waiting:
        batch, _ = batcher.next_batch(0.0)
        assert batch[0] is waiting[0]
        waiting = [each for each in waiting if each not in batch]


def test_background_jobs_are_neither_starved_nor_in_the_way() -> None:
    batcher = make(max_batch=1)
    kinds = []
    for number in range(3 * BACKGROUND_SHARE):
        batcher.add(job(2 * number))
        batcher.add(job(2 * number + 1, "encode"))
        kinds.append(batcher.next_batch(0.0)[0][0].kind)
    assert kinds == (["recommend"] * (BACKGROUND_SHARE - 1) + ["encode"]) * 3


def test_a_job_above_the_budget_runs_alone() -> None:
    batcher = filled([job(0, cost=500), job(1, cost=1)])
    assert [ids(batch) for batch in all_batches(batcher)] == [[0], [1]]


def test_an_empty_batcher_returns_nothing() -> None:
    assert make().next_batch(0.0) == ([], [])


def test_an_expired_job_is_dropped_and_reported() -> None:
    batcher = filled([job(0, deadline=1.0), job(1, deadline=9.0)])
    taken, late = batcher.next_batch(2.0)
    assert (ids(taken), ids(late)) == ([1], [0])


def test_all_jobs_may_be_expired() -> None:
    batcher = filled([job(number, deadline=1.0) for number in range(3)])
    taken, late = batcher.next_batch(2.0)
    assert (ids(taken), ids(late), len(batcher)) == ([], [0, 1, 2], 0)


def test_a_job_that_would_be_late_makes_room_for_one_in_time() -> None:
    batcher = make(max_batch=2, expected_s=float)
    for each in (job(0, deadline=1.5), job(1, deadline=2.5)):
        batcher.add(each)
    taken, late = batcher.next_batch(0.0)
    assert (ids(taken), ids(late)) == ([1], [0]), "a batch of two takes 2 s"


def test_no_more_jobs_are_dropped_than_needed() -> None:
    """Eight of nine urgent jobs are in time when the ninth is dropped, and one that is not urgent stays."""
    batcher = make(max_batch=16, expected_s=lambda num_jobs: 0.1 * num_jobs)
    for each in [job(number, deadline=0.95) for number in range(9)] + [job(9, deadline=10.0)]:
        batcher.add(each)
    taken, late = batcher.next_batch(0.0)
    assert (len(taken), len(late)) == (9, 1) and 9 in ids(taken)


def test_one_job_runs_however_long_a_batch_is_expected_to_take() -> None:
    """Otherwise a wrong estimate would never be corrected."""
    batcher = make(expected_s=lambda num_jobs: 100.0)
    for number in range(3):
        batcher.add(job(number, deadline=1.0))
    taken, late = batcher.next_batch(0.0)
    assert (len(taken), len(late)) == (1, 2)


@given(st.lists(st.floats(0.0, 2.0), max_size=30), st.integers(1, 8), st.floats(0.0, 1.0))
def test_a_job_is_run_or_dropped_and_dropped_only_if_late(
    deadlines: list[float], max_batch: int, seconds: float
) -> None:
    batcher = make(max_batch=max_batch, expected_s=lambda num_jobs: seconds * num_jobs)
    for number, deadline in enumerate(deadlines):
        batcher.add(job(number, deadline=deadline))
    now, seen = 0.5, []
    while len(batcher):
        taken, late = batcher.next_batch(now)
        seen += ids(taken) + ids(late)
        assert all(each.deadline <= now + seconds * max_batch for each in late), "a job in time was dropped"
        assert all(each.deadline > now for each in taken), "an expired job was run"
        now += seconds * len(taken)
    assert sorted(seen) == list(range(len(deadlines)))


def test_cancelling_an_unknown_job_changes_nothing() -> None:
    batcher = filled([job(0)])
    batcher.cancel(7)
    assert len(batcher) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_without_a_deadline_is_never_late(kind: str) -> None:
    batcher = make(expected_s=lambda num_jobs: math.inf)
    batcher.add(job(0, kind))
    assert ids(batcher.next_batch(1e9)[0]) == [0]


@given(st.lists(st.integers(0, 3), max_size=40))
def test_callers_take_turns_and_keep_their_own_order(callers: list[int]) -> None:
    """Also where a batch has one job, as with a large model."""
    batcher = make(max_batch=1)
    for number, caller in enumerate(callers):
        batcher.add(Job(number, "recommend", None, 1, caller=caller))
    ran = [batch[0] for batch in all_batches(batcher)]
    assert sorted(each.id for each in ran) == list(range(len(callers)))
    for caller in set(callers):
        own = [each.id for each in ran if each.caller == caller]
        assert own == sorted(own), "a caller's jobs change their order"
    first_turns = [each.caller for each in ran[: len(set(callers))]]
    assert sorted(first_turns) == sorted(set(callers)), "a caller has a second turn before another has its first"


def test_a_job_of_a_quiet_caller_is_in_the_next_batch_and_this_one_is_small() -> None:
    """Also if the quiet caller has not asked for long: the jobs of the flood wait already."""
    batcher = make(max_batch=16)
    for number in range(100):
        batcher.add(Job(number, "recommend", None, 1, caller=7))
    assert len(batcher.next_batch(0.0)[0]) == 16, "a caller who is alone has small batches"
    batcher.add(Job(100, "recommend", None, 1, caller=3))
    assert [each.id for each in batcher.next_batch(0.0)[0]] == [100, 16, 17]
    assert len(batcher.next_batch(0.0)[0]) == 16
    batcher.add(Job(101, "similar", None, 1, caller=3))
    assert [each.id for each in batcher.next_batch(0.0)[0]] == [101]


def test_callers_with_as_many_jobs_share_a_full_batch() -> None:
    batcher = make(max_batch=16)
    for number in range(60):
        batcher.add(Job(number, "recommend", None, 1, caller=number % 2))
    assert len(batcher.next_batch(0.0)[0]) == 16


def test_background_batches_are_small_while_callers_come() -> None:
    batcher = make(max_batch=8)
    for number in range(40):
        batcher.add(job(number, "encode"))
    assert len(batcher.next_batch(0.0)[0]) == 8
    batcher.add(job(100))
    assert [each.id for each in batcher.next_batch(1.0)[0]] == [100]
    assert len(batcher.next_batch(1.5)[0]) == 8 // SMALL_SHARE
    assert len(batcher.next_batch(2.5)[0]) == 8
