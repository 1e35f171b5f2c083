"""Scorers without a language model: counts of the train period, and the last item first where it may be shown."""

from typing import Any

import numpy as np
import pytest

from tests.training.worlds import world
from training.data.splits import Target
from training.rows.scorers import last_item_scorer, popularity_scorer

SPLIT = world([[0, 1, 2, 1], [1, 0, 0, 3]], train_ends=[3, 2])
TARGETS = [Target(0, 3), Target(1, 1)]


class Shown:
    """An evaluation that hides the same items for every target."""

    def __init__(self, hidden: list[int]) -> None:
        self.split, self._hidden = SPLIT, hidden

    def hidden(self, target: Target) -> list[int]:
        return self._hidden


def test_scores_are_counts_of_the_train_period() -> None:
    assert popularity_scorer(SPLIT)(TARGETS).tolist() == [[2, 2, 1, 0]] * 2


@pytest.mark.parametrize(("hidden", "firsts"), [([], [2, 1]), ([2], [1, 1]), ([0, 1, 2, 3], [0, 0])])
def test_the_last_item_that_may_be_shown_is_first(hidden: list[int], firsts: list[int]) -> None:
    evaluation: Any = Shown(hidden)
    scores = last_item_scorer(evaluation)(TARGETS)
    assert scores.argmax(axis=1).tolist() == firsts
    assert np.isfinite(scores).sum() == (8 if len(hidden) == 4 else 6), "the other scores must not change"
