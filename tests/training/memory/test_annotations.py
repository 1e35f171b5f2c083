"""Annotations hold both forms of eq. 5, do not depend on batches, and are the same after writing and reading."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from model_store.lm.split_lm import SplitLM
from tests.training.annotation_worlds import made_up
from tests.training.small import TINY, diary, small_lm, small_windows
from tests.training.worlds import communities
from training.data.splits import Target
from training.lm.likelihood import answer_log_probs, encode_answers
from training.lm.states import States, spans_of, window_states
from training.lm.windows import Windows
from training.memory import annotations
from training.memory.annotations import (
    Annotation,
    annotate,
    learning_targets,
    pick_targets,
    read_annotations,
    write_annotations,
)

TARGETS = [Target(0, 25), Target(3, 2), Target(1, 9), Target(0, 12), Target(3, 20)]


@pytest.fixture(scope="module")
def lm() -> SplitLM:
    return small_lm()


@pytest.fixture(scope="module")
def windows() -> Windows:
    return small_windows(diary())


@pytest.fixture(scope="module")
def states(lm: SplitLM, windows: Windows, tmp_path_factory: pytest.TempPathFactory) -> States:
    return window_states(lm, windows, spans_of(windows, TARGETS), tmp_path_factory.mktemp("states"))


def annotate_targets(lm: SplitLM, windows: Windows, states: States, batch_size: int = 16) -> list[Annotation]:
    examples = [windows.example(target) for target in TARGETS]
    return list(annotate(lm, examples, states, placement="insert", batch_size=batch_size))


def assert_same(found: Annotation, expected: Annotation, *, rtol: float = 0, atol: float = 0) -> None:
    who = f"user {expected.user}, position {expected.position}"
    scalars = (expected.user, expected.position, expected.num_tokens)
    assert (found.user, found.position, found.num_tokens) == scalars
    np.testing.assert_array_equal(found.memory_positions, expected.memory_positions, err_msg=who)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol, atol, err_msg=who)
    np.testing.assert_allclose(found.query_state, expected.query_state, rtol, atol, err_msg=who)


def test_both_forms_of_equation_5() -> None:
    annotation = made_up([math.log(0.2), math.log(0.5), math.log(0.1)], num_tokens=3)
    assert annotation.gains("log_gain") == pytest.approx([math.log(2.5) / 3, math.log(0.5) / 3], abs=1e-6)
    assert annotation.gains("probability") == pytest.approx([0.3, -0.1], abs=1e-6)
    with pytest.raises(ValueError, match="choose one of log_gain, probability"):
        annotation.gains("other")


def test_every_value_is_the_likelihood_of_its_memory(lm: SplitLM, windows: Windows, states: States) -> None:
    for target, annotation in zip(TARGETS, annotate_targets(lm, windows, states), strict=True):
        example = windows.example(target)
        assert annotation.num_tokens == len(example.answer)
        memory = torch.from_numpy(annotation.memory(states))
        assert annotation.log_probs.shape == (1 + len(memory),)
        with torch.inference_mode():
            batch = encode_answers(lm, [example.prompt], [example.answer])
            for place, choice in enumerate([memory[:0], *memory[:, None]]):
                mask = torch.ones(1, len(choice), dtype=torch.long)
                expected = float(answer_log_probs(lm, batch, choice[None], mask, "insert"))
                assert annotation.log_probs[place] == pytest.approx(expected, abs=1e-3), (
                    f"{target}, element {place - 1}"
                )


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batch_size_changes_nothing(batch_size: int, lm: SplitLM, windows: Windows, states: States) -> None:
    pairs = zip(annotate_targets(lm, windows, states, batch_size), annotate_targets(lm, windows, states), strict=True)
    for found, expected in pairs:
        assert_same(found, expected, rtol=5e-3, atol=2e-3)


def write(lm: SplitLM, windows: Windows, states: States, directory: Path) -> list[Annotation]:
    write_annotations(lm, windows, TARGETS, states, recipe=TINY, directory=directory)
    return sorted(read_annotations(directory), key=lambda found: TARGETS.index(Target(found.user, found.position)))


def test_annotations_are_the_same_after_writing_and_reading(
    lm: SplitLM, windows: Windows, states: States, tmp_path: Path
) -> None:
    for found, expected in zip(
        write(lm, windows, states, tmp_path), annotate_targets(lm, windows, states), strict=True
    ):
        assert_same(found, expected, rtol=5e-3, atol=2e-3)


def test_a_shard_may_have_no_memory_at_all(lm: SplitLM, windows: Windows, states: States, tmp_path: Path) -> None:
    write_annotations(lm, windows, [Target(3, 2)], states, recipe=TINY, directory=tmp_path)
    (found,) = read_annotations(tmp_path)
    assert (len(found.memory_positions), len(found.log_probs)) == (0, 1)
    assert found.memory(states).shape == (0, lm.hidden_size)


def test_a_killed_run_continues(
    lm: SplitLM, windows: Windows, states: States, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotations, "_TARGETS_PER_SHARD", 2)
    expected = write(lm, windows, states, tmp_path / "whole")

    def save_half(tensors: dict[str, Any], path: Path) -> None:
        save_file(tensors, path)
        if "00001" in path.name:
            path.write_bytes(path.read_bytes()[:100])
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(annotations, "save_file", save_half)
        write(lm, windows, states, tmp_path / "cut")
    assert len(read_annotations(tmp_path / "cut")) == 2, "an incomplete shard was read"
    (done,) = (tmp_path / "cut").glob("annotations-*")
    written = done.stat().st_mtime_ns
    for found, whole in zip(write(lm, windows, states, tmp_path / "cut"), expected, strict=True):
        assert_same(found, whole)
    assert done.stat().st_mtime_ns == written, "the finished shard was computed again"


def test_targets_come_from_few_users_without_repeats() -> None:
    targets = [Target(user, position) for user in range(30) for position in range(50)]
    picked = pick_targets(targets, 100, np.random.default_rng(0))
    assert len(picked) == len(set(picked)) == 100
    assert len({target.user for target in picked}) == 5, "twenty targets of each user share one memory"


@pytest.mark.parametrize("is_held_out", [True, False])
def test_users_teach_the_retriever_or_choose_it_or_judge_it(is_held_out: bool) -> None:
    split = communities()
    split = replace(split, train=[Target(user, 5) for user in range(len(split.histories))])
    recipe = replace(TINY, held_out_labels=is_held_out, annotate_targets=500, valid_targets=500)
    found = learning_targets(split, recipe, seed=0)
    assert list(found) == ["teach", "choose", "judge"]
    periods = {**dict.fromkeys(found, split.valid), **({} if is_held_out else {"teach": split.train})}
    for name, period in periods.items():
        assert found[name] and set(found[name]) <= set(period), f"{name} targets of another period"
    users = [{target.user for target in targets} for targets in found.values()]
    assert sum(map(len, users)) == len(set.union(*users)), "a user is in two parts"
    assert learning_targets(split, recipe, seed=0) == found, "other targets with the same seed"
