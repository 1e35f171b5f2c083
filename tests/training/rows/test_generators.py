"""Generators of other methods: tuned without memory, on windows as long as their prompts, once for all rows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_store.answers import Answer, Query
from model_store.bundle import Bundle
from model_store.inference import recommend
from tests.conftest import TITLES, make_model, make_tokenizer
from tests.training.evaluations import (
    LONG,
    RECIPE,
    SHORT,
    SPLIT,
    TARGETS,
    items_in,
    memory_aware,
    prompts_of,
    small_evaluation,
    with_other_future,
)
from tests.training.small import diary, small_windows
from training.lm import tuning
from training.lm.packing import PackedBatches
from training.rows import generators
from training.rows.evaluation import Evaluation
from training.rows.generators import bigrec, bigrec_generator, full_history, generator, window_recipe, zero_shot
from training.rows.rella import rella_extend, rella_replace
from training.run.recipes import Recipe

K, M = RECIPE.recent_length, RECIPE.max_memory


@pytest.fixture(scope="module")
def evaluation(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return small_evaluation(Bundle.open(bundle_path), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def memory_tuned(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return small_evaluation(memory_aware(Bundle.open(bundle_path)), tmp_path_factory.mktemp("cache"))


def test_the_prompt_is_the_end_of_the_history(evaluation: Evaluation) -> None:
    bundle, length = generator(evaluation, K + M, 0), K + M
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


def test_rows_with_windows_of_one_length_share_a_generator(
    memory_tuned: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BIGRec and ReLLa replace read K titles, ReLLa extend reads 2K."""
    bigrec(memory_tuned, 0)
    again = replace(memory_tuned, results={})
    monkeypatch.setattr(tuning, "make_model", None)
    rella_replace(again, 0)
    with pytest.raises(TypeError):
        rella_extend(again, 0)


def test_bigrec_has_a_generator_that_never_read_memory(memory_tuned: Evaluation) -> None:
    own, other = memory_tuned.bundle, bigrec_generator(memory_tuned, 0)
    assert other.manifest.backbone.adapter is None, "it was tuned to read memory"
    assert other.manifest.space != own.manifest.space and other.lm is not own.lm
    assert other.prompt.spec.recent_length == K
    assert [row.item_id for row in other.catalogue.items] == [row.item_id for row in own.catalogue.items]


def test_a_bundle_that_was_tuned_without_memory_is_its_own_bigrec(evaluation: Evaluation) -> None:
    assert bigrec_generator(evaluation, 0) is evaluation.bundle


def test_bigrec_reads_the_window_only(memory_tuned: Evaluation) -> None:
    bundle, prompts = bigrec_generator(memory_tuned, 0), prompts_of(memory_tuned, "bigrec")
    shown = [items_in(bundle, SPLIT, prompt) for prompt in prompts]
    assert shown == [memory_tuned.recent(example) for example in memory_tuned.examples]


def test_zero_shot_is_the_checkpoint_as_published_with_an_instruction(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = make_model("llama")
    published.save_pretrained(tmp_path / "checkpoint")
    make_tokenizer(TITLES).save_pretrained(tmp_path / "checkpoint")
    training = replace(evaluation.training, model=str(tmp_path / "checkpoint"), directory=tmp_path / "work")
    of_checkpoint = replace(evaluation, training=training, results={})
    read: list[tuple[Bundle, list[int]]] = []

    def spy(bundle: Bundle, queries: list[Query]) -> list[Answer]:
        read.extend((bundle, list(query.prompt)) for query in queries)
        return recommend(bundle, queries)

    monkeypatch.setattr("training.rows.evaluation.recommend", spy)
    lists = zero_shot(of_checkpoint, 0)
    bundle = read[0][0]
    assert weights_equal(bundle.lm.model, published), "the checkpoint was changed"
    assert bundle.prompt.spec.head, "the prompt has no instruction"
    shown = [items_in(bundle, SPLIT, prompt) for _, prompt in read]
    assert shown == [of_checkpoint.recent(example) for example in of_checkpoint.examples]
    monkeypatch.setattr(generators, "pretrained", None)
    assert zero_shot(replace(of_checkpoint, results={}), 0) == lists, "the kept copy answers otherwise"


def weights_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    expected = dict(other.named_parameters())
    return all(torch.equal(weights, expected[name]) for name, weights in one.named_parameters())


@pytest.mark.parametrize("length", [K, 2 * K, K + M])
def test_it_is_the_same_recipe_with_other_windows_and_no_memory(length: int) -> None:
    recipe = window_recipe(RECIPE, length, SPLIT)
    assert (recipe.recent_length, recipe.max_memory) == (length, K + M - length)
    assert recipe.memory_share == 0
    expected = replace(recipe, recent_length=K, max_memory=M, memory_share=RECIPE.memory_share, sft_batch_blocks=8)
    assert expected == RECIPE
    assert window_recipe(RECIPE, K, SPLIT).sft_batch_blocks == RECIPE.sft_batch_blocks


def test_a_step_reads_about_as_many_titles() -> None:
    recipe, split = Recipe(recent_length=3, max_memory=12, sft_batch_blocks=40), diary([60] * 60)

    def titles_per_step(recipe: Recipe) -> float:
        windows = small_windows(split, recent_length=recipe.recent_length, max_memory=recipe.max_memory)
        batches = PackedBatches(windows, num_blocks=recipe.sft_batch_blocks, memory_share=0.0, seed=0)
        return sum(len(row.block.ends) for step in range(8) for row in batches(step)) / 8

    for length in (6, 15):
        longer = titles_per_step(window_recipe(recipe, length, split))
        assert longer == pytest.approx(titles_per_step(recipe), rel=0.3)
