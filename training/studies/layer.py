"""`layer`: where to split the language model.

A variant of the recipe is trained for every split layer L, from 1 to the last but one (six of them at most, evenly
spaced): a top half that reads memory is tuned for the states it reads, so one backbone cannot serve two of them.
"""

import numpy as np

from training.run.stage import read_certificate
from training.studies.finding import Finding, Value, compared, gain_of
from training.studies.setting import Setting, best_single, milliseconds, ndcg, nothing, retrieved, users_of

_MAX_LAYERS = 6


def run(setting: Setting) -> Finding:
    targets = setting.targets()
    lines: dict[str, dict[str, Value]] = {}
    for layer in split_layers(setting.base.bundle.manifest.backbone.num_layers):
        is_base = layer == setting.base.bundle.manifest.backbone.split_layer
        made = setting.base if is_base else setting.variant(split_layer=layer)
        contest = setting.contest(made.bundle, targets)
        rows = {
            "no memory": ndcg(contest, "none", nothing),
            "retrieved": ndcg(contest, "retrieved", retrieved),
            "oracle": ndcg(contest, "oracle", best_single(contest)),
        }
        times = milliseconds(contest, "latency", setting.time_targets)
        facts = read_certificate(made.stages / "retriever")
        lines[str(layer)] = {
            **compared(rows, users_of(targets), reference="no memory"),
            "oracle gain, nats": facts.get("oracle_gain_nats"),
            "captured": facts.get("captured"),
            "ms": times["ms"],
            "ms without": times["plain_ms"],
        }
    return Finding(
        question="at which layer should the model be split?",
        x="split layer L",
        columns={
            "no memory": ".4f",
            "retrieved": ".4f",
            gain_of("retrieved"): "+.4f",
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
    )


def split_layers(num_layers: int) -> list[int]:
    spaced = np.linspace(1, num_layers - 1, min(_MAX_LAYERS, num_layers - 1))
    return sorted({round(layer) for layer in spaced.tolist()})
