"""TRSR: the prompt is a summary, then the window; its language model is tuned once and is a copy of the bundle's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.bundle import Bundle
from tests.conftest import TITLES, write_bundle
from tests.training.evaluations import (
    LONG,
    RECIPE,
    SHORT,
    SPLIT,
    TARGETS,
    items_in,
    prompts_of,
    shorten_summariser,
    small_evaluation,
    with_other_future,
)
from training.lm.packing import packed_loss
from training.rows import trsr
from training.rows.evaluation import Evaluation
from training.rows.registry import predict
from training.rows.summariser import HistoryStart
from training.rows.trsr import (
    TrsrExample,
    packed_row,
    short_schedule,
    train_trsr,
    training_examples,
    validation_examples,
)

K, S = 3, 1


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        shorten_summariser(patched)
        yield


@pytest.fixture(scope="module")
def evaluation(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return small_evaluation(Bundle.open(bundle_path), tmp_path_factory.mktemp("cache"))


def test_the_prompt_is_a_summary_of_old_items_and_the_window(evaluation: Evaluation) -> None:
    for example, prompt in zip(evaluation.examples, prompts_of(evaluation, "trsr"), strict=True):
        shown, recent = items_in(evaluation.bundle, SPLIT, prompt), evaluation.recent(example)
        old = SPLIT.histories[example.user].items[: example.position - K].tolist() if example.position > K else []
        assert shown[-len(recent) :] == recent
        assert len(shown) - len(recent) == min(S, len(old))
        assert set(shown[: -len(recent)]) <= set(old)


def test_the_prompt_does_not_depend_on_later_events(evaluation: Evaluation) -> None:
    prompts = prompts_of(evaluation, "trsr")
    for target in (SHORT, LONG, *SPLIT.test[:2]):
        (prompt,) = prompts_of(with_other_future(evaluation, target), "trsr")
        assert prompt == prompts[TARGETS.index(target)], f"{target} depends on later events"


def test_it_is_trained_once(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = predict(evaluation, "trsr", 0)
    monkeypatch.setattr(trsr, "fit", None)
    assert predict(replace(evaluation, results={}), "trsr", 0) == lists, "the saved model must give the same lists"
    with pytest.raises(TypeError):
        predict(replace(evaluation, results={}), "trsr", 1)


def test_a_model_with_embeddings_of_late_titles_can_be_loaded(tmp_path: Path) -> None:
    """These embeddings are made when first used; a model saved with them is loaded into a model without them."""
    write_bundle(tmp_path / "b", vocabulary="items", known_titles=TITLES[:-4])
    evaluations = [small_evaluation(Bundle.open(tmp_path / "b"), tmp_path / "cache") for _ in range(2)]
    assert predict(evaluations[0], "trsr", 0) == predict(evaluations[1], "trsr", 0)


def test_equal_seeds_train_equal_models(evaluation: Evaluation, tmp_path: Path) -> None:
    other_setup = replace(evaluation.training, directory=tmp_path)
    again = train_trsr(replace(evaluation, training=other_setup), 0)
    first = train_trsr(evaluation, 0)
    assert _are_equal(first.bundle.lm.model, again.bundle.lm.model)
    assert _are_equal(first.summariser.chooser, again.summariser.chooser)


def _are_equal(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(each, other.get_parameter(name)) for name, each in module.named_parameters())


def test_the_bundle_does_not_change(evaluation: Evaluation, bundle: Bundle) -> None:
    trained = train_trsr(evaluation, 0)
    moved = 0
    originals = dict(bundle.lm.model.named_parameters())
    for name, parameter in evaluation.bundle.lm.model.named_parameters():
        torch.testing.assert_close(parameter, originals[name], rtol=0, atol=0)
        assert not parameter.requires_grad
        moved += not torch.equal(trained.bundle.lm.model.get_parameter(name), parameter)
    assert moved > 0, "nothing was tuned"


def test_training_reads_the_train_period_and_summaries_of_earlier_events(evaluation: Evaluation) -> None:
    trained = train_trsr(evaluation, 0)
    size = trained.summariser.sizes.block
    examples = training_examples(trained, SPLIT, 10_000, any_rng())
    histories = {tuple(history.items.tolist()): history for history in SPLIT.histories}
    assert len(examples) == sum(len(range(0, history.train_end - 1, size)) for history in histories.values())
    for example in examples:
        assert 2 <= len(example.answers) <= K + 1
        assert any(_begins(items[: history.train_end], example) for items, history in histories.items()), f"{example}"
    assert len(training_examples(trained, SPLIT, 1, any_rng())) < len(examples), (
        "the limit must reduce the number of examples"
    )


def any_rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _begins(items: tuple[int, ...], example: TrsrExample) -> bool:
    """Whether the answers are consecutive items of the history, and the prompt has earlier items only."""
    starts = [at for at in range(len(items)) if list(items[at : at + len(example.answers)]) == example.answers]
    return any(set(example.prompt) <= set(items[:at]) and len(example.prompt) == min(S, at) for at in starts)


def test_validation_uses_the_prompt_of_the_row(evaluation: Evaluation) -> None:
    trained = train_trsr(evaluation, 0)
    examples = validation_examples(trained, SPLIT, replace(RECIPE, sft_valid_targets=10_000), 0)
    assert len(examples) == len(SPLIT.valid)
    for target, example in zip(SPLIT.valid, examples, strict=True):
        items = SPLIT.histories[target.user].items.tolist()
        start = max(0, target.position - K)
        summary = trained.summaries(SPLIT, [HistoryStart(target.user, start)])[HistoryStart(target.user, start)]
        assert example == TrsrExample([*summary, *items[start : target.position]], [items[target.position]])


def test_the_loss_is_on_the_answers_only(bundle: Bundle) -> None:
    """The cross entropy of the answers after the prompt, computed on the whole sequence."""
    prompt, lm = bundle.prompt, bundle.lm
    row = packed_row(prompt, SPLIT, TrsrExample([1, 2], [3, 4]))
    ids = torch.tensor([row.block.tokens])
    log_probs = lm.top(lm.bottom(ids, torch.ones_like(ids)), torch.ones_like(ids)).log_softmax(-1)[0, :-1]
    losses = -log_probs.gather(1, ids[0, 1:, None])[:, 0]
    num_answers = sum(len(prompt.title_tokens(SPLIT.titles[item])) for item in (3, 4))
    loss = packed_loss(lm, [row], reduction="sum")
    assert float(loss) == pytest.approx(float(losses[-num_answers:].sum()), rel=1e-4)


def test_a_checkpoint_gets_adapters_that_are_merged(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", architecture="qwen2")
    evaluation = small_evaluation(Bundle.open(tmp_path / "bundle"), tmp_path)
    training = replace(evaluation.training, model="some/checkpoint")
    trained = train_trsr(replace(evaluation, training=training), 0)
    names = [name for name, _ in trained.bundle.lm.model.named_parameters()]
    assert names == [name for name, _ in evaluation.bundle.lm.model.named_parameters()]
    changed = {
        name.split(".")[-2]
        for name, parameter in evaluation.bundle.lm.model.named_parameters()
        if not torch.equal(parameter, trained.bundle.lm.model.get_parameter(name))
    }
    assert changed == {"q_proj", "v_proj"}
    lists = predict(replace(evaluation, training=training), "trsr", 0)
    assert all(len(ranked) == 10 for ranked in lists)


def test_tuning_takes_an_eighth_of_the_steps() -> None:
    schedule = short_schedule(RECIPE.sft)
    assert 1 <= schedule.max_steps <= max(1, RECIPE.sft.max_steps // 8)
    assert 1 <= schedule.evaluate_every <= schedule.max_steps
    assert schedule.learning_rate < RECIPE.sft.learning_rate
