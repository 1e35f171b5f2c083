"""Stage 2: let the language model say which memories help (AutoMR, arXiv 2412.17593, eq. 5).

In: a data set, a backbone. Out: for sampled targets of the train and of the valid period, the log-probability of the
true title without memory and with each single memory element. Both forms of eq. 5 derive from these numbers:

`probability`  the paper's literal δ_m = Π p(y_i | z_t, z_m) − Π p(y_i | z_t); nearly constant for whole titles
`log_gain`     mean gain in log-probability per token; the default

Shards of a few hundred targets; a finished shard is never done again.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from model_store.inference import to_float16
from model_store.lm.split_lm import SplitLM
from training.data.splits import Split, Target
from training.lm.backbone import open_backbone
from training.lm.likelihood import log_probs_by_element
from training.lm.states import States, load_states, spans_of, window_states
from training.lm.windows import Example, Windows, read_examples
from training.memory.targets import learning_targets
from training.run.after_backbone import main_after_backbone
from training.run.recipes import Recipe
from training.run.stage import (
    begin,
    digest,
    finish,
    is_done,
    pick_device,
    progress,
    read_certificate,
    whole_file,
)

GAIN_FORMS = ("log_gain", "probability")
_TARGETS_PER_SHARD = 256
_LABELS = 2  # how likelihoods are counted: since 2, only among items that can follow


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
        return states.at(self.user, self.memory_positions)


def annotate(
    lm: SplitLM, examples: Sequence[Example], states: States, *, placement: str, batch_size: int
) -> Iterator[Annotation]:
    """In the order given. Examples of like memory size should stand together.

    At the precision of serving: under autocast the rounding would be as large as the gains of most memories.
    """
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        memories = [torch.from_numpy(states.at(each.user, each.memory_positions)).to(lm.device) for each in batch]
        with torch.inference_mode():
            understood = read_examples(lm, batch)
            scores = log_probs_by_element(lm, understood, memories, placement)
        queries = to_float16(understood.states[:, -1])
        for example, query_state, log_probs in zip(batch, queries, scores, strict=True):
            yield Annotation(
                user=example.user,
                position=example.position,
                memory_positions=example.memory_positions,
                query_state=query_state,
                log_probs=log_probs.float().cpu().numpy(),
                num_tokens=len(example.answer),
            )


def write_shards(
    lm: SplitLM, windows: Windows, targets: Sequence[Target], states: States, *, recipe: Recipe, directory: Path
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    bar = progress(total=len(targets), desc=f"annotate {directory.name}", unit="target")
    for number, start in enumerate(range(0, len(targets), _TARGETS_PER_SHARD)):
        shard = targets[start : start + _TARGETS_PER_SHARD]
        file = directory / f"annotations-{number:05d}.safetensors"
        if not file.is_file():
            examples = sorted(map(windows.example, shard), key=lambda example: len(example.memory_positions))
            found = annotate(lm, examples, states, placement=recipe.combine, batch_size=recipe.annotate_batch)
            _write_shard(list(found), file)
        bar.update(len(shard))
    bar.close()


def _write_shard(annotations: Sequence[Annotation], file: Path) -> None:
    memory_positions = np.concatenate([annotation.memory_positions for annotation in annotations])
    columns = {
        "user": np.array([annotation.user for annotation in annotations], dtype=np.int64),
        "position": np.array([annotation.position for annotation in annotations], dtype=np.int64),
        "num_tokens": np.array([annotation.num_tokens for annotation in annotations], dtype=np.int64),
        "num_memory": np.array([len(annotation.memory_positions) for annotation in annotations], dtype=np.int64),
        "memory_positions": memory_positions.astype(np.int64),
        "log_probs": np.concatenate([annotation.log_probs for annotation in annotations]),
        "query_state": np.stack([annotation.query_state for annotation in annotations]),
    }
    with whole_file(file) as draft:
        save_file(columns, draft)


def read_shards(directory: Path) -> list[Annotation]:
    files = sorted(directory.glob("annotations-*.safetensors"))
    return [annotation for file in files for annotation in _read_shard(file)]


def _read_shard(file: Path) -> Iterator[Annotation]:
    columns = load_file(file)
    ends = np.cumsum(columns["num_memory"])
    positions = np.split(columns["memory_positions"], ends[:-1])
    log_probs = np.split(columns["log_probs"], (ends + np.arange(1, len(ends) + 1))[:-1])
    for row, user in enumerate(columns["user"].tolist()):
        yield Annotation(
            user=user,
            position=int(columns["position"][row]),
            memory_positions=positions[row],
            query_state=columns["query_state"][row],
            log_probs=log_probs[row],
            num_tokens=int(columns["num_tokens"][row]),
        )


class Annotated(NamedTuple):
    """What this stage leaves to the next."""

    train: list[Annotation]
    valid: list[Annotation]
    states: States

    def with_memory(self) -> "Annotated":
        train, valid = ([each for each in part if len(each.memory_positions)] for part in (self.train, self.valid))
        return Annotated(train, valid, self.states)


def read_annotated(directory: Path) -> Annotated:
    """Raises StageError when the stage has not finished."""
    facts = read_certificate(directory)
    inputs = facts["inputs"]
    train, valid = (read_shards(directory / f"{inputs}-{period}") for period in ("train", "valid"))
    return Annotated(train, valid, load_states(directory / f"{inputs}-states", facts["hidden_size"]))


def stage_key(fingerprint: str, upstream: dict[str, Any], recipe: Recipe, seed: int) -> str:
    """Changes with everything that changes the labels. `upstream` is the certificate of the backbone."""
    targets = [_LABELS, recipe.annotate_targets, recipe.valid_targets, recipe.held_out_labels, recipe.max_memory]
    return digest([fingerprint, upstream, *targets, recipe.combine, seed])


def run(
    split: Split, out: Path, *, backbone_dir: Path, recipe: Recipe, inputs: str, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Returns the certificate; does nothing when the stage is done already."""
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    backbone = open_backbone(backbone_dir, pick_device(device))
    windows = Windows(split, backbone.prompt, recipe.max_memory)
    periods = learning_targets(split, recipe, seed)
    spans = spans_of(windows, [*periods["train"], *periods["valid"]])
    states = window_states(backbone.lm, windows, spans, out / f"{inputs}-states")
    facts: dict[str, Any] = {"hidden_size": backbone.lm.hidden_size}
    for period, targets in periods.items():
        directory = out / f"{inputs}-{period}"
        write_shards(backbone.lm, windows, targets, states, recipe=recipe, directory=directory)
        facts |= {f"{period}_{name}": value for name, value in summarise(read_shards(directory)).items()}
    return finish(out, inputs, facts)


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
    return main_after_backbone(__doc__ or "", run, stage_key, argv)


if __name__ == "__main__":
    sys.exit(main())
