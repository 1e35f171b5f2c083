"""Full history: the prompt has the last K + M titles, and the model was tuned on as many."""

from dataclasses import replace
from pathlib import Path

import pytest

from model_store.bundle import Bundle
from tests.training.evaluations import (
    LONG,
    RECIPE,
    SHORT,
    SPLIT,
    TARGETS,
    items_in,
    prompts_of,
    small_evaluation,
    with_other_future,
)
from tests.training.small import diary, small_windows
from training.lm import tuning
from training.lm.packing import PackedBatches
from training.rows.evaluation import Evaluation
from training.rows.full_history import full_history, long_recipe, train_long_reader
from training.run.recipes import Recipe


@pytest.fixture(scope="module")
def evaluation(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return small_evaluation(Bundle.open(bundle_path), tmp_path_factory.mktemp("cache"))


def test_the_prompt_is_the_end_of_the_history(evaluation: Evaluation) -> None:
    bundle, length = train_long_reader(evaluation, 0), RECIPE.recent_length + RECIPE.max_memory
    prompts = prompts_of(evaluation, "full_history")
    for target, prompt in zip(TARGETS, prompts, strict=True):
        history = SPLIT.histories[target.user].items[: target.position].tolist()
        assert items_in(bundle, SPLIT, prompt) == history[-length:]
    assert any(target.position > length for target in TARGETS), (
        "no history is longer than the prompt, so the test proves nothing"
    )
    assert bundle.prompt.spec.recent_length == length


def test_the_prompt_does_not_depend_on_later_events(evaluation: Evaluation) -> None:
    prompts = prompts_of(evaluation, "full_history")
    for target in (SHORT, LONG, *SPLIT.test[:2]):
        (prompt,) = prompts_of(with_other_future(evaluation, target), "full_history")
        assert prompt == prompts[TARGETS.index(target)], f"{target} depends on later events"


def test_it_is_trained_once_per_seed(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = full_history(evaluation, 0)
    monkeypatch.setattr(tuning, "make_model", None)
    assert full_history(replace(evaluation, results={}), 0) == lists
    with pytest.raises(TypeError):
        full_history(replace(evaluation, results={}), 1)


def test_it_is_the_same_recipe_with_longer_windows_and_no_memory() -> None:
    recipe = long_recipe(RECIPE, SPLIT)
    assert recipe.recent_length == RECIPE.recent_length + RECIPE.max_memory
    assert recipe.memory_share == 0, "the prompt already has the whole history"
    expected = replace(recipe, recent_length=3, max_memory=20, memory_share=RECIPE.memory_share, sft_batch_blocks=8)
    assert expected == RECIPE


def test_a_step_reads_about_as_many_titles() -> None:
    recipe, split = Recipe(recent_length=3, max_memory=12, sft_batch_blocks=40), diary([60] * 60)

    def titles_per_step(recipe: Recipe) -> float:
        windows = small_windows(split, recent_length=recipe.recent_length, max_memory=recipe.max_memory)
        batches = PackedBatches(windows, num_blocks=recipe.sft_batch_blocks, memory_share=0.0, seed=0)
        return sum(len(row.block.ends) for step in range(8) for row in batches(step)) / 8

    assert titles_per_step(long_recipe(recipe, split)) == pytest.approx(titles_per_step(recipe), rel=0.3)
