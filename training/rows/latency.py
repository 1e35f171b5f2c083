"""The time of one answer of a row: one target at a time, in turns with the bundle's generator that reads no memory.

In: an evaluation, a row. Out: milliseconds for each target, of the row and of the plain prompt right before or after
it, so that other work on the machine slows down both. An answer is timed from the prompt and the states in memory to
the ranked list, without the store and HTTP.
"""

import io
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

import numpy as np

from training.rows.evaluation import Evaluation
from training.rows.registry import predict
from training.run.stage import progress

PLAIN = "generator_alone"  # the prompt of K items, and nothing else
_WARM_UP = 3
_RESAMPLES = 1000

Milliseconds = dict[str, list[float]]  # "row" and "plain": one value for each target, in the same order


def time_row(evaluation: Evaluation, row: str, *, num_targets: int, seed: int = 0) -> Milliseconds:
    """Times a sample of targets, the same for every row; only targets with memory, where there are any."""
    singles = [_single_target(evaluation, place) for place in _sample(evaluation, num_targets, seed)]
    for single in singles[:_WARM_UP]:
        _milliseconds(single, PLAIN), _milliseconds(single, row)
    found: Milliseconds = {"row": [], "plain": []}
    for turn, single in enumerate(progress(singles, desc=f"time {row}", unit="target")):
        # The second of a pair finds the target in the processor's caches, so the order alternates.
        pair = [("plain", PLAIN), ("row", row)]
        for name, timed in pair if turn % 2 else reversed(pair):
            found[name].append(_milliseconds(single, timed))
    return found


def latency_summary(times: Milliseconds) -> dict[str, Any]:
    """Medians, and the median ratio of row and plain prompt with its 95 % interval, resampled by target.

    Other work on the machine distorts means, and the ratio of two medians too. The ratio of each pair is robust.
    """
    row, plain = np.array(times["row"]), np.array(times["plain"])
    ratios, rng = row / plain, np.random.default_rng(0)
    resampled = np.median(rng.choice(ratios, size=(_RESAMPLES, len(ratios))), axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    return {
        "targets": len(row),
        "ms": round(float(np.median(row)), 3),
        "ms_p10": round(float(np.quantile(row, 0.1)), 3),
        "plain_ms": round(float(np.median(plain)), 3),
        "times_plain": (float(np.median(ratios)), low, high),
    }


def _sample(evaluation: Evaluation, num_targets: int, seed: int) -> Sequence[int]:
    """Places among the targets."""
    with_memory = [place for place, example in enumerate(evaluation.examples) if len(example.memory_positions)]
    places = np.array(with_memory or range(len(evaluation.examples)))
    chosen: list[int] = np.random.default_rng(seed).permutation(places)[:num_targets].tolist()
    return chosen


def _single_target(evaluation: Evaluation, place: int) -> Evaluation:
    return replace(evaluation, targets=[evaluation.targets[place]], examples=[evaluation.examples[place]])


def _milliseconds(single: Evaluation, row: str) -> float:
    with redirect_stderr(io.StringIO()):  # a progress bar for every single answer
        started = time.perf_counter()
        predict(single, row, 0)
        return 1000 * (time.perf_counter() - started)
