"""SASRec learns chains; its losses equal plain arithmetic; its batches and results can be repeated."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.training.worlds import chain, top_of_test, world
from training.data.splits import Split, Target
from training.items.scoring import true_items
from training.rows import sasrec
from training.rows.sasrec import SasrecTrainer, fit_sasrec, item_start
from training.rows.sasrec_batches import SasrecBatches
from training.rows.sasrec_network import (
    SasrecNetwork,
    SasrecSettings,
    binary_loss,
    recency_bias,
    sampled_softmax_loss,
    sasrec_scores,
    softmax_loss,
)
from training.run.loop import Schedule, fit, torch_seed
from training.run.stage import StageError, read_certificate

CPU = torch.device("cpu")
SMALL = SasrecSettings(
    width=32,
    dropouts=(0.1,),
    batch_tokens=512,
    num_negatives=16,
    valid_targets=60,
    schedule=Schedule(max_steps=240, learning_rate=1e-2, warmup_steps=10, evaluate_every=80),
)
BRIEF = replace(SMALL, schedule=Schedule(max_steps=4, learning_rate=1e-2, evaluate_every=2))


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("bce", SMALL),
        ("strong", SMALL),
        ("strong", replace(SMALL, max_softmax_items=0)),
        ("titles", replace(SMALL, max_softmax_items=0)),
    ],
    ids=["bce", "softmax", "sampled", "titles"],
)
def test_sasrec_learns_a_chain_that_popularity_cannot(loss: str, settings: SasrecSettings, tmp_path: Path) -> None:
    split = chain()
    scorer = fit_sasrec(split, loss, seed=0, directory=tmp_path, device=CPU, settings=settings)
    firsts = [ranked[0] for ranked in top_of_test(scorer, split, num=1)]
    hits = np.mean(np.array(firsts) == true_items(split, split.test))
    popular = np.mean(true_items(split, split.test) == split.popularity.argmax())
    assert hits > 0.9, f"the successor is first in only {hits:.0%} of the targets"
    assert popular < 0.15, "popularity must not help in this world"


def test_sampled_softmax_over_all_items_is_the_softmax() -> None:
    states, items = torch.randn(6, 8), torch.randn(20, 8)
    true_rows = torch.arange(6)
    sampled = sampled_softmax_loss(states, items, true_rows, torch.arange(20), torch.zeros(20))
    torch.testing.assert_close(sampled, softmax_loss(states, items, true_rows), rtol=0.02, atol=0.02)  # bf16 products


def test_sampled_softmax_estimates_the_softmax() -> None:
    torch.manual_seed(0)
    states, items, true_rows = torch.randn(4, 8), 0.3 * torch.randn(50, 8), torch.arange(4)
    proposal = functional.normalize(torch.rand(50) + 0.1, p=1, dim=0)
    drawn = torch.multinomial(proposal, 20000, replacement=True)
    sampled = sampled_softmax_loss(states, items, true_rows, drawn, (20000 * proposal[drawn]).log())
    torch.testing.assert_close(sampled, softmax_loss(states, items, true_rows), rtol=0.03, atol=0.03)


def test_binary_loss_is_the_published_one_and_ignores_negatives_that_are_not_kept() -> None:
    states, items = torch.randn(3, 4), torch.randn(9, 4)
    positive, negative = torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7])
    found = binary_loss(states, items, positive, negative, torch.tensor([True, False, True]))
    logits = states @ items.T
    own, other = logits[torch.arange(3), positive], logits[torch.arange(3), negative]
    expected = -own.sigmoid().log().mean() - (1 - other[[0, 2]].sigmoid()).log().mean()
    torch.testing.assert_close(found, expected)


def test_states_do_not_depend_on_later_items_or_padding() -> None:
    torch.manual_seed(0)
    network = SasrecNetwork(30, SMALL, 0.0, is_recency_biased=True).eval()
    items = torch.randint(30, (2, 10))
    states = network(items)
    changed = items.clone()
    changed[:, 6:] = 0
    torch.testing.assert_close(network(changed)[:, :6], states[:, :6], msg="a later item changed an earlier state")
    torch.testing.assert_close(network(items[:, :6]), states[:, :6], msg="padding changed a state")


def test_scores_do_not_depend_on_the_other_targets_of_a_batch() -> None:
    split = world([list(range(30)), [3, 1, 2]], train_ends=[10, 2])
    torch.manual_seed(0)
    network = SasrecNetwork(30, SMALL, 0.3, is_recency_biased=False)
    targets = [Target(0, 25), Target(1, 2), Target(0, 11)]
    together = sasrec_scores(network, split, targets, 100)
    alone = np.concatenate([sasrec_scores(network, split, [target], 100) for target in targets])
    np.testing.assert_allclose(together, alone, atol=1e-5, err_msg="a batch's padding changed scores")


def test_an_epoch_has_every_transition_of_short_histories_and_nothing_after_the_cut() -> None:
    split = world([[0, 1, 2, 3], [4, 5, 6], list(range(10, 60)), [7]], train_ends=[3, 3, 50, 1])
    batches = SasrecBatches(split, max_length=8, batch_tokens=16, seed=0)
    pairs: list[tuple[int, int]] = []
    for step in range(batches.num_batches):
        items, following, mask = batches(step)
        assert items.numel() <= 16, f"a batch of {items.numel()} places"
        pairs += zip(items[mask].tolist(), following[mask].tolist(), strict=True)
    assert sorted(pair for pair in pairs if pair[0] < 10) == [(0, 1), (1, 2), (4, 5), (5, 6)]
    assert all(after == before + 1 for before, after in pairs), "an item is paired with an item that does not follow it"
    assert len([pair for pair in pairs if pair[0] >= 10]) == 7 * 8, "49 transitions take seven crops of eight"


def test_a_batch_depends_on_the_step_only() -> None:
    split = chain()
    other = SasrecBatches(split, max_length=4, batch_tokens=64, seed=1)
    steps = [0, 1, 70, 3]
    first, again = (SasrecBatches(split, max_length=4, batch_tokens=64, seed=0) for _ in range(2))
    forward = {step: first(step) for step in steps}
    for step in reversed(steps):
        for left, right in zip(forward[step], again(step), strict=True):
            assert torch.equal(left, right), f"step {step} depends on the order of the calls"
    assert not torch.equal(forward[0][0], other(0)[0]), "another seed must give other batches"


def test_scores_depend_on_the_seed_only_and_a_second_call_loads_the_model(tmp_path: Path) -> None:
    split = chain()

    def scores(name: str, seed: int) -> np.ndarray:
        return fit_sasrec(split, "strong", seed=seed, directory=tmp_path / name, device=CPU, settings=BRIEF)(split.test)

    first = scores("a", 0)
    weights = tmp_path / "a" / "seed-0" / "sasrec.safetensors"
    written = weights.stat().st_mtime_ns
    np.testing.assert_array_equal(
        scores("a", 0), first, err_msg="the saved model gives other scores than the trained one"
    )
    assert weights.stat().st_mtime_ns == written, "the model was trained again"
    np.testing.assert_array_equal(scores("b", 0), first, err_msg="the same seed must give the same model")
    assert not np.array_equal(scores("c", 1), first), "another seed must give another model"


def test_dropout_is_chosen_once_for_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, float]] = []

    class CountingTrainer(SasrecTrainer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            trained.append((options["seed"], options["dropout"]))
            super().__init__(*arguments, **options)

    monkeypatch.setattr(sasrec, "SasrecTrainer", CountingTrainer)
    settings = replace(BRIEF, dropouts=(0.0, 0.5))

    def fit(seed: int, settings: SasrecSettings = settings) -> None:
        fit_sasrec(chain(), "strong", seed=seed, directory=tmp_path, device=CPU, settings=settings)

    fit(2)
    assert trained[:2] == [(0, 0.0), (0, 0.5)], "seed 0 tries all dropouts first, whatever seed is asked for"
    (chosen,) = {dropout for seed, dropout in trained if seed == 2}
    for seed in (0, 1):
        fit(seed)
    assert trained[2:] == [(2, chosen), (1, chosen)], (
        "the other seeds use the chosen dropout, and no model is trained twice"
    )


def test_an_interrupted_run_ends_with_the_same_network(tmp_path: Path) -> None:
    split = chain()

    def trained(checkpoints: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        trainer = SasrecTrainer(split, "strong", BRIEF, dropout=0.1, seed=0, device=CPU)
        plain = trainer.loss_at

        def interrupted(step: int) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            return plain(step)

        trainer.loss_at = interrupted  # type: ignore[method-assign]
        trainer.fit(checkpoints)
        return trainer.network.state_dict()

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", stop_at=3)
    resumed, whole = trained(tmp_path / "cut"), trained(tmp_path / "whole")
    for name, tensor in resumed.items():
        assert torch.equal(tensor, whole[name]), f"{name} differs after a resume"


def test_recency_bias_forbids_the_future_and_prefers_the_recent() -> None:
    bias = recency_bias(SMALL, True)[0]
    assert torch.isneginf(bias[:, 2, 3:]).all(), "the future is open"
    assert bias[:, 5, 5].eq(0).all() and bias[-1, 5, :6].eq(0).all(), "the present and the last head lose nothing"
    assert (bias[0, 5, 1:6] > bias[0, 5, :5]).all(), "an older event must lose more"
    assert recency_bias(SMALL, False)[0][:, 5, :6].eq(0).all(), "the published network has no bias"


def test_a_train_period_without_transitions_is_told() -> None:
    with pytest.raises(StageError, match="two events"):
        SasrecBatches(world([[0, 1], [2, 1]], train_ends=[1, 1]), max_length=8, batch_tokens=16, seed=0)


# --- titles -------------------------------------------------------------------------------------------------------


def sequels() -> Split:
    """After "name one" every user has "name two", except for the last five names: their sequels are not in training."""
    names = [
        f"{first}{second}" for first in ("ash", "birch", "cedar", "elm", "fir") for second in ("hill", "lake", "ton")
    ]
    titles = [f"{name} {part}" for name in names for part in ("one", "two")]
    known, new = len(names) - 5, range(len(names) - 5, len(names))
    rng = np.random.default_rng(0)
    trained = [
        [place for name in rng.permutation(known)[:6].tolist() for place in (2 * name, 2 * name + 1)] for _ in range(40)
    ]
    later = [[*rng.permutation(2 * known)[:4].tolist(), 2 * name, 2 * name + 1] for name in new for _ in range(4)]
    split = world([*trained, *later], train_ends=[12] * 40 + [5] * len(later))
    return replace(split, titles=titles, test=split.valid + split.test)


def test_titles_tell_items_apart_that_are_not_in_training(tmp_path: Path) -> None:
    """How often the true sequel has the highest score of the five new ones; by chance in one of five cases."""
    split = sequels()
    schedule = Schedule(max_steps=120, learning_rate=1e-2, warmup_steps=10, evaluate_every=120)
    settings, new = replace(SMALL, schedule=schedule), np.flatnonzero(split.popularity == 0)
    hits: dict[str, list[float]] = {"strong": [], "titles": []}
    for variant, found in hits.items():
        for seed in range(2):  # one short training alone varies by a fifth
            directory = tmp_path / variant
            scorer = fit_sasrec(split, variant, seed=seed, directory=directory, device=CPU, settings=settings)
            best = new[scorer(split.test)[:, new].argmax(axis=1)]
            found.append(float((best == true_items(split, split.test)).mean()))
    assert np.mean(hits["titles"]) > 0.5 > np.mean(hits["strong"]), hits


def test_items_that_are_not_in_training_have_the_vector_of_their_title_only() -> None:
    split = sequels()
    start = item_start(split, "titles", SMALL, 0)
    trainer = SasrecTrainer(split, "titles", SMALL, dropout=0.1, seed=0, device=CPU, start=start)
    items, is_new = trainer.network.items, torch.from_numpy(split.popularity == 0)
    with torch.no_grad():
        before = items.table()[is_new]
        items.embedding.weight += 1
        torch.testing.assert_close(items.table()[is_new], before)
        assert not torch.equal(items.table()[~is_new][0], items.features[~is_new][0])
    torch.testing.assert_close(items(torch.arange(30)), items.table())
    trainer.loss_at(0).backward()
    assert items.from_title is not None and items.from_title.weight.grad is not None


def test_left_out_items_are_not_in_the_softmax() -> None:
    states, items = torch.randn(3, 4), torch.randn(9, 4)
    left_out = torch.arange(9) >= 6
    found = softmax_loss(states, items, torch.arange(3), left_out)
    torch.testing.assert_close(found, softmax_loss(states, items[:6], torch.arange(3)), rtol=0.02, atol=0.02)


# --- the end of training, and seeds -------------------------------------------------------------------------------


def facts_of(directory: Path, settings: SasrecSettings, variant: str = "strong") -> dict[str, Any]:
    fit_sasrec(chain(), variant, seed=0, directory=directory, device=CPU, settings=settings)
    return read_certificate(directory / "seed-0")


def test_the_certificate_says_whether_training_ended_by_itself(tmp_path: Path) -> None:
    patient = Schedule(max_steps=400, learning_rate=1e-2, warmup_steps=10, evaluate_every=20, patience=2)
    ended = facts_of(tmp_path / "ended", replace(SMALL, schedule=patient))
    cut = facts_of(tmp_path / "cut", BRIEF)
    assert ended["stopped_early"] is True and cut["stopped_early"] is False
    assert ended["steps"] < 400 and cut["steps"] == 5, "four steps, and one at a falling rate"
    num_batches = SasrecBatches(chain(), max_length=100, batch_tokens=512, seed=0).num_batches
    assert cut["epochs"] == pytest.approx(5 / num_batches, abs=0.05)


def test_a_choice_of_dropout_at_the_end_of_its_grid_is_told(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, replace(BRIEF, dropouts=(0.0, 0.5)))
    assert facts["at_grid_end"] == {"dropout": facts["settings"]["dropout"]}


@pytest.mark.parametrize("settings", [SMALL, replace(SMALL, max_softmax_items=0)], ids=["softmax", "sampled"])
def test_seeds_differ_in_dropout_and_negatives(settings: SasrecSettings) -> None:
    """The same weights and the same batch have another loss at each seed: only what torch draws differs."""
    trainer = SasrecTrainer(chain(), "strong", settings, dropout=0.3, seed=0, device=CPU)

    def loss(seed: int, step: int) -> float:
        torch.manual_seed(torch_seed(seed, step))  # as `fit` does
        return trainer.loss_at(0).item()

    assert len({loss(seed, 0) for seed in (0, 1, 2)}) == 3
    assert loss(1, 0) == loss(1, 0)


def test_the_loop_gets_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(options["seed"])
        return fit(*arguments, **options)

    monkeypatch.setattr("training.rows.sasrec.fit", spy)
    SasrecTrainer(chain(), "bce", BRIEF, dropout=0.1, seed=7, device=CPU).fit(tmp_path)
    assert seen == [7, 7]
