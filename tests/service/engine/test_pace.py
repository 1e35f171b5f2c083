"""What the engine is expected to take, learned from what it took."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.pace import Correction, Pace


def learned(batches: list[tuple[int, float]]) -> Pace:
    pace = Pace()
    for num_jobs, seconds in batches:
        pace.observe(num_jobs, seconds)
    return pace


def test_nothing_is_expected_of_an_engine_that_has_not_run() -> None:
    assert Pace().seconds(10) == 0.0


def test_a_fixed_part_and_a_part_for_each_job_are_told_apart() -> None:
    pace = learned([(size, 0.010 + 0.002 * size) for size in (1, 16, 4, 8, 1, 16)])
    assert pace.seconds(1) == pytest.approx(0.012, rel=1e-6)
    assert pace.seconds(64, num_batches=4) == pytest.approx(4 * 0.010 + 64 * 0.002, rel=1e-6)


def test_batches_of_one_size_are_taken_as_proportional() -> None:
    pace = learned([(4, 0.02)] * 5)
    assert pace.seconds(4) == pytest.approx(0.02) and pace.seconds(8) == pytest.approx(0.04)


def test_the_past_is_forgotten() -> None:
    pace = learned([(1, 5.0), (4, 5.0), *[(1, 0.01), (4, 0.02)] * 40])
    assert pace.seconds(4) == pytest.approx(0.02, rel=0.05)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), min_size=1, max_size=40), st.integers(1, 500))
def test_expectations_are_never_negative_and_grow_with_the_queue(batches: list[tuple[int, float]], count: int) -> None:
    pace = learned(batches)
    assert pace.seconds(count) >= -1e-9
    assert pace.seconds(count + 1) >= pace.seconds(count) - 1e-9
    assert pace.seconds(count, 2) >= pace.seconds(count, 1) - 1e-9


def test_a_service_slower_than_its_engine_is_found_out_and_forgiven() -> None:
    correction = Correction()
    assert correction.factor == 1.0
    for _ in range(100):
        correction.observe(0.1, 0.15)
        correction.observe(0.0, 9.0)
    assert 1.4 < correction.factor <= 2.0
    for _ in range(1000):
        correction.observe(0.1, 0.02)
    assert correction.factor == 1.0


def test_a_standstill_keeps_nobody_out_for_long() -> None:
    correction = Correction()
    for _ in range(1000):
        correction.observe(0.1, math.inf)
    assert correction.factor == pytest.approx(2.0)
    for _ in range(400):
        correction.observe(0.1, 0.1)
    assert correction.factor == 1.0


@given(st.integers(0, 50), st.floats(0.05, 0.2))
def test_nearly_all_requests_take_no_longer_than_corrected(seed: int, spread: float) -> None:
    """About one in a hundred does."""
    ratios = np.random.default_rng(seed).lognormal(0.1, spread, 6000)
    correction, num_late = Correction(), 0
    for number, ratio in enumerate(ratios):
        num_late += number >= 2000 and ratio > correction.factor
        correction.observe(0.1, 0.1 * ratio)
    assert 0.004 < num_late / 4000 < 0.02, f"{num_late} of 4000 took longer than the factor says"
