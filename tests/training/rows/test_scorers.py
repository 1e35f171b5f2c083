"""The popularity scorer: counts of the train period, and the last item first where it is asked for."""

import numpy as np

from tests.training.worlds import world
from training.data.splits import Target
from training.rows.scorers import popularity_scorer

SPLIT = world([[0, 1, 2, 1], [1, 0, 0, 3]], train_ends=[3, 2])
TARGETS = [Target(0, 3), Target(1, 1)]


def test_scores_are_counts_of_the_train_period() -> None:
    scores = popularity_scorer(SPLIT, repeat_last=False)(TARGETS)
    assert scores.tolist() == [[2, 2, 1, 0]] * 2


def test_the_last_item_before_the_target_can_be_first() -> None:
    scores = popularity_scorer(SPLIT, repeat_last=True)(TARGETS)
    assert scores.argmax(axis=1).tolist() == [2, 1]
    assert np.isfinite(scores).sum() == 6, "the other scores must not change"
