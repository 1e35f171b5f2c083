"""Stored states equal the states of single windows, and an interrupted run continues."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_store.inference import encode
from model_store.lm.split_lm import SplitLM
from tests.training.small import diary, small_lm, small_windows
from training.data.splits import Target
from training.lm import states as states_module
from training.lm.states import States, encode_prompts, spans_of, window_states
from training.lm.windows import Windows

SPANS = {0: (4, 20), 1: (0, 5), 3: (2, 3)}


@pytest.fixture(scope="module")
def lm() -> SplitLM:
    return small_lm()


@pytest.fixture(scope="module")
def windows() -> Windows:
    return small_windows(diary())


@pytest.fixture
def two_users_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "_USERS_PER_SHARD", 2)


def assert_equal(found: States, expected: States) -> None:
    assert found.starts == expected.starts
    for user, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[user], array, err_msg=f"user {user}")


def test_states_equal_those_of_single_windows(lm: SplitLM, windows: Windows, tmp_path: Path) -> None:
    states = window_states(lm, windows, SPANS, tmp_path)
    for user, (start, stop) in SPANS.items():
        assert states.arrays[user].shape == (stop - start, lm.hidden_size), "states outside the span were stored"
        for position in range(start, stop):
            (alone,) = encode(lm, [windows.prompt_ending_at(user, position)])
            found = states.at(user, np.array([position]))[0]
            np.testing.assert_allclose(found, alone, rtol=5e-3, atol=5e-3, err_msg=f"user {user}, position {position}")


def test_no_positions_give_no_states(lm: SplitLM, windows: Windows, tmp_path: Path) -> None:
    states = window_states(lm, windows, {}, tmp_path)
    assert states.at(7, np.arange(0)).shape == (0, lm.hidden_size), "also for a user without states"


def test_states_are_in_the_order_of_the_prompts(lm: SplitLM, windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "_TOKENS_PER_BATCH", 40)
    prompts = [windows.prompt_ending_at(0, position) for position in (5, 0, 9, 1, 7)]
    expected = np.concatenate([encode(lm, [prompt]) for prompt in prompts])
    np.testing.assert_allclose(encode_prompts(lm, prompts), expected, rtol=5e-3, atol=5e-3)


@pytest.mark.usefixtures("two_users_a_shard")
def test_finished_shards_are_not_computed_again(lm: SplitLM, windows: Windows, tmp_path: Path) -> None:
    expected = window_states(lm, windows, SPANS, tmp_path)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    written = first.stat().st_mtime_ns
    second.unlink()
    assert_equal(window_states(lm, windows, SPANS, tmp_path), expected)
    assert first.stat().st_mtime_ns == written, "the finished shard was computed again"


@pytest.mark.usefixtures("two_users_a_shard")
def test_a_killed_run_continues(lm: SplitLM, windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = window_states(lm, windows, SPANS, tmp_path / "whole")

    def save_half(tensors: dict[str, np.ndarray], path: Path) -> None:
        save_file(tensors, path)
        if "00001" in path.name:
            path.write_bytes(path.read_bytes()[:100])
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(states_module, "save_file", save_half)
        window_states(lm, windows, SPANS, tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) == 1, "an incomplete shard was read"
    assert_equal(window_states(lm, windows, SPANS, tmp_path / "cut"), expected)


def test_spans_cover_exactly_the_memories_of_all_targets(windows: Windows) -> None:
    targets = [Target(0, 20), Target(0, 12), Target(1, 8), Target(1, 2)]
    assert spans_of(windows, targets) == {0: (0, 17), 1: (0, 5)}
    assert spans_of(windows, [Target(0, 29)]) == {0: (14, 26)}, "the newest M = 12, without the K = 3 recent"
    assert spans_of(windows, [Target(1, 3)]) == {}, "a short history has no memory"
