"""The retriever judged alone: does it find the memory that helps, and does it know when none does?

In: a bundle and annotated targets: the log-probability of the true title without memory and with each single element.
Out: one value per target (`Judged`), a summary with intervals for metrics.json. Gains are in nats per title. Targets
without memory have nothing to retrieve and take no part.

Compared are the element that the retriever ranks first (gain zero where it abstains), a random one, the newest one, and
the best one by gain, or none (the oracle). `joint` is the gain of all that the bundle shows at once, measured with them
together, where it shows more than one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from model_store.bundle import Bundle
from model_store.memory.retriever import choose
from training.annotate import Annotation
from training.data.splits import Split
from training.lm.states import States
from training.lm.windows import Example
from training.memory.joint import joint_gains
from training.memory.labels import collate
from training.run.metrics import Bootstrap, Interval, paired_bootstrap, rank_correlation
from training.run.stage import whole_file

CUTS = (1, 3, 5, 10)
RANDOM_DRAWS = 10
_BATCH = 64
_DAY_S = 86_400
_QUANTILES = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9}


@dataclass(frozen=True)
class Judged:
    """One entry per target with memory, T in all; NaN in a distance where nothing was retrieved, or nothing helps."""

    users: np.ndarray  # (T,) int64
    num_memory: np.ndarray  # (T,) int64
    place_of_best: np.ndarray  # (T,) int64, in the order of the retriever's scores, 0 is first
    correlation: np.ndarray  # (T,) of scores and gains; NaN where there is no order to compare
    abstained: np.ndarray  # (T,) bool
    first_gain: np.ndarray  # (T,) of the element ranked first, whether or not it was taken
    joint_gain: np.ndarray  # (T,) of all elements that the bundle shows, together
    random_gain: np.ndarray  # (T, RANDOM_DRAWS)
    newest_gain: np.ndarray  # (T,)
    best_gain: np.ndarray  # (T,) below zero where no element helps
    days: np.ndarray  # (T, 2 + RANDOM_DRAWS) from the element to the target: retrieved, best, random
    positions: np.ndarray  # (T, 2 + RANDOM_DRAWS) the same in interactions

    @property
    def retrieved_gain(self) -> np.ndarray:
        return np.where(self.abstained, 0.0, self.first_gain)

    @property
    def oracle_gain(self) -> np.ndarray:
        return self.best_gain.clip(min=0)

    def distances(self, unit: str) -> dict[str, np.ndarray]:
        """By who chose; `unit` is `days` or `positions`."""
        table: np.ndarray = getattr(self, unit)
        by_choice = {"retrieved": table[:, 0], "best": table[:, 1], "random": table[:, 2:].ravel()}
        return {name: values[np.isfinite(values)] for name, values in by_choice.items()}


def judge_targets(
    bundle: Bundle,
    split: Split,
    examples: Sequence[Example],
    annotations: Sequence[Annotation],
    states: States,
    *,
    seed: int = 0,
) -> Judged | None:
    """None where no target has memory. `annotations` of the examples, in any order."""
    with_memory = sorted(
        (each for each in annotations if len(each.memory_positions)), key=lambda each: len(each.memory_positions)
    )
    if not with_memory:
        return None
    by_place = {(example.user, example.position): example for example in examples}
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(with_memory), _BATCH):
        batch = with_memory[start : start + _BATCH]
        log_scores = score(bundle, batch, states)
        shown = _chosen(log_scores, bundle.manifest.retriever.top_k)
        wanted = [by_place[each.user, each.position] for each in batch]
        joint = joint_gains(bundle.lm, wanted, batch, shown, states, placement=bundle.manifest.retriever.combine)
        taken = [bool(places) for places in _chosen(log_scores, 1)]
        for number, each in enumerate(batch):
            scores = log_scores[number, 1 : 1 + len(each.memory_positions)].numpy()
            row = _judge_one(each, scores, is_taken=taken[number], joint_gain=joint[number], rng=rng)
            places = row.pop("elements")
            rows.append(row | _distances(split, each, places))
    return Judged(**{field.name: np.array([row[field.name] for row in rows]) for field in fields(Judged)})


@torch.inference_mode()
def score(bundle: Bundle, annotations: Sequence[Annotation], states: States) -> torch.Tensor:
    """(B, 1 + M) log-probabilities over (null, memory), on the CPU."""
    batch = collate(annotations, states, "log_gain", temperature=1.0)
    inputs = (tensor.to(bundle.lm.device) for tensor in (batch.query, batch.memory, batch.mask))
    log_scores: torch.Tensor = bundle.retriever(*inputs)
    return log_scores.cpu()


def _chosen(log_scores: torch.Tensor, top_k: int) -> list[list[int]]:
    choice = choose(log_scores, top_k)
    return [indices[mask == 1].tolist() for indices, mask in zip(choice.indices, choice.mask, strict=True)]


def _judge_one(
    annotation: Annotation, scores: np.ndarray, *, is_taken: bool, joint_gain: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Of one target; `elements` are places in its memory: retrieved, best, random; -1 is none."""
    gains = (annotation.log_probs[1:] - annotation.log_probs[0]).astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    first, best = int(order[0]), int(gains.argmax())
    randoms = rng.integers(len(gains), size=RANDOM_DRAWS)
    return {
        "users": annotation.user,
        "num_memory": len(gains),
        "place_of_best": int(np.flatnonzero(order == best)[0]),
        "correlation": rank_correlation(scores, gains),
        "abstained": not is_taken,
        "first_gain": gains[first],
        "joint_gain": joint_gain,
        "random_gain": gains[randoms],
        "newest_gain": gains[-1],
        "best_gain": gains[best],
        "elements": np.array([first if is_taken else -1, best if gains[best] > 0 else -1, *randoms]),
    }


def _distances(split: Split, annotation: Annotation, elements: np.ndarray) -> dict[str, np.ndarray]:
    """From the elements to the target, NaN for none. An element stands for the interaction that ends its window."""
    times = split.histories[annotation.user].timestamps
    positions = annotation.memory_positions[elements]
    apart = {
        "days": (times[annotation.position] - times[positions]) / _DAY_S,
        "positions": (annotation.position - positions).astype(np.float64),
    }
    return {unit: np.where(elements < 0, np.nan, values) for unit, values in apart.items()}


def write_judged(judged: Judged, file: Path) -> None:
    with whole_file(file) as draft:
        save_file({field.name: getattr(judged, field.name) for field in fields(Judged)}, draft)


def read_judged(file: Path) -> Judged:
    return Judged(**load_file(file))


def summarise(judged: Judged, *, top_k: int, seed: int = 0) -> dict[str, Any]:
    """What metrics.json says of the retriever: intervals are [mean, low, high] by user, None is not defined."""
    helped = judged.best_gain > 0
    gains = _bootstrap_gains(judged, top_k, seed)
    return {
        "targets": len(judged.users),
        "users": len(np.unique(judged.users)),
        "elements": round(float(judged.num_memory.mean()), 2),
        "top_k": top_k,
        "helped": _interval(helped, judged.users, seed),
        **_precision(judged, helped, seed),
        "rank_correlation": _interval(judged.correlation, judged.users, seed),
        "gain_nats": {name: gains.interval(name) for name in gains.means},
        "captured": gains.ratio("retrieved", "oracle"),
        "captured_joint": gains.ratio("joint", "oracle") if top_k > 1 else None,
        "retrieved_minus_random": gains.difference("retrieved", "random"),
        **_abstention(judged, seed),
        "distance": {unit: _distance_summary(judged, unit) for unit in ("days", "positions")},
    }


def _bootstrap_gains(judged: Judged, top_k: int, seed: int) -> Bootstrap[str]:
    columns = {
        "retrieved": judged.retrieved_gain,
        "random": judged.random_gain.mean(axis=1),
        "newest": judged.newest_gain,
        "oracle": judged.oracle_gain,
    }
    if top_k > 1:
        columns["joint"] = judged.joint_gain
    return paired_bootstrap(columns, judged.users, seed=seed)


def _precision(judged: Judged, helped: np.ndarray, seed: int) -> dict[str, Any]:
    """Of targets that some element helps: is the best one among the k ranked first, or among k drawn blindly?"""
    users = judged.users[helped]
    summary: dict[str, Any] = {}
    for k in CUTS:
        summary[f"precision@{k}"] = _interval(judged.place_of_best[helped] < k, users, seed)
        summary[f"chance@{k}"] = _interval(np.minimum(k / judged.num_memory[helped], 1), users, seed)
    return summary


def _abstention(judged: Judged, seed: int) -> dict[str, Any]:
    """Right, when what it ranks first would not have helped; and how often, where it took one, that one helped."""
    away, users = judged.abstained, judged.users
    return {
        "abstains": _interval(away, users, seed),
        "abstains_rightly": _interval(judged.first_gain[away] <= 0, users[away], seed),
        "abstains_where_nothing_helps": _interval(away[judged.best_gain <= 0], users[judged.best_gain <= 0], seed),
        "takes_what_helps": _interval(judged.first_gain[~away] > 0, users[~away], seed),
    }


def _interval(values: np.ndarray, users: np.ndarray, seed: int) -> Interval | None:
    kept = np.isfinite(values)
    if not kept.any():
        return None
    return paired_bootstrap({"it": values[kept]}, users[kept], seed=seed).interval("it")


def _distance_summary(judged: Judged, unit: str) -> dict[str, dict[str, float] | None]:
    return {
        name: {"mean": round(float(values.mean()), 3)}
        | {quantile: round(float(np.quantile(values, share)), 3) for quantile, share in _QUANTILES.items()}
        if len(values)
        else None
        for name, values in judged.distances(unit).items()
    }
