"""ReLLa: the items most similar to the window, in the order of time."""

from pathlib import Path

import numpy as np
import pytest

from model_store.bundle import Bundle
from tests.training.evaluations import (
    LONG,
    SHORT,
    SPLIT,
    TARGETS,
    items_in,
    prompts_of,
    small_evaluation,
    with_other_future,
)
from training.rows.evaluation import Evaluation
from training.rows.generators import generator
from training.rows.rella import most_similar

K = 3
ROWS = ("rella_replace", "rella_extend")


@pytest.fixture(scope="module")
def evaluation(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return small_evaluation(Bundle.open(bundle_path), tmp_path_factory.mktemp("cache"))


def reader(evaluation: Evaluation, row: str) -> Bundle:
    """The bundle that reads the prompts of the row."""
    return generator(evaluation, 2 * K, 0) if row == "rella_extend" else evaluation.bundle


def items_read(evaluation: Evaluation, row: str) -> list[list[int]]:
    return [items_in(reader(evaluation, row), SPLIT, prompt) for prompt in prompts_of(evaluation, row)]


def similarity(evaluation: Evaluation, recent: list[int], items: list[int]) -> np.ndarray:
    """Cosine to the mean unit vector of the window, of centred vectors; computed here without the tested code."""
    vectors = evaluation.title_vectors() - evaluation.title_vectors().mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities: np.ndarray = vectors[items] @ vectors[recent].mean(axis=0)
    return similarities


def is_in_order(shown: list[int], history: list[int]) -> bool:
    later = iter(history)
    return all(item in later for item in shown)


def test_replace_shows_the_most_similar_items_of_the_history_in_order(evaluation: Evaluation) -> None:
    for example, shown in zip(evaluation.examples, items_read(evaluation, "rella_replace"), strict=True):
        recent = evaluation.recent(example)
        history = [*evaluation.memory(example), *recent]
        similarities = similarity(evaluation, recent, history)
        assert len(shown) == min(K, len(history))
        assert is_in_order(shown, history), f"{shown} is not in the order of {history}"
        assert history[int(similarities.argmax())] in shown
        assert sorted(similarity(evaluation, recent, shown)) == pytest.approx(sorted(similarities)[-K:], abs=1e-5)


def test_extend_shows_similar_old_items_before_the_window(evaluation: Evaluation) -> None:
    for example, shown in zip(evaluation.examples, items_read(evaluation, "rella_extend"), strict=True):
        recent, memory = evaluation.recent(example), evaluation.memory(example)
        assert shown[-len(recent) :] == recent, "the prompt must end with the window"
        old = shown[: -len(recent)]
        assert len(old) == min(K, len(memory))
        assert is_in_order(old, memory)
        similarities = similarity(evaluation, recent, memory)
        assert sorted(similarity(evaluation, recent, old)) == pytest.approx(sorted(similarities)[-K:], abs=1e-5)


@pytest.mark.parametrize("row", ROWS)
def test_without_memory_the_prompt_is_the_window(row: str, evaluation: Evaluation) -> None:
    place = TARGETS.index(SHORT)
    assert items_read(evaluation, row)[place] == evaluation.recent(evaluation.examples[place])


@pytest.mark.parametrize("row", ROWS)
def test_the_prompt_does_not_depend_on_later_events(row: str, evaluation: Evaluation) -> None:
    prompts = prompts_of(evaluation, row)
    for target in (SHORT, LONG, *SPLIT.test[:2]):
        (prompt,) = prompts_of(with_other_future(evaluation, target), row)
        assert prompt == prompts[TARGETS.index(target)], f"{row} at {target} depends on later events"


def test_with_equal_similarity_the_later_items_are_kept() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    assert most_similar(vectors, [0], [0, 1, 2, 0], 2) == [2, 3]
    assert most_similar(vectors, [0], [1, 0], 5) == [0, 1], "with fewer items than asked for, all are kept"
    assert most_similar(vectors, [0], [], 2) == []
