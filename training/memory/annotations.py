"""Annotations: the log-probability of a true title without memory and with each single memory (AutoMR, eq. 5).

In: a split model, targets, the states of their memories. Out: `Annotation`s, and shards of them on disk. Targets are
sampled here too: few users with many targets each, because all targets of one user share one memory.

Both forms of the gain δ_m in eq. 5 (arXiv 2412.17593) follow from the stored log-probabilities:

`probability`  δ_m = Π p(y_i | z_t, z_m) − Π p(y_i | z_t), as printed in the paper; nearly constant for whole titles
`log_gain`     mean gain in log-probability per token; the default
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from model_store.inference import to_float16
from model_store.lm.split_lm import SplitLM
from training.data.splits import Split, Target
from training.lm.likelihood import log_probs_by_element
from training.lm.states import States, load_states
from training.lm.windows import Example, Windows, encode_examples
from training.memory.judges import targets_of, user_parts
from training.run.recipes import Recipe
from training.run.stage import atomic_file, progress, read_certificate

GAIN_FORMS = ("log_gain", "probability")
_TARGETS_PER_SHARD = 256
_TARGETS_PER_USER = 20


@dataclass(frozen=True)
class Annotation:
    """One target. `log_probs` (1 + M,): without memory, then with each memory alone, oldest first."""

    user: int
    position: int
    memory_positions: NDArray[np.int64]
    query_state: NDArray[np.float16]
    log_probs: NDArray[np.float32]
    num_tokens: int

    def gains(self, form: str) -> NDArray[np.float32]:
        """(M,) δ_m of eq. 5. Raises ValueError for an unknown form."""
        if form == "log_gain":
            return (self.log_probs[1:] - self.log_probs[0]) / self.num_tokens
        if form == "probability":
            return np.exp(self.log_probs[1:]) - np.exp(self.log_probs[0])
        raise ValueError(f"unknown form of eq. 5 {form!r}: choose one of {', '.join(GAIN_FORMS)}")

    def memory(self, states: States) -> NDArray[np.float16]:
        """(M, D) states of the memory."""
        return states.at(self.user, self.memory_positions)


class AnnotationSet(NamedTuple):
    """Annotations that teach the retriever, that choose it, and that judge it, and the states of their memories."""

    teach: list[Annotation]
    choose: list[Annotation]
    judge: list[Annotation]
    states: States

    def with_memory(self) -> "AnnotationSet":
        """Without the targets that have no memory."""
        parts = self.teach, self.choose, self.judge
        teach, choose, judge = ([each for each in part if len(each.memory_positions)] for part in parts)
        return AnnotationSet(teach, choose, judge, self.states)


# --- which targets are annotated --------------------------------------------------------------------------------------


def learning_targets(split: Split, recipe: Recipe, seed: int) -> dict[str, list[Target]]:
    """Targets that `teach` the retriever, `choose` it and `judge` it, of different users (see `user_parts`).

    The last two are of the valid period; with `held_out_labels` the first are, too. The generator was tuned on the
    train period and remembers its answers, so what helps there differs from what helps on targets it has never seen.
    """
    users = user_parts(split, held_out=recipe.held_out_labels)
    teaching = split.valid if recipe.held_out_labels else split.train
    wanted = {
        "teach": (targets_of(teaching, users.teach), recipe.annotate_targets),
        "choose": (targets_of(split.valid, users.choose), recipe.valid_targets),
        "judge": (targets_of(split.valid, users.judge), recipe.valid_targets),
    }
    return {
        part: pick_targets(targets, limit, np.random.default_rng((seed, number)))
        for number, (part, (targets, limit)) in enumerate(wanted.items())
    }


def pick_targets(targets: Sequence[Target], limit: int, rng: np.random.Generator) -> list[Target]:
    """At most `limit` targets: users in random order, up to twenty random targets of each."""
    of_user: dict[int, list[Target]] = {}
    for target in targets:
        of_user.setdefault(target.user, []).append(target)
    picked: list[Target] = []
    users = sorted(of_user)
    for index in rng.permutation(len(users)):
        if len(picked) >= limit:
            break
        own = of_user[users[index]]
        picked += [own[place] for place in sorted(rng.permutation(len(own))[:_TARGETS_PER_USER])]
    return picked[:limit]


# --- annotating -------------------------------------------------------------------------------------------------------


def annotate(
    lm: SplitLM, examples: Sequence[Example], states: States, *, placement: str, batch_size: int
) -> Iterator[Annotation]:
    """Yields in the order of `examples`. Put examples of similar memory size next to each other: it saves padding.

    Runs at the precision of serving. Under autocast the rounding error is as large as the gains of most memories.
    """
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        memories = [torch.from_numpy(states.at(each.user, each.memory_positions)).to(lm.device) for each in batch]
        with torch.inference_mode():
            encoded = encode_examples(lm, batch)
            log_probs = log_probs_by_element(lm, encoded, memories, placement)
        queries = to_float16(encoded.states[:, -1])
        for example, query_state, found in zip(batch, queries, log_probs, strict=True):
            yield Annotation(
                user=example.user,
                position=example.position,
                memory_positions=example.memory_positions,
                query_state=query_state,
                log_probs=found.float().cpu().numpy(),
                num_tokens=len(example.answer),
            )


# --- on disk ----------------------------------------------------------------------------------------------------------


def write_annotations(
    lm: SplitLM, windows: Windows, targets: Sequence[Target], states: States, *, recipe: Recipe, directory: Path
) -> None:
    """Annotates `targets` in shards of 256. A shard that is on disk is not computed again."""
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
    with atomic_file(file) as draft:
        save_file(columns, draft)


def read_annotations(directory: Path) -> list[Annotation]:
    """All shards of a directory, in order."""
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


def read_annotation_set(directory: Path) -> AnnotationSet:
    """The result of `training.annotate`. Raises StageError when that stage has not finished."""
    facts = read_certificate(directory)
    inputs = facts["inputs"]
    teach, choose, judge = (read_annotations(directory / f"{inputs}-{part}") for part in ("teach", "choose", "judge"))
    return AnnotationSet(teach, choose, judge, load_states(directory / f"{inputs}-states", facts["hidden_size"]))
