"""Stage 3: train the retriever to find the memories that help the language model (AutoMR, arXiv 2412.17593, eq. 6).

In: annotations with the states of their memories, a backbone, voices. Out: `retriever.safetensors`. Several
retrievers are trained (`training/memory/learning.py`). The stage keeps the loss, temperature and number of memories of
the largest gain: the NDCG@10 that the chosen memories add together to the served forecast, or, with the title
vocabulary, the log-probability that they add. The gain is measured on valid targets of the users that choose. It is
measured again for the retriever that is kept, on the users that judge (`training/memory/judges.py`). If this second
gain is less than two standard errors above zero, the retriever is changed to abstain always, so that memory without a
proven gain is never used. The certificate has both gains (`choose`, `judge`).
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model_store.memory.retriever import Retriever
from model_store.voices.voices import Voices
from training.data.splits import Split
from training.items.pasts import Pasts
from training.items.voice_files import read_voices
from training.lm.backbone import Backbone, open_backbone
from training.lm.windows import Windows
from training.memory.annotations import Annotation, AnnotationSet, read_annotation_set
from training.memory.learning import (
    Objective,
    TrainedRetriever,
    collate,
    fit_retriever,
    make_abstainer,
    measure_retrieval,
    save_retriever,
)
from training.memory.selection import MemoryGains, ServedRanking, is_significant, valid_gains
from training.run.device import pick_device
from training.run.inputs import load_inputs
from training.run.metrics import standard_error
from training.run.program import run_program, stage_parser
from training.run.recipes import Recipe, get_recipe
from training.run.stage import begin, digest, finish, is_done, read_certificate

_VERSION = (
    7  # of the selection; 4: by the served ranking; 5: with two standard errors; 6: of other users; 7: with voices
)


def stage_key(upstream: Sequence[dict[str, Any]], recipe: Recipe, seed: int) -> str:
    """Changes with everything that changes the retriever. `upstream`: the certificates of annotations and voices."""
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
    voices: Voices | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Returns the certificate. Does nothing when `out` holds the result of the same inputs."""
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    annotated = read_annotation_set(annotations_dir).with_memory()
    if not annotated.teach or not annotated.choose:
        return _untrained(out, inputs, annotated.states.hidden_size, recipe)
    trained = _train_candidates(annotated, recipe, seed=seed, checkpoints=out / f"checkpoints-{inputs}")
    backbone = open_backbone(backbone_dir, pick_device(device))
    measure = partial(
        valid_gains,
        backbone=backbone,
        windows=Windows(split, backbone.prompt, recipe.max_memory),
        states=annotated.states,
        placement=recipe.combine,
        served=None if voices is None else served_ranking(voices, split, backbone),
    )
    gains = measure({objective: each.retriever for objective, each in trained.items()}, recipe.top_ks, annotated.choose)
    best = max(gains, key=lambda candidate: gains[candidate].value.mean())
    kept = trained[best[0]]
    judged = measure({best[0]: kept.retriever}, (best[1],), annotated.judge)[best]
    pays = is_significant(judged.value, [each.user for each in annotated.judge])
    facts = {
        "width": recipe.retriever_width,
        "teach_targets": len(annotated.teach),
        "pays": pays,
        "always_abstains": not pays,
        **_candidate(best),
        "choose": _gain_facts(gains[best], annotated.choose),
        "judge": _gain_facts(judged, annotated.judge),
        **_quality_facts(kept, annotated, judged),
        "tried": [{**_candidate(candidate), **_mean_gains(each)} for candidate, each in gains.items()],
    }
    save_retriever(kept.retriever if pays else make_abstainer(kept.retriever), out)
    return finish(out, inputs, facts)


def served_ranking(voices: Voices, split: Split, backbone: Backbone) -> ServedRanking:
    tokens = np.array([backbone.prompt.title_tokens(title)[0] for title in split.titles], dtype=np.int64)
    return ServedRanking(voices, Pasts(split, tokens, length=voices.spec.past_length))


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


def _candidate(candidate: tuple[Objective, int]) -> dict[str, Any]:
    return {**candidate[0]._asdict(), "top_k": candidate[1]}


def _mean_gains(gains: MemoryGains) -> dict[str, float]:
    """`value` is the gain by which candidates are compared."""
    return {"nats": round(float(gains.nats.mean()), 4), "value": round(float(gains.value.mean()), 5)}


def _gain_facts(gains: MemoryGains, annotations: Sequence[Annotation]) -> dict[str, float]:
    """The mean gains on one part of the users; `error` is the standard error of `value`, by user."""
    users = [each.user for each in annotations]
    counts: dict[str, float] = {"targets": len(users), "users": len(set(users))}
    return {**counts, **_mean_gains(gains), "error": round(standard_error(gains.value, users), 5)} if users else counts


def _quality_facts(chosen: TrainedRetriever, annotated: AnnotationSet, judged: MemoryGains) -> dict[str, float]:
    """How well the kept retriever retrieves on the targets that judge, and its losses on those that choose it."""
    losses = {name: round(value, 4) for name, value in chosen.facts.items()}
    if not annotated.judge:
        return losses
    quality = measure_retrieval(chosen.retriever, collate(annotated.judge, annotated.states, "log_gain", 1.0))
    return {
        "oracle_gain_nats": round(quality.oracle_gain, 4),
        "captured": round(float(judged.nats.mean()) / max(quality.oracle_gain, 1e-9), 4),
        "precision@1": round(quality.precision_at_1, 4),
        "abstains": round(quality.abstains, 4),
        **losses,
    }


def _objectives(recipe: Recipe) -> list[Objective]:
    """`marginal` uses no labels, so it has no temperature to try."""
    temperatures = {"kl": recipe.label_temperatures, "marginal": (1.0,)}
    return [Objective(loss, temperature) for loss in recipe.retriever_losses for temperature in temperatures[loss]]


def _untrained(out: Path, inputs: str, hidden_size: int, recipe: Recipe) -> dict[str, Any]:
    """No history is longer than the prompt, so nobody has memory: writes a retriever that always abstains."""
    save_retriever(make_abstainer(Retriever(hidden_size, width=recipe.retriever_width, has_null=True)), out)
    return finish(
        out, inputs, {"width": recipe.retriever_width, "top_k": 1, "teach_targets": 0, "always_abstains": True}
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__ or "", needs=["backbone", "annotations", "voices"])

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        recipe = get_recipe(arguments.recipe)
        upstream = [read_certificate(arguments.annotations), read_certificate(arguments.voices)]
        return run(
            load_inputs(arguments.data, arguments.cut).split,
            arguments.out,
            annotations_dir=arguments.annotations,
            backbone_dir=arguments.backbone,
            recipe=recipe,
            inputs=stage_key(upstream, recipe, arguments.seed),
            voices=read_voices(arguments.voices),
            seed=arguments.seed,
            device=arguments.device,
        )

    return run_program(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
