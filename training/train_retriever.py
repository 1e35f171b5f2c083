"""Stage 3: train the retriever to find the memories that help the language model (AutoMR, arXiv 2412.17593, eq. 6).

In: annotations with the states of their memories, a backbone, a mixture. Out: `retriever.safetensors`. Several
retrievers are trained (`training/memory/learning.py`). The stage keeps the loss, temperature and number of memories of
the largest gain on the valid period: the NDCG@10 that the chosen memories add together to the served forecast, or, with
the title vocabulary, the log-probability that they add. If even this gain is less than two standard errors above zero,
the retriever is changed to abstain always, so that memory without a proven gain is never used.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_store.memory.retriever import Retriever
from model_store.neighbors import Mixture
from training.data.splits import Split
from training.items.mixture import read_mixture
from training.lm.backbone import open_backbone
from training.lm.windows import Windows
from training.memory.annotations import AnnotationSet, read_annotation_set
from training.memory.learning import Objective, TrainedRetriever, fit_retriever, make_abstainer, save_retriever
from training.memory.selection import MemoryGains, is_significant, valid_gains
from training.run.device import pick_device
from training.run.inputs import load_inputs
from training.run.program import run_program, stage_parser
from training.run.recipes import Recipe, get_recipe
from training.run.stage import begin, digest, finish, is_done, read_certificate

_VERSION = 5  # of the selection; 4: by the served ranking; 5: with two standard errors


def stage_key(upstream: Sequence[dict[str, Any]], recipe: Recipe, seed: int) -> str:
    """Changes with everything that changes the retriever. `upstream`: the certificates of annotations and mixture."""
    network = [recipe.retriever, recipe.retriever_batch, recipe.retriever_width, recipe.retriever_losses]
    return digest([_VERSION, upstream, *network, recipe.gain_form, recipe.label_temperatures, recipe.top_ks, seed])


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
    """Returns the certificate. Does nothing when `out` holds the result of the same inputs."""
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    annotated = read_annotation_set(annotations_dir).with_memory()
    if not annotated.train or not annotated.valid:
        return _untrained(out, inputs, annotated.states.hidden_size, recipe)
    trained = _train_candidates(annotated, recipe, seed=seed, checkpoints=out / f"checkpoints-{inputs}")
    backbone = open_backbone(backbone_dir, pick_device(device))
    windows = Windows(split, backbone.prompt, recipe.max_memory)
    retrievers = {objective: each.retriever for objective, each in trained.items()}
    gains = valid_gains(
        retrievers, recipe.top_ks, annotated, backbone, windows, placement=recipe.combine, mixture=mixture
    )
    best = max(gains, key=lambda candidate: gains[candidate].value.mean())
    has_gain = is_significant(gains[best].value, [each.user for each in annotated.valid])
    chosen = trained[best[0]]
    save_retriever(chosen.retriever if has_gain else make_abstainer(chosen.retriever), out)
    facts = {
        "width": recipe.retriever_width,
        "train_targets": len(annotated.train),
        "pays": has_gain,
        **_best_facts(best, chosen, float(gains[best].nats.mean())),
        "tried": [_tried(candidate, each) for candidate, each in gains.items()],
    }
    return finish(out, inputs, facts)


def _train_candidates(
    annotated: AnnotationSet, recipe: Recipe, *, seed: int, checkpoints: Path
) -> dict[Objective, TrainedRetriever]:
    """One retriever for each loss and temperature. The names of their checkpoints begin with `checkpoints`."""
    return {
        objective: fit_retriever(
            annotated,
            recipe,
            loss=objective.loss,
            temperature=objective.temperature,
            seed=seed,
            checkpoints=checkpoints.with_name(f"{checkpoints.name}-{objective.loss}-{objective.temperature}"),
        )
        for objective in _objectives(recipe)
    }


def _best_facts(best: tuple[Objective, int], chosen: TrainedRetriever, gain: float) -> dict[str, Any]:
    """Facts of the retriever that is kept; `gain` in nats is that of all its memories together."""
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


def _tried(candidate: tuple[Objective, int], gains: MemoryGains) -> dict[str, Any]:
    """Facts of one candidate; the one with the largest `value` is kept."""
    measured = {"gain": round(float(gains.nats.mean()), 4), "value": round(float(gains.value.mean()), 5)}
    return {**candidate[0]._asdict(), "top_k": candidate[1], **measured}


def _objectives(recipe: Recipe) -> list[Objective]:
    """`marginal` uses no labels, so it has no temperature to try."""
    temperatures = {"kl": recipe.label_temperatures, "marginal": (1.0,)}
    return [Objective(loss, temperature) for loss in recipe.retriever_losses for temperature in temperatures[loss]]


def _untrained(out: Path, inputs: str, hidden_size: int, recipe: Recipe) -> dict[str, Any]:
    """No history is longer than the prompt, so nobody has memory: writes a retriever that always abstains."""
    save_retriever(make_abstainer(Retriever(hidden_size, width=recipe.retriever_width, has_null=True)), out)
    return finish(out, inputs, {"width": recipe.retriever_width, "top_k": 1, "train_targets": 0, "abstains": 1.0})


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

    return run_program(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
