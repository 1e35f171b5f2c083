"""What is annotated: few users, many targets of each; held-out labels keep learners and judges apart."""

from dataclasses import replace

import numpy as np
import pytest

from tests.training.small import TINY
from tests.training.worlds import communities
from training.data.splits import Target
from training.memory.annotations import learning_targets, pick_targets


def test_targets_come_from_few_users_and_without_repeats() -> None:
    targets = [Target(user, position) for user in range(30) for position in range(50)]
    picked = pick_targets(targets, 100, np.random.default_rng(0))
    assert len(picked) == len(set(picked)) == 100
    assert len({target.user for target in picked}) == 5, "twenty targets of each user share one memory"


@pytest.mark.parametrize("is_held_out", [True, False])
def test_who_learns_does_not_judge(is_held_out: bool) -> None:
    split = communities()
    split = replace(split, train=[Target(user, 5) for user in range(len(split.histories))])
    recipe = replace(TINY, held_out_labels=is_held_out, annotate_targets=500, valid_targets=500)
    found = learning_targets(split, recipe, seed=0)
    periods = (split.valid, split.valid) if is_held_out else (split.train, split.valid)
    for name, period in zip(("train", "valid"), periods, strict=True):
        assert found[name] and set(found[name]) <= set(period), f"{name} targets of another period"
    if is_held_out:
        users = [{target.user for target in found[name]} for name in ("train", "valid")]
        assert not users[0] & users[1], "a user teaches the retriever and judges it"
    assert learning_targets(split, recipe, seed=0) == found, "not a function of the seed"
