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
from pathlib import Path
from typing import Any

from model_store.memory.retriever import Retriever
from model_store.neighbors import Mixture
from training.data.splits import Split
from training.items.mixture import read_mixture
from training.lm.backbone import open_backbone
from training.lm.windows import Windows
from training.memory.annotations import read_annotation_set
from training.memory.learning import Objective, TrainedRetriever, fit_retriever, make_abstainer, save_retriever
from training.memory.selection import MemoryGains, is_significant, valid_gains
from training.run.device import pick_device
from training.run.inputs import load_inputs
from training.run.program import run_program, stage_parser
from training.run.recipes import Recipe, get_recipe
from training.run.stage import begin, digest, finish, is_done, read_certificate

_VERSION = 5  # of the choice; 5: two standard errors pay; 4: by the ranking that is served


def stage_key(upstream: Sequence[dict[str, Any]], recipe: Recipe, seed: int) -> str:
    """Changes with everything that changes the retriever. `upstream`: certificates of annotations and mixture."""
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
    """Returns the certificate; does nothing when the stage is done already."""
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    annotated = read_annotation_set(annotations_dir).with_memory()
    if not annotated.train or not annotated.valid:
        return _untrained(out, inputs, annotated.states.hidden_size, recipe)
    trained = {
        objective: fit_retriever(
            annotated,
            recipe,
            loss=objective.loss,
            temperature=objective.temperature,
            seed=seed,
            checkpoints=out / f"checkpoints-{inputs}-{objective.loss}-{objective.temperature}",
        )
        for objective in _objectives(recipe)
    }
    backbone = open_backbone(backbone_dir, pick_device(device))
    windows = Windows(split, backbone.prompt, recipe.max_memory)
    retrievers = {objective: each.retriever for objective, each in trained.items()}
    gains = valid_gains(
        retrievers, recipe.top_ks, annotated, backbone, windows, placement=recipe.combine, mixture=mixture
    )
    best = max(gains, key=lambda candidate: gains[candidate].value.mean())
    is_worth_it = is_significant(gains[best].value, [each.user for each in annotated.valid])
    chosen = trained[best[0]]
    save_retriever(chosen.retriever if is_worth_it else make_abstainer(chosen.retriever), out)
    facts = {
        "width": recipe.retriever_width,
        "train_targets": len(annotated.train),
        "pays": is_worth_it,
        **_facts(best, chosen, float(gains[best].nats.mean())),
        "tried": [_tried(candidate, each) for candidate, each in gains.items()],
    }
    return finish(out, inputs, facts)


def _facts(best: tuple[Objective, int], chosen: TrainedRetriever, gain: float) -> dict[str, Any]:
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


def _tried(candidate: tuple[Objective, int], gains: MemoryGains) -> dict[str, Any]:
    """`value` is by what they were chosen."""
    told = {"gain": round(float(gains.nats.mean()), 4), "value": round(float(gains.value.mean()), 5)}
    return {**candidate[0]._asdict(), "top_k": candidate[1], **told}


def _objectives(recipe: Recipe) -> list[Objective]:
    """Without labels there is nothing to soften."""
    softened = {"kl": recipe.label_temperatures, "marginal": (1.0,)}
    return [Objective(loss, temperature) for loss in recipe.retriever_losses for temperature in softened[loss]]


def _untrained(out: Path, inputs: str, hidden_size: int, recipe: Recipe) -> dict[str, Any]:
    """No history is longer than the prompt: the retriever always abstains, which is right."""
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
