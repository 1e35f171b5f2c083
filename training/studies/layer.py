"""`layer`: the layer at which the language model is split.

One variant of the recipe is trained for each split layer L, from 1 to the last but one, at most six of them, evenly
spaced. They cannot share a backbone: a top half is tuned for the states of one layer.
"""

import numpy as np

from training.rows.memory_choices import best_single_choice, no_memory, retriever_choice
from training.run.stage import read_certificate
from training.studies.context import StudyContext, milliseconds, ndcg, remarks_on_voices, users_of
from training.studies.result import StudyResult, Value, gain_column, means_and_gains

_MAX_LAYERS = 6


def run(context: StudyContext) -> StudyResult:
    targets = context.targets()
    base_layer = context.base.bundle.manifest.backbone.split_layer
    lines: dict[str, dict[str, Value]] = {}
    for layer in split_layers(context.base.bundle.manifest.backbone.num_layers):
        trained = context.base if layer == base_layer else context.variant(split_layer=layer)
        evaluation = context.evaluation(trained.bundle, targets)
        rows = {
            "no memory": ndcg(evaluation, "none", no_memory),
            "retrieved": ndcg(evaluation, "retrieved", retriever_choice),
            "oracle": ndcg(evaluation, "oracle", best_single_choice(evaluation.annotate())),
        }
        times = milliseconds(evaluation, "latency", context.time_targets)
        facts = read_certificate(trained.stages / "retriever")
        lines[str(layer)] = {
            **means_and_gains(rows, users_of(targets), reference="no memory"),
            "oracle gain, nats": facts.get("oracle_gain_nats"),
            "captured": facts.get("captured"),
            "ms": times["ms"],
            "ms without": times["plain_ms"],
        }
    return StudyResult(
        question="at which layer should the model be split?",
        x="split layer L",
        columns={
            "no memory": ".4f",
            "retrieved": ".4f",
            gain_column("retrieved"): "+.4f",
            "oracle": ".4f",
            "oracle gain, nats": ".4f",
            "captured": ".0%",
            "ms": ".1f",
            "ms without": ".1f",
        },
        lines=lines,
        panels={
            "NDCG@10": ["no memory", "retrieved", "oracle"],
            "oracle gain, nats per title": ["oracle gain, nats"],
            "ms per answer": ["ms without", "ms"],
        },
        remarks=remarks_on_voices(context.base.bundle),
    )


def split_layers(num_layers: int) -> list[int]:
    spaced = np.linspace(1, num_layers - 1, min(_MAX_LAYERS, num_layers - 1))
    return sorted({round(layer) for layer in spaced.tolist()})
