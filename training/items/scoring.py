"""Scores of all N items for some targets, and how they become lists.

A `Scorer` scores all items of a split from what each target's user had before. One rule makes lists of scores for all
models: by falling score, equal scores by popularity, then by item id (`training/run/metrics.py`).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.splits import Split, Target
from training.run.metrics import ndcg

MAX_HISTORY = 100  # events of a target's history that a scorer reads, the newest: K + M of the method

Scorer = Callable[[Sequence[Target]], NDArray[np.float32]]  # (targets, N), columns are rows of Split.item_ids


def past_items(split: Split, target: Target, length: int = MAX_HISTORY) -> NDArray[np.int32]:
    """The last `length` items before the target, oldest first."""
    start = max(0, target.position - length)
    items: NDArray[np.int32] = split.histories[target.user].items[start : target.position]
    return items


def true_items(split: Split, targets: Sequence[Target]) -> NDArray[np.int64]:
    """(targets,) the items to be predicted."""
    return np.array([split.histories[target.user].items[target.position] for target in targets], dtype=np.int64)


def top_items(
    scores: NDArray[np.float32],
    tie_order: NDArray[np.int64],
    num: int,
    allowed: NDArray[np.bool_] | None = None,
) -> list[list[int]]:
    """The `num` best columns of each row, best first; fewer if fewer are allowed.

    `scores` (targets, N), NaN ranks last; `tie_order` (N,) from `popularity_tie_order`; `allowed` (targets, N).
    """
    falling = np.where(np.isnan(scores), np.inf, -scores)
    lists = []
    for row, keys in enumerate(falling):
        columns = np.arange(len(keys)) if allowed is None else np.flatnonzero(allowed[row])
        if len(columns) > num:  # keeps everything that ties with the last place
            columns = columns[keys[columns] <= np.partition(keys[columns], num - 1)[num - 1]]
        lists.append(columns[np.lexsort((tie_order[columns], keys[columns]))][:num].tolist())
    return lists


def unseen(split: Split, targets: Sequence[Target]) -> NDArray[np.bool_]:
    """(targets, N) whether the user never had the item before the target, in the whole history."""
    mask = np.ones((len(targets), len(split.item_ids)), dtype=np.bool_)
    for row, target in enumerate(targets):
        mask[row, split.histories[target.user].items[: target.position]] = False
    return mask


def seen_last(scores: NDArray[np.float32], split: Split, targets: Sequence[Target]) -> NDArray[np.float32]:
    """A copy of `scores` (targets, N) with −∞ for items that the user had before."""
    return np.where(unseen(split, targets), scores, np.float32(-np.inf))


def ndcg_at_10(scores: NDArray[np.float32], true_rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(targets,) NDCG@10; ties with the true item count as half before it. For choosing settings."""
    own = np.take_along_axis(scores, true_rows[:, None], axis=1)
    ranks = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return ndcg(ranks)
