"""Stage 2: measure with the language model which memories help (AutoMR, arXiv 2412.17593, eq. 5).

In: a data set, a backbone. Out: for sampled targets that teach, choose and judge the retriever
(`training/memory/judges.py`), the log-probability of the true title without memory and with each single memory
(`training/memory/annotations.py`), and the states of the memories. Work is saved in shards of 256 targets; an
interrupted run continues after the last finished shard.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.splits import Split
from training.lm.backbone import open_backbone
from training.lm.states import spans_of, window_states
from training.lm.windows import Windows
from training.memory.annotations import Annotation, learning_targets, read_annotations, write_annotations
from training.run.device import pick_device
from training.run.program import main_after_backbone
from training.run.recipes import Recipe
from training.run.stage import begin, digest, finish, is_done, read_certificate

_VERSION = 3  # 2: items that cannot follow are left out of the softmax; 3: three parts of the users


def stage_key(fingerprint: str, upstream: dict[str, Any], recipe: Recipe, seed: int) -> str:
    """Changes with everything that changes the labels. `upstream` is the certificate of the backbone."""
    targets = [_VERSION, recipe.annotate_targets, recipe.valid_targets, recipe.held_out_labels, recipe.max_memory]
    return digest([fingerprint, upstream, *targets, recipe.combine, seed])


def run(
    split: Split, out: Path, *, backbone_dir: Path, recipe: Recipe, inputs: str, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Returns the certificate. Does nothing when `out` holds the result of the same inputs."""
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    backbone = open_backbone(backbone_dir, pick_device(device))
    windows = Windows(split, backbone.prompt, recipe.max_memory)
    parts = learning_targets(split, recipe, seed)
    spans = spans_of(windows, [target for targets in parts.values() for target in targets])
    states = window_states(backbone.lm, windows, spans, out / f"{inputs}-states")
    facts: dict[str, Any] = {"hidden_size": backbone.lm.hidden_size}
    for part, targets in parts.items():
        directory = out / f"{inputs}-{part}"
        write_annotations(backbone.lm, windows, targets, states, recipe=recipe, directory=directory)
        facts |= {f"{part}_{name}": value for name, value in annotation_summary(read_annotations(directory)).items()}
    return finish(out, inputs, facts)


def annotation_summary(annotations: Sequence[Annotation]) -> dict[str, float]:
    """Mean gain of the best single memory (0 where none helps) and of a random one, in nats per title."""
    with_memory = [annotation for annotation in annotations if len(annotation.memory_positions)]
    gains = [annotation.log_probs[1:] - annotation.log_probs[0] for annotation in with_memory]
    return {
        "targets": len(annotations),
        "with_memory": len(with_memory),
        "oracle_gain_nats": round(float(np.mean([max(0.0, gain.max()) for gain in gains])), 4) if gains else 0.0,
        "random_gain_nats": round(float(np.mean([gain.mean() for gain in gains])), 4) if gains else 0.0,
    }


def main(argv: Sequence[str] | None = None) -> int:
    return main_after_backbone(__doc__ or "", run, stage_key, argv)


if __name__ == "__main__":
    sys.exit(main())
