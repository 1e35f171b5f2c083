"""Stage 3: teach the retriever to find what the language model said would help (AutoMR, arXiv 2412.17593, eq. 6).

In: annotations, the states of memories, item neighbours. Out: `retriever.safetensors`. The loss is KL(S′ ‖ S) with S′
the softmax of the gains over a temperature, the null slot at gain zero. Loss, temperature and number of memories are
those that gain most on the valid period, counted as the NDCG@10 that the chosen memories add together to the forecast
as it is served, or, where an item is several tokens, as their log-probability. Where even that gain is not more than
two standard errors, the retriever is made to abstain always: memory that does not pay must not be shown.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from model_store.memory.retriever import Retriever, choose
from model_store.neighbors import Mixture
from training.annotate import Annotated, read_annotated
from training.data.splits import Split
from training.lm.backbone import open_backbone
from training.lm.windows import Windows
from training.memory.labels import Batch, collate
from training.memory.selection import Gains, pays, valid_gains
from training.mixture import read_mixture
from training.run.inputs import load_inputs
from training.run.loop import fit
from training.run.recipes import Recipe, get_recipe
from training.run.stage import (
    begin,
    digest,
    finish,
    is_done,
    pick_device,
    read_certificate,
    run_stage,
    seed_everything,
    stage_parser,
    whole_file,
)

RETRIEVER_FILE = "retriever.safetensors"
_SELECTION = 5  # how it is chosen: since 5, two standard errors pay; since 4, by the ranking that is served
_ALWAYS = 1e4  # a null logit that no memory beats


def kl_divergence(log_scores: Tensor, target: Tensor) -> Tensor:
    """KL(S′ ‖ S), mean over the batch. Both (B, 1 + M); slots without target weight count nothing."""
    terms = torch.where(target > 0, target * (target.clamp(min=1e-30).log() - log_scores), 0.0)
    return terms.sum(dim=1).mean()


def marginal_loss(log_scores: Tensor, gains: Tensor) -> Tensor:
    """−log Σ_m s_m p(y | z_t, z_m), less the same without memory; mean over the batch.

    `log_scores` (B, 1 + M), `gains` (B, M) nats per title. Taking off what no memory gives changes no gradient.
    """
    likelihoods = torch.cat([torch.zeros_like(gains[:, :1]), gains], dim=1)
    return -torch.logsumexp(log_scores + likelihoods, dim=1).mean()


@dataclass(frozen=True)
class Quality:
    """How well retrieval does on annotated targets with memory; gains in nats per title."""

    gain: float
    oracle_gain: float
    precision_at_1: float
    abstains: float

    @property
    def captured(self) -> float:
        return self.gain / self.oracle_gain if self.oracle_gain > 0 else 0.0


@torch.inference_mode()
def judge(retriever: Retriever, batch: Batch, top_k: int = 1) -> Quality:
    """`gain` adds up the single gains of the chosen; `oracle_gain` is that of the best element, or none."""
    log_scores = retriever(batch.query, batch.memory, batch.mask)
    choice = choose(log_scores, top_k)
    chosen = (batch.gains.gather(1, choice.indices) * choice.mask).sum(dim=1)
    possible = batch.gains.masked_fill(batch.mask == 0, -torch.inf)
    best = possible.max(dim=1)
    helped = best.values > 0
    hit = ((choice.indices == best.indices[:, None]) & (choice.mask == 1)).any(dim=1)
    return Quality(
        gain=float(chosen.mean()),
        oracle_gain=float(best.values.clamp(min=0).mean()),
        precision_at_1=float(hit[helped].float().mean()) if helped.any() else 0.0,
        abstains=float((choice.mask.sum(dim=1) == 0).float().mean()),
    )


class Teaching(NamedTuple):
    """Which loss, at which temperature of the labels."""

    loss: str
    temperature: float


class Training(NamedTuple):
    retriever: Retriever
    quality: Quality
    facts: dict[str, float]


def train(
    annotated: Annotated, recipe: Recipe, *, temperature: float, seed: int, checkpoints: Path, loss: str = "kl"
) -> Training:
    """One retriever, by one loss and at one temperature (which "marginal" ignores); all annotations have memory."""
    seed_everything(seed)
    retriever = Retriever(annotated.states.hidden_size, width=recipe.retriever_width, has_null=True)
    valid = collate(annotated.valid, annotated.states, recipe.gain_form, temperature)

    def loss_of(batch: Batch) -> Tensor:
        log_scores = retriever(batch.query, batch.memory, batch.mask)
        if loss == "marginal":
            return marginal_loss(log_scores, batch.gains)
        return kl_divergence(log_scores, batch.target_weights)

    def loss_at(step: int) -> Tensor:
        rows = np.random.default_rng((seed, step)).integers(len(annotated.train), size=recipe.retriever_batch)
        return loss_of(collate([annotated.train[row] for row in rows], annotated.states, recipe.gain_form, temperature))

    @torch.inference_mode()
    def validate() -> float:
        return float(loss_of(valid))

    parameters = dict(retriever.named_parameters())
    label = f"retriever {loss} τ={temperature:g}"
    state = fit(parameters, loss_at, validate, recipe.retriever, checkpoints=checkpoints, label=label)
    retriever.eval()
    facts = {
        f"valid_{loss}": state.best_loss,
        "uniform_kl": uniform_kl(valid),
        "label_entropy": entropy(valid),
    }
    return Training(retriever, judge(retriever, valid), facts)


def uniform_kl(batch: Batch) -> float:
    """The loss of a retriever that knows nothing: without it beside, a loss says little."""
    present = torch.cat([torch.ones_like(batch.mask[:, :1]), batch.mask], dim=1)
    uniform = (present / present.sum(dim=1, keepdim=True)).log()
    return float(kl_divergence(uniform, batch.target_weights))


def entropy(batch: Batch) -> float:
    """Of the labels, in nats, mean over the batch."""
    return float(torch.special.entr(batch.target_weights).sum(dim=1).mean())


def stage_key(upstream: Sequence[dict[str, Any]], recipe: Recipe, seed: int) -> str:
    """Changes with everything that changes the retriever. `upstream`: certificates of annotations and mixture."""
    network = [recipe.retriever, recipe.retriever_batch, recipe.retriever_width, recipe.retriever_losses]
    return digest([_SELECTION, upstream, *network, recipe.gain_form, recipe.label_temperatures, recipe.top_ks, seed])


def run(
    split: Split,
    out: Path,
    *,
    annotations_dir: Path,
    backbone_dir: Path,
    recipe: Recipe,
    inputs: str,
    mixture: Mixture | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Returns the certificate; does nothing when the stage is done already."""
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    annotated = read_annotated(annotations_dir).with_memory()
    if not annotated.train or not annotated.valid:
        return _untrained(out, inputs, annotated.states.hidden_size, recipe)
    trained = {
        teaching: train(
            annotated,
            recipe,
            loss=teaching.loss,
            temperature=teaching.temperature,
            seed=seed,
            checkpoints=out / f"checkpoints-{inputs}-{teaching.loss}-{teaching.temperature}",
        )
        for teaching in _teachings(recipe)
    }
    backbone = open_backbone(backbone_dir, pick_device(device))
    windows = Windows(split, backbone.prompt, recipe.max_memory)
    retrievers = {teaching: each.retriever for teaching, each in trained.items()}
    gains = valid_gains(
        retrievers, recipe.top_ks, annotated, backbone, windows, placement=recipe.combine, mixture=mixture
    )
    best = max(gains, key=lambda candidate: gains[candidate].value.mean())
    is_worth_it = pays(gains[best].value, [each.user for each in annotated.valid])
    chosen = trained[best[0]]
    _save(chosen.retriever if is_worth_it else abstainer(chosen.retriever), out)
    facts = {
        "width": recipe.retriever_width,
        "train_targets": len(annotated.train),
        "pays": is_worth_it,
        **_facts(best, chosen, float(gains[best].nats.mean())),
        "tried": [_tried(candidate, each) for candidate, each in gains.items()],
    }
    return finish(out, inputs, facts)


def _facts(best: tuple[Teaching, int], chosen: Training, gain: float) -> dict[str, Any]:
    """Of the retriever that is kept; `gain` in nats, of all that it shows."""
    quality = chosen.quality
    return {
        **best[0]._asdict(),
        "top_k": best[1],
        "valid_gain_nats": round(gain, 4),
        "oracle_gain_nats": round(quality.oracle_gain, 4),
        "captured": round(gain / max(quality.oracle_gain, 1e-9), 4),
        "precision@1": round(quality.precision_at_1, 4),
        "abstains": round(quality.abstains, 4),
        **{name: round(value, 4) for name, value in chosen.facts.items()},
    }


def _tried(candidate: tuple[Teaching, int], gains: Gains) -> dict[str, Any]:
    """`value` is by what they were chosen."""
    told = {"gain": round(float(gains.nats.mean()), 4), "value": round(float(gains.value.mean()), 5)}
    return {**candidate[0]._asdict(), "top_k": candidate[1], **told}


def _teachings(recipe: Recipe) -> list[Teaching]:
    """Without labels there is nothing to soften."""
    softened = {"kl": recipe.label_temperatures, "marginal": (1.0,)}
    return [Teaching(loss, temperature) for loss in recipe.retriever_losses for temperature in softened[loss]]


def _untrained(out: Path, inputs: str, hidden_size: int, recipe: Recipe) -> dict[str, Any]:
    """No history is longer than the prompt: the retriever always abstains, which is right."""
    _save(abstainer(Retriever(hidden_size, width=recipe.retriever_width, has_null=True)), out)
    return finish(out, inputs, {"width": recipe.retriever_width, "top_k": 1, "train_targets": 0, "abstains": 1.0})


@torch.no_grad()
def abstainer(retriever: Retriever) -> Retriever:
    """The same, in place, with a null slot that always wins: where memory does not pay it must not be shown."""
    retriever.null.weight.zero_()
    retriever.null.bias.fill_(_ALWAYS)
    return retriever


def _save(retriever: Retriever, out: Path) -> None:
    with whole_file(out / RETRIEVER_FILE) as draft:
        save_file(retriever.state_dict(), draft)


def main(argv: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__ or "", needs=["backbone", "annotations", "mixture"])

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        recipe = get_recipe(arguments.recipe)
        upstream = [read_certificate(arguments.annotations), read_certificate(arguments.mixture)]
        return run(
            load_inputs(arguments.data, arguments.cut).split,
            arguments.out,
            annotations_dir=arguments.annotations,
            backbone_dir=arguments.backbone,
            recipe=recipe,
            inputs=stage_key(upstream, recipe, arguments.seed),
            mixture=read_mixture(arguments.mixture),
            seed=arguments.seed,
            device=arguments.device,
        )

    return run_stage(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
