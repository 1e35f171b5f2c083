"""Recall and NDCG of targets with one or several answers.

With a answers, recall@k is the share found of min(a, k), and NDCG@k is divided by that of the best list.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CUT = 100
RECALL_CUTS, NDCG_CUTS = (1, 10, 100), (10, 100)


def top_rows(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The rows with the largest scores, best first; of equal scores the first row."""
    count = min(count, len(scores))
    border = np.partition(scores, len(scores) - count)[len(scores) - count]
    among = np.flatnonzero(scores >= border)
    best: NDArray[np.int64] = among[np.argsort(-scores[among], kind="stable")][:count]
    return best


def ndcg_of(scores: NDArray[np.float32], answers: NDArray[np.int64], cut: int) -> float:
    """NDCG@cut of the ranking by `scores` (N,)."""
    return ndcg_of_list(top_rows(scores, cut), answers, cut)


def ndcg_of_list(ranked: NDArray[np.int64], answers: NDArray[np.int64], cut: int) -> float:
    found = np.isin(ranked[:cut], answers)
    gains = 1 / np.log2(np.arange(len(found)) + 2)
    best = 1 / np.log2(np.arange(min(cut, len(answers))) + 2)
    return float((found * gains).sum() / best.sum())


def list_metrics(
    ranked: Sequence[NDArray[np.int64]], answers: Sequence[NDArray[np.int64]]
) -> dict[str, NDArray[np.float64]]:
    """Metric → (targets,). `ranked`: the best rows of each target, best first."""
    pairs = list(zip(ranked, answers, strict=True))
    metrics = {
        f"recall@{cut}": np.array([np.isin(rows[:cut], found).sum() / min(cut, len(found)) for rows, found in pairs])
        for cut in RECALL_CUTS
    }
    return metrics | {
        f"ndcg@{cut}": np.array([ndcg_of_list(rows, found, cut) for rows, found in pairs]) for cut in NDCG_CUTS
    }
