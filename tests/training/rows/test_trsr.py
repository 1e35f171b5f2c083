"""TRSR: summary, then window; a language model tuned for it, once, that leaves the bundle's own alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.bundle import Bundle
from tests.conftest import TITLES, write_bundle
from tests.training.contests import (
    LONG,
    RECIPE,
    SHORT,
    SPLIT,
    TARGETS,
    items_in,
    prompts_of,
    shorten_summariser,
    small_contest,
    with_other_future,
)
from training.lm.packing import packed_loss
from training.rows import trsr
from training.rows.contest import Contest
from training.rows.registry import predict
from training.rows.summary import Request
from training.rows.trsr import Case, row_of, short_schedule, train, training_cases, validation_cases

K, S = 3, 1


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        shorten_summariser(patched)
        yield


@pytest.fixture(scope="module")
def contest(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Contest:
    return small_contest(Bundle.open(bundle_path), tmp_path_factory.mktemp("cache"))


def test_the_prompt_is_a_summary_of_what_is_old_and_the_window(contest: Contest) -> None:
    for example, prompt in zip(contest.examples, prompts_of(contest, "trsr"), strict=True):
        shown, recent = items_in(contest.bundle, SPLIT, prompt), contest.recent(example)
        old = SPLIT.histories[example.user].items[: example.position - K].tolist() if example.position > K else []
        assert shown[-len(recent) :] == recent
        assert len(shown) - len(recent) == min(S, len(old))
        assert set(shown[: -len(recent)]) <= set(old)


def test_the_future_is_not_seen(contest: Contest) -> None:
    prompts = prompts_of(contest, "trsr")
    for target in (SHORT, LONG, *SPLIT.test[:2]):
        (prompt,) = prompts_of(with_other_future(contest, target), "trsr")
        assert prompt == prompts[TARGETS.index(target)], f"{target} depends on what comes later"


def test_it_is_trained_once(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = predict(contest, "trsr", 0)
    monkeypatch.setattr(trsr, "fit", None)
    assert predict(replace(contest, prepared={}), "trsr", 0) == lists, "what was kept on disk says something else"
    with pytest.raises(TypeError):
        predict(replace(contest, prepared={}), "trsr", 1)


def test_titles_that_no_training_knew_do_not_stand_in_the_way(tmp_path: Path) -> None:
    """Their rows appear when first asked for; a model saved with them is read by one that was not asked yet."""
    write_bundle(tmp_path / "b", vocabulary="items", known_titles=TITLES[:-4])
    contests = [small_contest(Bundle.open(tmp_path / "b"), tmp_path / "cache") for _ in range(2)]
    assert predict(contests[0], "trsr", 0) == predict(contests[1], "trsr", 0)


def test_equal_seeds_train_equal_models(contest: Contest, tmp_path: Path) -> None:
    elsewhere = replace(contest.need_workshop(), directory=tmp_path)
    again = train(replace(contest, workshop=elsewhere), 0)
    first = train(contest, 0)
    assert _are_equal(first.bundle.lm.model, again.bundle.lm.model)
    assert _are_equal(first.summariser.chooser, again.summariser.chooser)


def _are_equal(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(each, other.get_parameter(name)) for name, each in module.named_parameters())


def test_the_bundle_stays_as_it_is(contest: Contest, bundle: Bundle) -> None:
    trained = train(contest, 0)
    moved = 0
    originals = dict(bundle.lm.model.named_parameters())
    for name, parameter in contest.bundle.lm.model.named_parameters():
        torch.testing.assert_close(parameter, originals[name], rtol=0, atol=0)
        assert not parameter.requires_grad
        moved += not torch.equal(trained.bundle.lm.model.get_parameter(name), parameter)
    assert moved > 0, "nothing was tuned"


def test_training_reads_the_train_period_and_summaries_of_what_came_before(contest: Contest) -> None:
    trained = train(contest, 0)
    size = trained.summariser.sizes.block
    cases = training_cases(trained, SPLIT, 10_000, any_rng())
    histories = {tuple(history.items.tolist()): history for history in SPLIT.histories}
    assert len(cases) == sum(len(range(0, history.train_end - 1, size)) for history in histories.values())
    for case in cases:
        assert 2 <= len(case.write) <= K + 1
        assert any(_begins(items[: history.train_end], case) for items, history in histories.items()), f"{case}"
    assert len(training_cases(trained, SPLIT, 1, any_rng())) < len(cases), "the limit limits"


def any_rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _begins(items: tuple[int, ...], case: Case) -> bool:
    """Some place of a history where the window stands, with all that was read before it."""
    starts = [at for at in range(len(items)) if list(items[at : at + len(case.write)]) == case.write]
    return any(set(case.read) <= set(items[:at]) and len(case.read) == min(S, at) for at in starts)


def test_validation_is_the_question_of_the_row(contest: Contest) -> None:
    trained = train(contest, 0)
    cases = validation_cases(trained, SPLIT, replace(RECIPE, sft_valid_targets=10_000), 0)
    assert len(cases) == len(SPLIT.valid)
    for target, case in zip(SPLIT.valid, cases, strict=True):
        items = SPLIT.histories[target.user].items.tolist()
        start = max(0, target.position - K)
        summary = trained.summaries(SPLIT, [Request(target.user, start)])[Request(target.user, start)]
        assert case == Case([*summary, *items[start : target.position]], [items[target.position]])


def test_there_is_loss_on_what_is_written_alone(bundle: Bundle) -> None:
    """Cross entropy of the written titles after the read ones, computed by the whole sequence."""
    prompt, lm = bundle.prompt, bundle.lm
    row = row_of(prompt, SPLIT, Case([1, 2], [3, 4]))
    ids = torch.tensor([row.block.tokens])
    log_probs = lm.top(lm.bottom(ids, torch.ones_like(ids)), torch.ones_like(ids)).log_softmax(-1)[0, :-1]
    said = -log_probs.gather(1, ids[0, 1:, None])[:, 0]
    written = sum(len(prompt.title_tokens(SPLIT.titles[item])) for item in (3, 4))
    loss = packed_loss(lm, [row], reduction="sum")
    assert float(loss) == pytest.approx(float(said[-written:].sum()), rel=1e-4)


def test_a_checkpoint_gets_adapters_and_keeps_none(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", architecture="qwen2")
    contest = small_contest(Bundle.open(tmp_path / "bundle"), tmp_path)
    workshop = replace(contest.need_workshop(), model="some/checkpoint")
    trained = train(replace(contest, workshop=workshop), 0)
    names = [name for name, _ in trained.bundle.lm.model.named_parameters()]
    assert names == [name for name, _ in contest.bundle.lm.model.named_parameters()]
    changed = {
        name.split(".")[-2]
        for name, parameter in contest.bundle.lm.model.named_parameters()
        if not torch.equal(parameter, trained.bundle.lm.model.get_parameter(name))
    }
    assert changed == {"q_proj", "v_proj"}
    lists = predict(replace(contest, workshop=workshop), "trsr", 0)
    assert all(len(ranked) == 10 for ranked in lists)


def test_the_tuning_is_short() -> None:
    schedule = short_schedule(RECIPE.sft)
    assert 1 <= schedule.max_steps <= max(1, RECIPE.sft.max_steps // 8)
    assert 1 <= schedule.evaluate_every <= schedule.max_steps
    assert schedule.learning_rate < RECIPE.sft.learning_rate
