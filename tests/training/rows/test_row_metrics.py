"""Metrics of lists by item and by title, by slice, and compared with the baseline and the bundle's own row."""

from argparse import Namespace
from typing import Any

import numpy as np
import pytest

from tests.training.small import METRICS, shop
from training.data.splits import Split, time_split
from training.rows.evaluation import Evaluation
from training.rows.row_metrics import References, compare_rows, coverage, metrics_by_target, slices


def evaluation_of(split: Split, num_memory: list[int]) -> Evaluation:
    examples = [Namespace(memory_positions=np.arange(count)) for count in num_memory]
    found: Any = Namespace(split=split, targets=split.test[: len(num_memory)], examples=examples)
    evaluation: Evaluation = found
    return evaluation


def truths_of(split: Split) -> list[int]:
    return [int(split.histories[target.user].items[target.position]) for target in split.test]


def test_metrics_by_item_and_by_title() -> None:
    split = time_split(shop())
    target, truth = split.test[0], truths_of(split)[0]
    same_title = (truth + 1) % len(split.titles)
    split.title_class[same_title] = split.title_class[truth]
    metrics = metrics_by_target([[same_title, truth]], [target], split)
    assert metrics["recall@1"].tolist() == [0]
    assert metrics["recall@5"].tolist() == [1]
    assert metrics["recall@1/title"].tolist() == [1], "by title, an item with the same title is correct"


def test_slices_are_targets_with_memory_and_targets_whose_item_was_trained_on() -> None:
    split = time_split(shop())
    truths = truths_of(split)
    split.popularity[truths[0]] = 0
    found = slices(evaluation_of(split, [number % 2 for number in range(len(truths))]))
    memory, warm = np.arange(len(truths)) % 2 == 1, np.array(truths) != truths[0]
    assert found["all"].all()
    assert found["memory"].tolist() == memory.tolist()
    assert found["warm"].tolist() == warm.tolist()
    assert found["cold"].tolist() == (~warm).tolist(), "every target is either cold or warm"
    assert found["memory_warm"].tolist() == (memory & warm).tolist()


def test_coverage_counts_each_item_of_the_first_ten_once() -> None:
    assert coverage([[0, 1], [1, 2]], 6) == pytest.approx(0.5)
    assert coverage([list(range(20))], 20) == pytest.approx(0.5)


def test_targets_come_back_or_are_new() -> None:
    split = time_split(shop())
    pasts = [split.histories[target.user].items[: target.position].tolist() for target in split.test]
    expected = [truth in past for truth, past in zip(truths_of(split), pasts, strict=True)]
    found = slices(evaluation_of(split, [0] * len(expected)))
    assert found["returning"].tolist() == expected and 0 < sum(expected) < len(expected)
    assert found["new"].tolist() == [not returns for returns in expected]


def compared(*rows: str) -> dict[str, Any]:
    """Four targets, two of them with memory. Each row is correct on some; `random` has two draws."""
    split = time_split(shop())
    right = {"bigrec": [1.0, 0, 1, 0], "automr": [1.0, 1, 1, 0], "popularity": [0.0, 0, 0, 0]}
    right |= {"no_memory": [0.0, 1, 1, 0], "automr_plus": [1.0, 1, 1, 0], "automr_plus_lm": [1.0, 0, 1, 1]}
    metrics = {row: {name: np.array([right[row]]) for name in METRICS} for row in rows if row in right}
    if "random" in rows:
        metrics["random"] = {name: np.array([[1.0, 0, 0, 0], [0, 1, 1, 0]]) for name in METRICS}
    tuned = "automr_plus" in rows
    references = References("automr_plus", "no_memory") if tuned else References("automr", "bigrec")
    return compare_rows(metrics, evaluation_of(split, [2, 2, 0, 0]), references, seed=0)


def test_every_row_is_compared_with_the_baseline_and_with_the_own_row() -> None:
    found = compared("bigrec", "popularity", "random", "automr")
    part = found["all"]
    assert part["rows"].keys() == {"bigrec", "popularity", "random", "automr"}
    assert part["minus_bigrec"].keys() == part["minus_bigrec_relative"].keys() == {"popularity", "random", "automr"}
    assert part["own_minus"].keys() == part["own_minus_relative"].keys() == {"bigrec", "popularity", "random"}
    assert part["own_minus"]["random"]["ndcg@5"][0] == pytest.approx(0.75 - 0.375)
    assert part["own_minus_relative"]["popularity"]["recall@1"] is None, "the other row has no correct answer"
    for row in part["minus_bigrec"]:
        own = part["minus_bigrec"][row]["ndcg@10"][0]
        assert own == pytest.approx(part["rows"][row]["ndcg@10"][0] - part["rows"]["bigrec"]["ndcg@10"][0])


def test_rows_that_differ_in_memory_are_compared_with_no_memory() -> None:
    part = compared("bigrec", "no_memory", "random", "automr_plus_lm", "automr_plus")["all"]
    assert part["minus_no_memory"].keys() == {"random", "automr_plus"}, (
        "the other rows differ in more than their memory"
    )
    assert part["minus_no_memory"]["automr_plus"]["ndcg@5"][0] == pytest.approx(0.25)
    assert part["minus_no_memory"]["random"]["ndcg@5"][0] == pytest.approx(0.375 - 0.5)
    assert part["minus_no_memory_relative"].keys() == {"random", "automr_plus"}
    assert compared("bigrec", "random", "automr_plus")["all"]["minus_no_memory"] == {}
    assert compared("bigrec", "random", "automr")["all"]["minus_no_memory"].keys() == {"random", "automr"}, (
        "without neighbours, and with BIGRec's generator, BIGRec is the row without memory"
    )


def test_a_slice_has_the_metrics_of_its_targets_only() -> None:
    found = compared("bigrec", "automr")
    assert (found["all"]["targets"], found["memory"]["targets"]) == (4, 2)
    assert found["memory"]["rows"]["automr"]["recall@1"][0] == 1
    assert found["memory"]["rows"]["bigrec"]["recall@1"][0] == 0.5
    assert "cold" not in found, "a slice without targets must be left out"


def test_each_draw_has_its_own_mean() -> None:
    found = compared("bigrec", "random")
    assert found["all"]["by_seed"].keys() == {"random"}, "rows with one draw must be left out"
    assert found["all"]["by_seed"]["random"]["recall@1"] == [0.25, 0.5]
    assert found["memory"]["by_seed"]["random"]["recall@1"] == [0.5, 0.5]


def test_without_baseline_and_own_row_nothing_is_compared() -> None:
    found = compared("popularity", "random")
    assert found["all"]["minus_bigrec"] == found["all"]["own_minus"] == found["all"]["minus_no_memory"] == {}
