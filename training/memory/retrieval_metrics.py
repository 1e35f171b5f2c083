"""Metrics of the retriever alone: whether it finds the memory that helps, and abstains when none does.

In: a bundle and annotated targets. Out: one record per target (`RetrievalRecords`), and a summary with intervals for
metrics.json. Gains are in nats per title. Targets without memory are left out, because there is nothing to retrieve.

The memory that the retriever ranks first (gain 0 where it abstains) is compared with a random one, the newest one, and
the oracle: the one with the largest gain, or none. If the bundle gives several memories to the top half, `joint` is the
gain of all of them together.
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
from training.data.splits import Split
from training.lm.states import States
from training.lm.windows import Example
from training.memory.annotations import Annotation
from training.memory.learning import collate
from training.memory.selection import joint_gains
from training.run.metrics import Bootstrap, Interval, paired_bootstrap, rank_correlation
from training.run.stage import atomic_file

CUTS = (1, 3, 5, 10)
RANDOM_DRAWS = 10
_BATCH = 64
_DAY_S = 86_400
_QUANTILES = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9}


@dataclass(frozen=True)
class RetrievalRecords:
    """One entry for each of the T targets with memory. Distances are NaN where none was retrieved or none helps."""

    users: np.ndarray  # (T,) int64
    num_memory: np.ndarray  # (T,) int64
    place_of_best: np.ndarray  # (T,) int64, rank of the best memory by the retriever's scores, from 0
    correlation: np.ndarray  # (T,) Spearman's ρ of scores and gains; NaN where all scores or all gains are equal
    abstained: np.ndarray  # (T,) bool
    first_gain: np.ndarray  # (T,) of the memory ranked first, even if the retriever abstained
    joint_gain: np.ndarray  # (T,) of all memories given to the top half, together
    random_gain: np.ndarray  # (T, RANDOM_DRAWS)
    newest_gain: np.ndarray  # (T,)
    best_gain: np.ndarray  # (T,) below zero where no memory helps
    days: np.ndarray  # (T, 2 + RANDOM_DRAWS) from a memory to the target: retrieved, best, random
    positions: np.ndarray  # (T, 2 + RANDOM_DRAWS) the same in interactions

    @property
    def retrieved_gain(self) -> np.ndarray:
        return np.where(self.abstained, 0.0, self.first_gain)

    @property
    def oracle_gain(self) -> np.ndarray:
        return self.best_gain.clip(min=0)

    def distances(self, unit: str) -> dict[str, np.ndarray]:
        """The finite distances of the retrieved, the best and the random memories; `unit` is `days` or `positions`."""
        table: np.ndarray = getattr(self, unit)
        by_choice = {"retrieved": table[:, 0], "best": table[:, 1], "random": table[:, 2:].ravel()}
        return {name: values[np.isfinite(values)] for name, values in by_choice.items()}


def measure_targets(
    bundle: Bundle,
    split: Split,
    examples: Sequence[Example],
    annotations: Sequence[Annotation],
    states: States,
    *,
    seed: int = 0,
) -> RetrievalRecords | None:
    """None if no target has memory. `annotations` are of the examples, in any order."""
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
        log_scores = retriever_scores(bundle, batch, states)
        picked = _picked(log_scores, bundle.manifest.retriever.top_k)
        wanted = [by_place[each.user, each.position] for each in batch]
        joint = joint_gains(bundle.lm, wanted, batch, picked, states, placement=bundle.manifest.retriever.combine)
        taken = [bool(places) for places in _picked(log_scores, 1)]
        for number, each in enumerate(batch):
            scores = log_scores[number, 1 : 1 + len(each.memory_positions)].numpy()
            row = _record(each, scores, is_taken=taken[number], joint_gain=joint[number], rng=rng)
            places = row.pop("elements")
            rows.append(row | _distances(split, each, places))
    return RetrievalRecords(
        **{field.name: np.array([row[field.name] for row in rows]) for field in fields(RetrievalRecords)}
    )


@torch.inference_mode()
def retriever_scores(bundle: Bundle, annotations: Sequence[Annotation], states: States) -> torch.Tensor:
    """(B, 1 + M) log-probabilities over (null, memory), on the CPU."""
    batch = collate(annotations, states, "log_gain", temperature=1.0)
    inputs = (tensor.to(bundle.lm.device) for tensor in (batch.query, batch.memory, batch.mask))
    log_scores: torch.Tensor = bundle.retriever(*inputs)
    return log_scores.cpu()


def _picked(log_scores: torch.Tensor, top_k: int) -> list[list[int]]:
    choice = choose(log_scores, top_k)
    return [indices[mask == 1].tolist() for indices, mask in zip(choice.indices, choice.mask, strict=True)]


def _record(
    annotation: Annotation, scores: np.ndarray, *, is_taken: bool, joint_gain: float, rng: np.random.Generator
) -> dict[str, Any]:
    """The record of one target. `elements` are places in its memory: retrieved, best, random; −1 is none."""
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
    """Distances from the elements to the target, NaN for none. An element is dated by the last event of its window."""
    times = split.histories[annotation.user].timestamps
    positions = annotation.memory_positions[elements]
    apart = {
        "days": (times[annotation.position] - times[positions]) / _DAY_S,
        "positions": (annotation.position - positions).astype(np.float64),
    }
    return {unit: np.where(elements < 0, np.nan, values) for unit, values in apart.items()}


def write_records(records: RetrievalRecords, file: Path) -> None:
    with atomic_file(file) as draft:
        save_file({field.name: getattr(records, field.name) for field in fields(RetrievalRecords)}, draft)


def read_records(file: Path) -> RetrievalRecords:
    return RetrievalRecords(**load_file(file))


def retrieval_summary(records: RetrievalRecords, *, top_k: int, seed: int = 0) -> dict[str, Any]:
    """The section `retriever` of metrics.json. Intervals are [mean, low, high] by user; None is not defined."""
    helped = records.best_gain > 0
    gains = _bootstrap_gains(records, top_k, seed)
    return {
        "targets": len(records.users),
        "users": len(np.unique(records.users)),
        "elements": round(float(records.num_memory.mean()), 2),
        "top_k": top_k,
        "helped": _interval(helped, records.users, seed),
        **_precision(records, helped, seed),
        "rank_correlation": _interval(records.correlation, records.users, seed),
        "gain_nats": {name: gains.interval(name) for name in gains.means},
        "captured": gains.ratio("retrieved", "oracle"),
        "captured_joint": gains.ratio("joint", "oracle") if top_k > 1 else None,
        "retrieved_minus_random": gains.difference("retrieved", "random"),
        **_abstention(records, seed),
        "distance": {unit: _distance_summary(records, unit) for unit in ("days", "positions")},
    }


def _bootstrap_gains(records: RetrievalRecords, top_k: int, seed: int) -> Bootstrap[str]:
    columns = {
        "retrieved": records.retrieved_gain,
        "random": records.random_gain.mean(axis=1),
        "newest": records.newest_gain,
        "oracle": records.oracle_gain,
    }
    if top_k > 1:
        columns["joint"] = records.joint_gain
    return paired_bootstrap(columns, records.users, seed=seed)


def _precision(records: RetrievalRecords, helped: np.ndarray, seed: int) -> dict[str, Any]:
    """Over targets that some memory helps: how often the best one is among the first k, and among k random ones."""
    users = records.users[helped]
    summary: dict[str, Any] = {}
    for k in CUTS:
        summary[f"precision@{k}"] = _interval(records.place_of_best[helped] < k, users, seed)
        summary[f"chance@{k}"] = _interval(np.minimum(k / records.num_memory[helped], 1), users, seed)
    return summary


def _abstention(records: RetrievalRecords, seed: int) -> dict[str, Any]:
    """How often the retriever abstains, how often rightly (its first memory would not help), and how often what it
    takes helps."""
    away, users = records.abstained, records.users
    return {
        "abstains": _interval(away, users, seed),
        "abstains_rightly": _interval(records.first_gain[away] <= 0, users[away], seed),
        "abstains_where_nothing_helps": _interval(away[records.best_gain <= 0], users[records.best_gain <= 0], seed),
        "takes_what_helps": _interval(records.first_gain[~away] > 0, users[~away], seed),
    }


def _interval(values: np.ndarray, users: np.ndarray, seed: int) -> Interval | None:
    kept = np.isfinite(values)
    if not kept.any():
        return None
    return paired_bootstrap({"it": values[kept]}, users[kept], seed=seed).interval("it")


def _distance_summary(records: RetrievalRecords, unit: str) -> dict[str, dict[str, float] | None]:
    return {
        name: {"mean": round(float(values.mean()), 3)}
        | {quantile: round(float(np.quantile(values, share)), 3) for quantile, share in _QUANTILES.items()}
        if len(values)
        else None
        for name, values in records.distances(unit).items()
    }
