"""How long one answer takes: a row asked one target at a time, in turns with the prompt that has no memory.

In: a contest, a row. Out: milliseconds for each target, of the row and of `bigrec` next to it, so that whatever else
the machine is doing slows both. From the prompt and the states in memory to the ranked list: neither the store nor
HTTP is in it.
"""

import io
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

import numpy as np

from training.rows.registry import Contest, predict
from training.run.stage import progress

PLAIN = "bigrec"  # the prompt of K items, and nothing else
# No language model answers for these, and the oracle is told the answer.
UNTIMED = ("popularity", "copy_last", "item_knn", "sasrec_bce", "sasrec", "oracle")
_WARM_UP = 3
_RESAMPLES = 1000

Milliseconds = dict[str, list[float]]  # "row", "plain": one for each target, in the same order


def time_row(contest: Contest, row: str, *, num_targets: int, seed: int = 0) -> Milliseconds:
    """Of a sample drawn by seed, the same for every row; targets with memory where there are any."""
    singles = [_alone(contest, place) for place in _sample(contest, num_targets, seed)]
    for single in singles[:_WARM_UP]:
        _milliseconds(single, PLAIN), _milliseconds(single, row)
    found: Milliseconds = {"row": [], "plain": []}
    for turn, single in enumerate(progress(singles, desc=f"time {row}", unit="target")):
        # Who comes second finds the target in the processor's caches, so they take turns.
        pair = [("plain", PLAIN), ("row", row)]
        for name, asked in pair if turn % 2 else reversed(pair):
            found[name].append(_milliseconds(single, asked))
    return found


def summarise(times: Milliseconds) -> dict[str, Any]:
    """Medians: a mean would tell of the machine's other work. So does the ratio of two medians on a busy machine, hence
    the ratio of each pair first; its interval is resampled by target."""
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


def _sample(contest: Contest, num_targets: int, seed: int) -> Sequence[int]:
    with_memory = [place for place, example in enumerate(contest.examples) if len(example.memory_positions)]
    places = np.array(with_memory or range(len(contest.examples)))
    chosen: list[int] = np.random.default_rng(seed).permutation(places)[:num_targets].tolist()
    return chosen


def _alone(contest: Contest, place: int) -> Contest:
    return replace(contest, targets=[contest.targets[place]], examples=[contest.examples[place]])


def _milliseconds(single: Contest, row: str) -> float:
    with redirect_stderr(io.StringIO()):  # a progress bar for every single answer
        started = time.perf_counter()
        predict(single, row, 0)
        return 1000 * (time.perf_counter() - started)
