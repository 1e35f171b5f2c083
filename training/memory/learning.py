"""How a retriever is trained on annotations (AutoMR, arXiv 2412.17593, eq. 6).

In: annotations and the states of their memories. Out: a trained `Retriever` and how well it retrieves. Two losses:

`kl`        KL(S′ ‖ S), S′ the softmax of the gains over a temperature, with the null slot at gain zero
`marginal`  negative log-likelihood of the truth when the retriever's distribution chooses the memory; no labels
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from model_store.lm.padding import pad, pad_values
from model_store.memory.retriever import Retriever, choose
from training.lm.states import States
from training.memory.annotations import Annotation, AnnotationSet
from training.run.device import seed_everything
from training.run.loop import fit
from training.run.recipes import Recipe
from training.run.stage import atomic_file

RETRIEVER_FILE = "retriever.safetensors"
_ALWAYS_NULL = 1e4  # a null logit that no memory exceeds


class RetrieverBatch(NamedTuple):
    """Annotations of B targets, padded on the right to M memories. Slot 0 of the weights is the null slot."""

    query: Tensor  # (B, D)
    memory: Tensor  # (B, M, D)
    mask: Tensor  # (B, M)
    target_weights: Tensor  # (B, 1 + M)
    gains: Tensor  # (B, M) nats per title


def target_weights(gains: np.ndarray, temperature: float) -> np.ndarray:
    """S′ over (null, memories) from gains (M,): softmax(gain / temperature), the null slot at gain zero."""
    logits = np.concatenate([[0.0], gains]) / temperature
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def collate(annotations: Sequence[Annotation], states: States, form: str, temperature: float) -> RetrieverBatch:
    """`form` and `temperature` make the target weights, see `Annotation.gains` and `target_weights`.

    At least one annotation must have memory.
    """
    memory = pad([torch.from_numpy(each.memory(states)) for each in annotations], side="right")
    weights = [torch.from_numpy(target_weights(each.gains(form), temperature)) for each in annotations]
    gains = [torch.from_numpy(each.log_probs[1:] - each.log_probs[0]) for each in annotations]
    query = np.stack([each.query_state for each in annotations]).astype(np.float32)
    return RetrieverBatch(
        query=torch.from_numpy(query),
        memory=memory.values.float(),
        mask=memory.mask,
        target_weights=pad_values(weights, side="right"),
        gains=pad_values(gains, side="right"),
    )


# --- losses -----------------------------------------------------------------------------------------------------------


def kl_divergence(log_scores: Tensor, target: Tensor) -> Tensor:
    """KL(S′ ‖ S), mean over the batch. Both (B, 1 + M); slots with target weight 0 add nothing."""
    terms = torch.where(target > 0, target * (target.clamp(min=1e-30).log() - log_scores), 0.0)
    return terms.sum(dim=1).mean()


def marginal_loss(log_scores: Tensor, gains: Tensor) -> Tensor:
    """−log Σ_m s_m p(y | z_t, z_m) + log p(y | z_t), mean over the batch.

    `log_scores` (B, 1 + M), `gains` (B, M) in nats per title. The second term is constant and changes no gradient.
    """
    likelihoods = torch.cat([torch.zeros_like(gains[:, :1]), gains], dim=1)
    return -torch.logsumexp(log_scores + likelihoods, dim=1).mean()


def uniform_kl(batch: RetrieverBatch) -> float:
    """The KL loss of uniform scores: the reference that a trained retriever has to beat."""
    present = torch.cat([torch.ones_like(batch.mask[:, :1]), batch.mask], dim=1)
    uniform = (present / present.sum(dim=1, keepdim=True)).log()
    return float(kl_divergence(uniform, batch.target_weights))


def label_entropy(batch: RetrieverBatch) -> float:
    """Mean entropy of the target weights, in nats."""
    return float(torch.special.entr(batch.target_weights).sum(dim=1).mean())


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RetrievalQuality:
    """How well a retriever does on annotated targets with memory; gains in nats per title."""

    gain: float
    oracle_gain: float
    precision_at_1: float
    abstains: float

    @property
    def captured(self) -> float:
        return self.gain / self.oracle_gain if self.oracle_gain > 0 else 0.0


@torch.inference_mode()
def measure_retrieval(retriever: Retriever, batch: RetrieverBatch, top_k: int = 1) -> RetrievalQuality:
    """`gain` sums the single gains of the chosen memories; `oracle_gain` is that of the best one, 0 if none helps."""
    log_scores = retriever(batch.query, batch.memory, batch.mask)
    choice = choose(log_scores, top_k)
    chosen = (batch.gains.gather(1, choice.indices) * choice.mask).sum(dim=1)
    possible = batch.gains.masked_fill(batch.mask == 0, -torch.inf)
    best = possible.max(dim=1)
    helped = best.values > 0
    hit = ((choice.indices == best.indices[:, None]) & (choice.mask == 1)).any(dim=1)
    return RetrievalQuality(
        gain=float(chosen.mean()),
        oracle_gain=float(best.values.clamp(min=0).mean()),
        precision_at_1=float(hit[helped].float().mean()) if helped.any() else 0.0,
        abstains=float((choice.mask.sum(dim=1) == 0).float().mean()),
    )


class Objective(NamedTuple):
    """A loss, `kl` or `marginal`, and the temperature of the labels, which `marginal` ignores."""

    loss: str
    temperature: float


class TrainedRetriever(NamedTuple):
    retriever: Retriever
    quality: RetrievalQuality  # on the annotations that choose
    facts: dict[str, float]  # losses on the annotations that choose, and the entropy of their labels


def fit_retriever(
    annotated: AnnotationSet, recipe: Recipe, *, temperature: float, seed: int, checkpoints: Path, loss: str = "kl"
) -> TrainedRetriever:
    """Trains one retriever with one objective, with an early stop by those that choose. All must have memory."""
    seed_everything(seed)
    retriever = Retriever(annotated.states.hidden_size, width=recipe.retriever_width, has_null=True)
    choosing = collate(annotated.choose, annotated.states, recipe.gain_form, temperature)

    def loss_of(batch: RetrieverBatch) -> Tensor:
        log_scores = retriever(batch.query, batch.memory, batch.mask)
        if loss == "marginal":
            return marginal_loss(log_scores, batch.gains)
        return kl_divergence(log_scores, batch.target_weights)

    def loss_at(step: int) -> Tensor:
        rows = np.random.default_rng((seed, step)).integers(len(annotated.teach), size=recipe.retriever_batch)
        return loss_of(collate([annotated.teach[row] for row in rows], annotated.states, recipe.gain_form, temperature))

    @torch.inference_mode()
    def validate() -> float:
        return float(loss_of(choosing))

    parameters = dict(retriever.named_parameters())
    label = f"retriever {loss} τ={temperature:g}"
    state = fit(parameters, loss_at, validate, recipe.retriever, checkpoints=checkpoints, label=label, seed=seed)
    retriever.eval()
    facts = {
        f"valid_{loss}": state.best_loss,
        "uniform_kl": uniform_kl(choosing),
        "label_entropy": label_entropy(choosing),
    }
    return TrainedRetriever(retriever, measure_retrieval(retriever, choosing), facts)


@torch.no_grad()
def make_abstainer(retriever: Retriever) -> Retriever:
    """Changes `retriever` in place so that its null slot always wins, and returns it."""
    retriever.null.weight.zero_()
    retriever.null.bias.fill_(_ALWAYS_NULL)
    return retriever


def save_retriever(retriever: Retriever, directory: Path) -> None:
    with atomic_file(directory / RETRIEVER_FILE) as draft:
        save_file(retriever.state_dict(), draft)
