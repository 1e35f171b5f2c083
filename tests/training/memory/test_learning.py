"""Losses and labels by hand; a retriever learns which memories help, and abstains where none does."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model_store.memory.retriever import Retriever
from tests.training.annotation_worlds import D, annotated, annotation, learnable, states_of
from tests.training.small import TINY
from training.memory import learning
from training.memory.annotations import Annotation
from training.memory.learning import (
    RetrievalQuality,
    RetrieverBatch,
    collate,
    fit_retriever,
    kl_divergence,
    label_entropy,
    measure_retrieval,
    target_weights,
    uniform_kl,
)
from training.run.loop import Schedule

LEARNS = replace(
    TINY,
    retriever=Schedule(max_steps=150, learning_rate=5e-3, warmup_steps=10, evaluate_every=50),
    retriever_batch=64,
    retriever_width=64,
)


# --- the loss -----------------------------------------------------------------------------------------------------


def distributions(seed: int, holes: bool) -> tuple[Tensor, Tensor]:
    """Log-scores and targets (4, 6). With `holes` the last slots of one row are padding."""
    generator = torch.Generator().manual_seed(seed)
    logits, wanted = torch.randn(2, 4, 6, generator=generator).unbind()
    if holes:
        logits[1, 3:], wanted[1, 3:] = -torch.inf, -torch.inf
    return logits.log_softmax(dim=1), wanted.softmax(dim=1)


@given(st.integers(0, 1000), st.booleans())
def test_kl_is_zero_for_equal_distributions_and_never_negative(seed: int, holes: bool) -> None:
    log_scores, target = distributions(seed, holes)
    assert float(kl_divergence(target.log(), target)) == pytest.approx(0, abs=1e-6)
    assert float(kl_divergence(log_scores, target)) >= 0


def test_kl_by_hand() -> None:
    log_scores, target = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.5, 0.5, 0.0]])
    assert float(kl_divergence(log_scores, target)) == pytest.approx(0.5 * math.log(2))


def test_padding_gets_no_gradient() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    masked = logits.masked_fill(torch.tensor([[False, False, True]]), -torch.inf)
    kl_divergence(masked.log_softmax(dim=1), torch.tensor([[0.7, 0.3, 0.0]])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert float(logits.grad[0, 2]) == 0


# --- labels -------------------------------------------------------------------------------------------------------


def test_labels_by_hand() -> None:
    weights = target_weights(np.array([0.1, -0.2]), temperature=0.1)
    expected = np.exp([0, 1, -2]) / np.exp([0, 1, -2]).sum()
    assert weights.tolist() == pytest.approx(expected.tolist(), abs=1e-6), "slot 0 is the null slot, at gain zero"


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0.01, 2))
def test_labels_are_a_distribution_in_the_order_of_the_gains(gains: list[float], temperature: float) -> None:
    weights = target_weights(np.array(gains), temperature)
    assert weights.sum() == pytest.approx(1, abs=1e-4)
    assert (weights >= 0).all()
    assert weights.argmax() == 0 or gains[weights.argmax() - 1] == max(gains)
    if max(gains) < 0:
        assert weights.argmax() == 0, "no memory helps, but the label prefers one"


def test_batches_are_padded_and_their_gains_are_in_nats_per_title() -> None:
    states = states_of([np.ones((2, D)), np.full((4, D), 2.0)])
    rows = [annotation(0, np.zeros(D), np.array([1.0, -1.0]), num_tokens=3), annotation(1, np.ones(D), np.zeros(4))]
    batch = collate(rows, states, "log_gain", temperature=0.5)
    assert batch.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.memory[0].sum(dim=1).tolist() == [D, D, 0, 0]
    assert batch.gains[0].tolist() == pytest.approx([3, -3, 0, 0])
    expected = target_weights(np.array([1.0, -1.0]), 0.5)
    assert batch.target_weights[0].tolist() == pytest.approx([*expected.tolist(), 0, 0])
    assert batch.target_weights[1].tolist() == pytest.approx([0.2] * 5)


def test_uniform_loss_and_entropy_by_hand() -> None:
    states = states_of([np.ones((1, D)), np.ones((3, D))])
    even = [annotation(user, np.zeros(D), np.zeros(count)) for user, count in ((0, 1), (1, 3))]
    batch = collate(even, states, "log_gain", 0.1)
    assert uniform_kl(batch) == pytest.approx(0, abs=1e-6), "with equal gains uniform scores are right"
    assert label_entropy(batch) == pytest.approx((math.log(2) + math.log(4)) / 2)
    sure = collate([annotation(1, np.zeros(D), np.array([9.0, -9.0, -9.0]))], states, "log_gain", 0.1)
    assert uniform_kl(sure) == pytest.approx(math.log(4), abs=1e-5)
    assert label_entropy(sure) == pytest.approx(0, abs=1e-5)


# --- retrieval quality -------------------------------------------------------------------------------------------


class Fixed(Retriever):
    """A retriever with given scores."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__(D, width=2)
        self.log_scores = torch.tensor(logits, dtype=torch.float32).log_softmax(dim=1)

    def forward(self, query_state: Tensor, memory_states: Tensor, mask: Tensor) -> Tensor:
        return self.log_scores


def test_quality_by_hand() -> None:
    """Four targets: takes the best memory, takes a bad one, abstains rightly, abstains wrongly."""
    gains = torch.tensor([[2.0, 1.0], [-1.0, 0.5], [-1.0, -2.0], [1.0, 0.0]])
    batch = RetrieverBatch(torch.zeros(4, D), torch.zeros(4, 2, D), torch.ones(4, 2), torch.zeros(4, 3), gains)
    quality = measure_retrieval(Fixed([[0, 2, 1], [0, 2, -9], [1, 0, 0], [1, 0, 0]]), batch)
    assert quality.gain == pytest.approx((2 - 1 + 0 + 0) / 4)
    assert quality.oracle_gain == pytest.approx((2 + 0.5 + 0 + 1) / 4)
    assert quality.precision_at_1 == pytest.approx(1 / 3), "of the three targets that some memory helps"
    assert quality.abstains == pytest.approx(2 / 4)
    assert quality.captured == pytest.approx(1 / 3.5)
    assert RetrievalQuality(0.1, 0, 0, 0).captured == 0


# --- learning -----------------------------------------------------------------------------------------------------


def fresh_quality(retriever: Retriever, *, helps: bool) -> RetrievalQuality:
    found, memories = learnable(200, np.random.default_rng(7), helps=helps)
    return measure_retrieval(retriever, collate(found, states_of(memories), "log_gain", 0.1))


def test_a_trained_retriever_finds_the_right_memory(tmp_path: Path) -> None:
    trained = fit_retriever(annotated(1000, helps=True), LEARNS, temperature=0.1, seed=0, checkpoints=tmp_path)
    torch.manual_seed(3)
    untrained = fresh_quality(Retriever(D, width=64), helps=True)
    quality = fresh_quality(trained.retriever, helps=True)
    assert quality.precision_at_1 >= 0.9, f"found {quality.precision_at_1:.0%} of the right memories"
    assert quality.captured >= 0.8
    assert untrained.precision_at_1 <= 0.3, "an untrained retriever solves the task, so the test proves nothing"
    assert trained.facts["valid_kl"] < 0.5 * trained.facts["uniform_kl"]


def test_a_trained_retriever_abstains_where_nothing_helps(tmp_path: Path) -> None:
    trained = fit_retriever(annotated(200, helps=False), LEARNS, temperature=0.1, seed=0, checkpoints=tmp_path)
    assert fresh_quality(trained.retriever, helps=False).abstains >= 0.9


def test_equal_seeds_train_equal_retrievers(tmp_path: Path) -> None:
    data, recipe = annotated(50, helps=True), replace(LEARNS, retriever=Schedule(max_steps=5, learning_rate=1e-3))
    one, same, other = (
        fit_retriever(
            data, recipe, temperature=0.1, seed=seed, checkpoints=tmp_path / name
        ).retriever.null.weight.tolist()
        for seed, name in ((0, "one"), (0, "same"), (1, "other"))
    )
    assert one == same
    assert one != other


def test_everything_that_is_random_depends_on_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The initial weights and the batches, each alone."""
    data, drawn = annotated(50, helps=True), list[list[int]]()

    def watched(annotations: list[Annotation], *rest: object) -> RetrieverBatch:
        drawn.append([each.user for each in annotations])
        return collate(annotations, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(learning, "collate", watched)
    still = replace(LEARNS, retriever=Schedule(max_steps=1, learning_rate=0.0))
    starts = []
    for seed in (0, 1):
        trained = fit_retriever(data, still, temperature=0.1, seed=seed, checkpoints=tmp_path / str(seed))
        starts.append(trained.retriever.state_dict()["query.0.weight"].tolist())
    assert starts[0] != starts[1], "both seeds start from the same weights"
    batches = [users for users in drawn if len(users) == still.retriever_batch]
    assert len(batches) == 2 and batches[0] != batches[1], "both seeds draw the same batches"


@pytest.mark.parametrize("stop_before", [3, 5])
def test_a_resumed_training_equals_an_uninterrupted_one(
    stop_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, recipe = annotated(50, helps=True), replace(LEARNS, retriever=TINY.retriever)
    assert recipe.retriever_batch != len(data.choose)
    batches = 0

    def stopping(annotations: list[Annotation], *rest: object) -> RetrieverBatch:
        nonlocal batches
        batches += len(annotations) == recipe.retriever_batch
        if batches == stop_before + 1:
            raise KeyboardInterrupt
        return collate(annotations, *rest)  # type: ignore[arg-type]

    def trained(name: str) -> list[list[float]]:
        found = fit_retriever(data, recipe, temperature=0.1, seed=3, checkpoints=tmp_path / name)
        weights: list[list[float]] = found.retriever.state_dict()["query.0.weight"].tolist()
        return weights

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(learning, "collate", stopping)
        trained("cut")
    assert trained("cut") == trained("whole")


# --- the stage ----------------------------------------------------------------------------------------------------
