"""The memory of another user: as much as the user has, at the same times, and of nobody else's future."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_store.answers import Query
from model_store.bundle import Bundle
from tests.training.evaluations import (
    SPLIT,
    TARGETS,
    bundle_with_voices,
    queries_of,
    small_evaluation,
)
from training.rows.evaluation import Evaluation
from training.rows.registry import predict

K = 3


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    root = tmp_path_factory.mktemp("strangers")
    return small_evaluation(bundle_with_voices(root / "bundle"), root / "cache")


def source(evaluation: Evaluation, query: Query, own: int) -> tuple[int, int]:
    """The user whose newest states are those of a query, and the position after the newest one."""
    states = evaluation.states
    for user, array in states.arrays.items():
        for stop in range(len(query.memory), len(array) + 1):
            if np.array_equal(array[stop - len(query.memory) : stop], query.memory):
                assert user != own, "the states are the user's own"
                return user, states.starts[user] + stop
    raise AssertionError("the states of a query are nobody's")


def test_states_and_events_are_of_one_other_user(evaluation: Evaluation) -> None:
    reads = zip(TARGETS, evaluation.examples, queries_of(evaluation, "random"), strict=True)
    for target, example, query in reads:
        own = evaluation.past(target)
        assert own is not None and query.past is not None
        assert len(query.memory) == len(example.memory_positions), f"{target}: other users have as many"
        assert query.past.timestamps == own.timestamps and query.past.now == own.now
        assert query.past.rows[-K:] == own.rows[-K:], "the window is the user's own"
        if len(query.memory):
            user, end = source(evaluation, query, target.user)
            older = len(own.rows) - K
            expected = evaluation.rows_of(SPLIT.histories[user].items[end - older : end])
            assert query.past.rows[:-K] == expected
            assert SPLIT.histories[user].timestamps[end - 1] < own.now, "the other user's future"


def test_a_user_without_memory_gets_none(evaluation: Evaluation) -> None:
    (short, *_) = queries_of(evaluation, "random")
    assert len(short.memory) == 0 and short.past == evaluation.past(TARGETS[0])


def test_draws_differ_by_seed_and_can_be_repeated(evaluation: Evaluation, tmp_path: Path) -> None:
    many = small_evaluation(evaluation.bundle, tmp_path, targets=SPLIT.test)
    draws = [[query.past for query in queries_of(many, "random", seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1], "the same seed must give the same draw"
    assert draws[0] != draws[2], "another seed must give another draw"


def test_a_list_does_not_depend_on_the_other_targets(evaluation: Evaluation) -> None:
    lists = predict(evaluation, "random", 0)
    for place in (1, 4):
        alone = replace(evaluation, targets=[TARGETS[place]], examples=[evaluation.examples[place]])
        assert predict(alone, "random", 0) == [lists[place]]


def test_the_users_own_older_events_have_no_influence(evaluation: Evaluation) -> None:
    lists, target = predict(evaluation, "random", 0), TARGETS[1]
    histories = list(SPLIT.histories)
    items = histories[target.user].items.copy()
    items[: target.position - K] = 0
    histories[target.user] = replace(histories[target.user], items=items)
    states = replace(evaluation.states, arrays={**evaluation.states.arrays})
    states.arrays[target.user] = -states.arrays[target.user]
    changed = replace(
        evaluation,
        split=replace(SPLIT, histories=histories),
        states=states,
        targets=[target],
        examples=[evaluation.examples[1]],
    )
    assert predict(changed, "random", 0) == [lists[1]]


def test_without_voices_the_states_are_another_users(bundle: Bundle, tmp_path: Path) -> None:
    evaluation = small_evaluation(bundle, tmp_path)
    for target, query in zip(TARGETS, queries_of(evaluation, "random"), strict=True):
        assert query.past is None
        if len(query.memory):
            source(evaluation, query, target.user)
