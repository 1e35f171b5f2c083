"""A row is timed one target at a time, in turns with the plain prompt on the same target."""

from pathlib import Path

import numpy as np
import pytest

from model_store.bundle import Bundle
from tests.training.small import shop
from training.data.splits import Target, time_split
from training.rows import latency
from training.rows.evaluation import Evaluation, make_evaluation
from training.rows.latency import latency_summary, time_row
from training.rows.registry import predict
from training.run.inputs import Inputs, fingerprint

DATASET = shop()
SPLIT = time_split(DATASET)
SHORT = Target(0, 2)  # two earlier events are no memory with K = 3


@pytest.fixture
def evaluation(bundle: Bundle, tmp_path: Path) -> Evaluation:
    inputs = Inputs(DATASET, SPLIT, fingerprint(SPLIT))
    return make_evaluation(bundle, inputs, [SHORT, *SPLIT.test[:6]], tmp_path)


def timed_targets(
    evaluation: Evaluation, row: str, num_targets: int, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, Target]]:
    calls: list[tuple[str, Target]] = []

    def spy(single: Evaluation, row: str, seed: int) -> list[list[int]]:
        (target,) = single.targets
        calls.append((row, target))
        return predict(single, row, seed)

    monkeypatch.setattr(latency, "predict", spy)
    times = time_row(evaluation, row, num_targets=num_targets)
    assert len(times["row"]) == len(times["plain"]) == min(num_targets, 6)
    assert min(times["row"] + times["plain"]) > 0
    return calls[-2 * min(num_targets, 6) :]  # without the warm-up


def test_row_and_plain_prompt_alternate_on_the_same_targets(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed_targets(evaluation, "automr", 4, monkeypatch)
    pairs = list(zip(calls[::2], calls[1::2], strict=True))
    assert all(first[1] == second[1] for first, second in pairs), "the two answers of a pair must have the same target"
    assert [first[0] for first, _ in pairs] == ["automr", "generator_alone"] * 2, (
        "the order must alternate, because the second answer is faster"
    )
    assert len({first[1] for first, _ in pairs}) == 4


def test_all_rows_are_timed_on_the_same_targets_with_memory(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, newest = (timed_targets(evaluation, row, 99, monkeypatch) for row in ("random", "recent_beyond"))
    assert [target for _, target in random] == [target for _, target in newest]
    assert SHORT not in {target for _, target in random}, "a target without memory must not be timed"


def test_the_ratio_is_the_median_of_the_pairs() -> None:
    """The machine is five times slower in the second half, but the ratio of each pair is 2."""
    plain = np.array([10.0] * 10 + [50.0] * 11)
    found = latency_summary({"row": (2 * plain).tolist(), "plain": plain.tolist()})
    assert found["times_plain"] == pytest.approx((2, 2, 2))
    assert (found["ms"], found["plain_ms"], found["ms_p10"], found["targets"]) == (100, 50, 20, 21)


def test_the_interval_contains_the_median_ratio() -> None:
    rng = np.random.default_rng(0)
    row = rng.uniform(1, 3, size=40).tolist()
    mean, low, high = latency_summary({"row": row, "plain": [1.0] * 40})["times_plain"]
    assert 1 < low < mean < high < 3
