"""The parts of the users share nobody, have the promised sizes, and depend on user ids only."""

from dataclasses import replace

import numpy as np
import pytest

from tests.training.worlds import communities, world
from training.data.splits import Split, Target
from training.memory.judges import targets_of, user_parts

SPLIT = communities()  # 60 users, each with valid targets


@pytest.mark.parametrize("split", [SPLIT, world([[0, 1, 2]] * 3, train_ends=[1, 1, 1])], ids=["sixty", "three"])
@pytest.mark.parametrize("held_out", [True, False])
def test_each_user_is_in_one_part(held_out: bool, split: Split) -> None:
    parts = user_parts(split, held_out=held_out)
    assert sorted([*parts.teach, *parts.choose, *parts.judge]) == list(range(len(split.histories)))
    assert parts.choose and parts.judge and (parts.teach or not held_out), "a part is empty"


@pytest.mark.parametrize(("held_out", "sizes"), [(True, (30, 15, 15)), (False, (15, 15, 30))])
def test_a_quarter_chooses_and_a_quarter_or_half_judges(held_out: bool, sizes: tuple[int, int, int]) -> None:
    assert tuple(map(len, user_parts(SPLIT, held_out=held_out))) == sizes


def test_the_parts_depend_on_the_ids_of_the_users_only() -> None:
    """Not on their order: part of each id is the same where the users are numbered otherwise."""
    order = np.random.default_rng(0).permutation(60).tolist()
    moved = replace(
        SPLIT,
        histories=[SPLIT.histories[user] for user in order],
        valid=[Target(order.index(target.user), target.position) for target in SPLIT.valid],
    )

    def ids(split: Split) -> list[set[str]]:
        return [{split.histories[user].user_id for user in part} for part in user_parts(split, held_out=True)]

    assert ids(moved) == ids(SPLIT)
    renamed = replace(SPLIT, histories=[replace(each, user_id=f"{each.user_id}!") for each in SPLIT.histories])
    assert user_parts(renamed, held_out=True) != user_parts(SPLIT, held_out=True)


def test_users_without_valid_targets_teach_where_they_can_and_judge_where_nobody_learns_from_them() -> None:
    late = [target for target in SPLIT.valid if target.user >= 20]
    split = replace(SPLIT, valid=late, train=[Target(user, 5) for user in range(10)])
    parts = user_parts(split, held_out=False)
    assert set(range(10)) <= parts.teach and set(range(10, 20)) <= parts.judge


def test_targets_keep_their_order() -> None:
    users = frozenset({3, 7})
    assert targets_of(SPLIT.valid, users) == [target for target in SPLIT.valid if target.user in (3, 7)]
