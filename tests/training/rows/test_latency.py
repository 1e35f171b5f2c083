"""A row is timed one target at a time, beside the plain prompt on the same target, and they take turns."""

from pathlib import Path

import numpy as np
import pytest

from model_store.bundle import Bundle
from tests.training.small import shop
from training.data.splits import Target, time_split
from training.rows import latency
from training.rows.contest import make_contest
from training.rows.latency import summarise, time_row
from training.rows.registry import Contest, predict
from training.run.inputs import Inputs, fingerprint

DATASET = shop()
SPLIT = time_split(DATASET)
SHORT = Target(0, 2)  # two events make no memory where K = 3


@pytest.fixture
def contest(bundle: Bundle, tmp_path: Path) -> Contest:
    inputs = Inputs(DATASET, SPLIT, fingerprint(SPLIT))
    return make_contest(bundle, inputs, [SHORT, *SPLIT.test[:6]], tmp_path)


def asked_of(contest: Contest, row: str, num_targets: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Target]]:
    asked: list[tuple[str, Target]] = []

    def spy(single: Contest, row: str, seed: int) -> list[list[int]]:
        (target,) = single.targets
        asked.append((row, target))
        return predict(single, row, seed)

    monkeypatch.setattr(latency, "predict", spy)
    times = time_row(contest, row, num_targets=num_targets)
    assert len(times["row"]) == len(times["plain"]) == min(num_targets, 6)
    assert min(times["row"] + times["plain"]) > 0
    return asked[-2 * min(num_targets, 6) :]  # without the warming up


def test_both_answer_the_same_targets_in_turns(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_of(contest, "automr", 4, monkeypatch)
    pairs = list(zip(asked[::2], asked[1::2], strict=True))
    assert all(first[1] == second[1] for first, second in pairs), "a ratio of different targets"
    assert [first[0] for first, _ in pairs] == ["automr", "bigrec"] * 2, "who comes second is favoured"
    assert len({first[1] for first, _ in pairs}) == 4


def test_targets_with_memory_are_timed_and_all_rows_on_the_same(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, newest = (asked_of(contest, row, 99, monkeypatch) for row in ("random", "recent_beyond"))
    assert [target for _, target in random] == [target for _, target in newest]
    assert SHORT not in {target for _, target in random}, "where nothing is retrieved, nothing is timed"


def test_the_ratio_is_that_of_the_pairs() -> None:
    """The machine is five times slower in the second half; each pair still says twice."""
    plain = np.array([10.0] * 10 + [50.0] * 11)
    found = summarise({"row": (2 * plain).tolist(), "plain": plain.tolist()})
    assert found["times_plain"] == pytest.approx((2, 2, 2))
    assert (found["ms"], found["plain_ms"], found["ms_p10"], found["targets"]) == (100, 50, 20, 21)


def test_an_interval_is_as_wide_as_the_pairs_disagree() -> None:
    rng = np.random.default_rng(0)
    row = rng.uniform(1, 3, size=40).tolist()
    mean, low, high = summarise({"row": row, "plain": [1.0] * 40})["times_plain"]
    assert 1 < low < mean < high < 3
