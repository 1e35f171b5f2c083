"""The marginal likelihood as a loss: its value, its minimum, and that a retriever learns from it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.small import TINY
from training.lm.states import States
from training.memory.annotations import Annotation, AnnotationSet
from training.memory.learning import collate, fit_retriever, marginal_loss
from training.run.loop import Schedule
from training.studies.labels import first_gains

D, M = 8, 5


def test_the_loss_is_the_likelihood_of_the_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    log_scores = torch.randn(3, 1 + M, generator=generator).log_softmax(dim=1)
    log_probs = -5 * torch.rand(3, 1 + M, generator=generator)
    mixture = (log_scores.exp() * log_probs.exp()).sum(dim=1).log() - log_probs[:, 0]
    loss = marginal_loss(log_scores, log_probs[:, 1:] - log_probs[:, :1])
    assert float(loss) == pytest.approx(-float(mixture.mean()), abs=1e-5)


def test_the_loss_is_zero_for_the_null_slot_and_smallest_for_the_best_memory() -> None:
    gains = torch.tensor([[-1.0, 2.0, 0.5]])

    def certain_of(slot: int) -> torch.Tensor:
        return torch.where(torch.arange(4) == slot, 0.0, -torch.inf)[None]

    losses = [float(marginal_loss(certain_of(slot), gains)) for slot in range(4)]
    assert losses == pytest.approx([0.0, 1.0, -2.0, -0.5])


def test_padding_has_no_effect_and_gradients_are_finite() -> None:
    scores = torch.zeros(1, 3, requires_grad=True)
    padded = torch.cat([scores.log_softmax(dim=1), torch.full((1, 1), -torch.inf)], dim=1)
    loss = marginal_loss(padded, torch.tensor([[1.0, -1.0, 0.0]]))
    loss.backward()
    alone = marginal_loss(scores.detach().log_softmax(dim=1), torch.tensor([[1.0, -1.0]]))
    assert float(loss.detach()) == pytest.approx(float(alone))
    assert scores.grad is not None and torch.isfinite(scores.grad).all()


def test_a_retriever_learns_from_the_loss(tmp_path: Path) -> None:
    """The memory similar to the query helps, the others hurt. Half of the targets have no memory that helps."""
    annotated = world()
    recipe = replace(
        TINY,
        retriever=Schedule(max_steps=300, learning_rate=1e-2, evaluate_every=50, patience=10),
        retriever_batch=32,
        retriever_width=32,
    )
    trained = fit_retriever(
        annotated, recipe, loss="marginal", temperature=1.0, seed=0, checkpoints=tmp_path / "checkpoints"
    )
    gains = first_gains(trained.retriever, collate(annotated.choose, annotated.states, "log_gain", 1.0))
    assert gains.mean() == pytest.approx(trained.quality.gain, abs=1e-5)
    assert trained.quality.captured > 0.8, trained.quality


def world(num_targets: int = 300) -> AnnotationSet:
    rng = np.random.default_rng(0)
    codes = 3 * np.eye(D)
    annotations, arrays = [], {}
    for user in range(num_targets):
        kinds = rng.permutation(D)[:M]
        wanted = int(kinds[0]) if user % 2 else int(next(kind for kind in range(D) if kind not in kinds))
        order = rng.permutation(M)
        gains = np.where(kinds == wanted, 2.0, -1.0)[order]
        arrays[user] = (codes[kinds[order]] + 0.05 * rng.normal(size=(M, D))).astype(np.float16)
        annotations.append(
            Annotation(
                user=user,
                position=20,
                memory_positions=np.arange(M),
                query_state=(codes[wanted] + 0.05 * rng.normal(size=D)).astype(np.float16),
                log_probs=np.concatenate([[-6.0], -6.0 + gains]).astype(np.float32),
                num_tokens=3,
            )
        )
    return AnnotationSet(annotations[:-80], annotations[-80:], [], States(D, dict.fromkeys(arrays, 0), arrays))
