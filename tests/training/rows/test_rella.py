"""ReLLa shows what is most like the recent window, in the order of time."""

from pathlib import Path

import numpy as np
import pytest

from model_store.bundle import Bundle
from tests.training.contests import LONG, SHORT, SPLIT, TARGETS, items_in, prompts_of, small_contest, with_other_future
from training.rows.contest import Contest
from training.rows.rella import most_similar

K = 3
ROWS = ("rella_replace", "rella_extend")


@pytest.fixture
def contest(bundle_path: Path, tmp_path: Path) -> Contest:
    return small_contest(Bundle.open(bundle_path), tmp_path)


def read_by(contest: Contest, row: str) -> list[list[int]]:
    return [items_in(contest.bundle, SPLIT, prompt) for prompt in prompts_of(contest, row)]


def similarity(contest: Contest, recent: list[int], items: list[int]) -> np.ndarray:
    """Cosine to the mean direction of the window, around the mean of all titles, written down anew."""
    vectors = contest.title_vectors() - contest.title_vectors().mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities: np.ndarray = vectors[items] @ vectors[recent].mean(axis=0)
    return similarities


def is_in_time(shown: list[int], history: list[int]) -> bool:
    later = iter(history)
    return all(item in later for item in shown)


def test_replace_shows_the_most_similar_of_all_in_time(contest: Contest) -> None:
    for example, shown in zip(contest.examples, read_by(contest, "rella_replace"), strict=True):
        recent = contest.recent(example)
        history = [*contest.memory(example), *recent]
        similarities = similarity(contest, recent, history)
        assert len(shown) == min(K, len(history))
        assert is_in_time(shown, history), f"{shown} is not in the order of {history}"
        assert history[int(similarities.argmax())] in shown
        assert sorted(similarity(contest, recent, shown)) == pytest.approx(sorted(similarities)[-K:], abs=1e-5)


def test_extend_keeps_the_window_and_puts_old_items_before_it(contest: Contest) -> None:
    for example, shown in zip(contest.examples, read_by(contest, "rella_extend"), strict=True):
        recent, memory = contest.recent(example), contest.memory(example)
        assert shown[-len(recent) :] == recent, "the window changed"
        old = shown[: -len(recent)]
        assert len(old) == min(K, len(memory))
        assert is_in_time(old, memory)
        similarities = similarity(contest, recent, memory)
        assert sorted(similarity(contest, recent, old)) == pytest.approx(sorted(similarities)[-K:], abs=1e-5)


@pytest.mark.parametrize("row", ROWS)
def test_without_memory_the_prompt_is_the_plain_one(row: str, contest: Contest) -> None:
    assert prompts_of(contest, row)[TARGETS.index(SHORT)] == contest.examples[TARGETS.index(SHORT)].prompt


@pytest.mark.parametrize("row", ROWS)
def test_the_future_is_not_seen(row: str, contest: Contest) -> None:
    prompts = prompts_of(contest, row)
    for target in (SHORT, LONG, *SPLIT.test[:2]):
        (prompt,) = prompts_of(with_other_future(contest, target), row)
        assert prompt == prompts[TARGETS.index(target)], f"{row} at {target} depends on what comes later"


def test_of_equals_the_later_ones_are_kept() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    assert most_similar(vectors, [0], [0, 1, 2, 0], 2) == [2, 3]
    assert most_similar(vectors, [0], [1, 0], 5) == [0, 1], "fewer than asked for are all kept"
    assert most_similar(vectors, [0], [], 2) == []
