"""Stage 2: let the language model say which memories help (AutoMR, arXiv 2412.17593, eq. 5).

In: a data set, a backbone. Out: for sampled targets of the train and of the valid period, the log-probability of the
true title without memory and with each single memory element. Both forms of eq. 5 derive from these numbers:

`probability`  the paper's literal δ_m = Π p(y_i | z_t, z_m) − Π p(y_i | z_t); nearly constant for whole titles
`log_gain`     mean gain in log-probability per token; the default

Shards of a few hundred targets; a finished shard is never done again.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from training.backbone import Backbone, open_backbone
from training.data.splits import Split, Target
from training.inputs import load_inputs
from training.likelihood import log_probs_by_element, read
from training.recipes import Recipe, get_recipe
from training.stage import autocast, digest, finish, is_done, pick_device, progress, read_certificate, run_stage, stage_parser
from training.states import States, spans_of, window_states
from training.targets import learning_targets
from training.windows import Example, Windows

GAIN_FORMS = ("log_gain", "probability")
_TARGETS_PER_SHARD = 256


@dataclass(frozen=True)
class Annotation:
    """One target. `log_probs` (1 + M,): without memory, then with each element, oldest first."""

    user: int
    position: int
    memory_positions: NDArray[np.int64]
    query_state: NDArray[np.float16]
    log_probs: NDArray[np.float32]
    num_tokens: int

    def gains(self, form: str) -> NDArray[np.float32]:
        """(M,) δ_m of eq. 5."""
        if form == "log_gain":
            return (self.log_probs[1:] - self.log_probs[0]) / self.num_tokens
        if form == "probability":
            return np.exp(self.log_probs[1:]) - np.exp(self.log_probs[0])
        raise ValueError(f"unknown form of eq. 5 {form!r}: choose one of {', '.join(GAIN_FORMS)}")

    def memory(self, states: States) -> NDArray[np.float16]:
        """(M, D)"""
        return states[self.user][self.memory_positions]


def annotate(
    backbone: Backbone, examples: Sequence[Example], states: States, recipe: Recipe
) -> Iterable[Annotation]:
    """In the order given. Examples of like memory size should stand together."""
    for start in range(0, len(examples), recipe.annotate_batch):
        batch = examples[start : start + recipe.annotate_batch]
        memories = [torch.from_numpy(_memory(example, states, backbone)).to(backbone.lm.device) for example in batch]
        with torch.inference_mode(), autocast(backbone.lm.device):
            understood = read(backbone.lm, [example.prompt for example in batch], [example.answer for example in batch])
            scores = log_probs_by_element(backbone.lm, understood, memories, recipe.combine)
        for row, (example, log_probs) in enumerate(zip(batch, scores, strict=True)):
            yield Annotation(
                user=example.user,
                position=example.position,
                memory_positions=example.memory_positions,
                query_state=understood.states[row, -1].float().cpu().numpy().astype(np.float16),
                log_probs=log_probs.float().cpu().numpy(),
                num_tokens=len(example.answer),
            )


def _memory(example: Example, states: States, backbone: Backbone) -> NDArray[np.float16]:
    if not len(example.memory_positions):
        return np.zeros((0, backbone.lm.hidden_size), dtype=np.float16)
    return states[example.user][example.memory_positions]


def write_shards(
    backbone: Backbone, windows: Windows, targets: Sequence[Target], states: States, recipe: Recipe, directory: Path
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    bar = progress(total=len(targets), desc=f"annotate {directory.name}", unit="target")
    for number, start in enumerate(range(0, len(targets), _TARGETS_PER_SHARD)):
        shard = targets[start : start + _TARGETS_PER_SHARD]
        file = directory / f"annotations-{number:05d}.safetensors"
        if not file.is_file():
            examples = sorted((windows.example(target) for target in shard), key=lambda example: len(example.memory_positions))
            _write_shard(list(annotate(backbone, examples, states, recipe)), file)
        bar.update(len(shard))
    bar.close()


def _write_shard(annotations: Sequence[Annotation], file: Path) -> None:
    draft = file.with_suffix(".draft")
    columns = {
        "user": np.array([annotation.user for annotation in annotations], dtype=np.int64),
        "position": np.array([annotation.position for annotation in annotations], dtype=np.int64),
        "num_tokens": np.array([annotation.num_tokens for annotation in annotations], dtype=np.int64),
        "num_memory": np.array([len(annotation.memory_positions) for annotation in annotations], dtype=np.int64),
        "memory_positions": np.concatenate([annotation.memory_positions for annotation in annotations]).astype(np.int64),
        "log_probs": np.concatenate([annotation.log_probs for annotation in annotations]),
        "query_state": np.stack([annotation.query_state for annotation in annotations]),
    }
    save_file(columns, draft)
    draft.replace(file)


def read_shards(directory: Path) -> list[Annotation]:
    annotations: list[Annotation] = []
    for file in sorted(directory.glob("annotations-*.safetensors")):
        columns = load_file(file)
        ends = np.cumsum(columns["num_memory"])
        positions = np.split(columns["memory_positions"], ends[:-1])
        log_probs = np.split(columns["log_probs"], (ends + np.arange(1, len(ends) + 1))[:-1])
        scalars = zip(columns["user"], columns["position"], columns["num_tokens"], strict=True)
        annotations += [
            Annotation(int(user), int(position), positions[row], columns["query_state"][row], log_probs[row], int(num_tokens))
            for row, (user, position, num_tokens) in enumerate(scalars)
        ]
    return annotations


def run(
    split: Split, out: Path, *, backbone_dir: Path, states_dir: Path, recipe: Recipe, inputs: str, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    if is_done(out, inputs):
        return read_certificate(out)
    backbone = open_backbone(backbone_dir, pick_device(device))
    windows = Windows(split, backbone.prompt, recipe.max_memory)
    periods = learning_targets(split, recipe, seed)
    states = window_states(backbone.lm, windows, spans_of(windows, [*periods["train"], *periods["valid"]]), states_dir)
    for period, targets in periods.items():
        write_shards(backbone, windows, targets, states, recipe, out / f"{inputs}-{period}")
    annotations = {period: read_shards(out / f"{inputs}-{period}") for period in periods}
    facts = {f"{period}_{name}": value for period, found in annotations.items() for name, value in summarise(found).items()}
    return finish(out, inputs, {"states": str(states_dir), "hidden_size": backbone.lm.hidden_size, **facts})


def summarise(annotations: Sequence[Annotation]) -> dict[str, float]:
    """Head-room: what the best single memory would gain, and what a random one does, in nats per title."""
    with_memory = [annotation for annotation in annotations if len(annotation.memory_positions)]
    gains = [annotation.log_probs[1:] - annotation.log_probs[0] for annotation in with_memory]
    return {
        "targets": len(annotations),
        "with_memory": len(with_memory),
        "oracle_gain_nats": round(float(np.mean([max(0.0, gain.max()) for gain in gains])), 4) if gains else 0.0,
        "random_gain_nats": round(float(np.mean([gain.mean() for gain in gains])), 4) if gains else 0.0,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__ or "", needs=["backbone"])

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        _, split, fingerprint = load_inputs(arguments.data, arguments.split)
        recipe = get_recipe(arguments.recipe)
        upstream = read_certificate(arguments.backbone)["inputs"]
        inputs = digest([fingerprint, upstream, recipe.annotate_targets, recipe.combine, recipe.max_memory, arguments.seed])
        return run(
            split,
            arguments.out,
            backbone_dir=arguments.backbone,
            states_dir=arguments.out / f"{inputs}-states",
            recipe=recipe,
            inputs=inputs,
            seed=arguments.seed,
            device=arguments.device,
        )

    return run_stage(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
