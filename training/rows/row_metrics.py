"""From lists to the numbers of the report: metrics by target, slices of targets, comparisons of rows.

In: an evaluation, and the lists of each row and seed. Out: means, differences and their 95 % intervals, as metrics.json
has them. Within a slice, all rows and metrics see the same resamples of users.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from training.data.splits import Split, Target
from training.items.scoring import true_items
from training.rows.evaluation import NUM_RESULTS, Evaluation, RankedLists
from training.rows.registry import ROWS
from training.run.metrics import Interval, paired_bootstrap, rank_in_list, ranks_to_metrics, title_rank_in_list

BASELINE = "bigrec"
Metrics = dict[str, dict[str, np.ndarray]]  # row → metric → (seeds, targets)
MetricOfRow = tuple[str, str]  # row, metric


def metrics_by_target(lists: RankedLists, targets: Sequence[Target], split: Split) -> dict[str, np.ndarray]:
    """metric → (targets,)"""
    pairs = list(zip(lists, true_items(split, targets).tolist(), strict=True))
    ranks = np.array([rank_in_list(ranked, truth) for ranked, truth in pairs])
    titles = np.array([title_rank_in_list(ranked, truth, split.title_class) for ranked, truth in pairs])
    return ranks_to_metrics(ranks, titles)


def coverage(lists: RankedLists, num_items: int) -> float:
    """The share of all items that are among the first ten of some list."""
    return len({item for ranked in lists for item in ranked[:NUM_RESULTS]}) / num_items


def slices(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """(targets,) bool. `memory`: the history is longer than the window. `warm`: the true item occurs in training.
    `returning`: the user had the true item before."""
    split, truths = evaluation.split, true_items(evaluation.split, evaluation.targets)
    has_memory = np.array([len(example.memory_positions) > 0 for example in evaluation.examples])
    is_warm = split.popularity[truths] > 0
    pasts = [split.histories[target.user].items[: target.position] for target in evaluation.targets]
    is_returning = np.array([truth in past for truth, past in zip(truths, pasts, strict=True)])
    return {
        "all": np.ones(len(has_memory), dtype=bool),
        "memory": has_memory,
        "warm": is_warm,
        "memory_warm": has_memory & is_warm,
        "cold": ~is_warm,
        "returning": is_returning,
        "new": ~is_returning,
    }


class References(NamedTuple):
    """The rows that others are compared with; nothing is compared with a row that was not evaluated."""

    own: str  # the row of the bundle as it is served
    no_memory: str  # the same without memory


def compare_rows(metrics: Metrics, evaluation: Evaluation, references: References, seed: int) -> dict[str, Any]:
    """Means and comparisons by slice, without slices that have no target."""
    users = np.array([target.user for target in evaluation.targets])
    return {
        name: _compare_slice(
            {row: {metric: values[:, kept] for metric, values in named.items()} for row, named in metrics.items()},
            users[kept],
            references,
            seed,
        )
        for name, kept in slices(evaluation).items()
        if kept.any()
    }


def _compare_slice(metrics: Metrics, users: np.ndarray, references: References, seed: int) -> dict[str, Any]:
    columns = {(row, metric): values for row, named in metrics.items() for metric, values in named.items()}
    drawn = paired_bootstrap(columns, users, seed=seed)
    names = list(next(iter(metrics.values())))

    def against(
        compare: Callable[[MetricOfRow, MetricOfRow], Interval | None], pairs: Sequence[tuple[str, str, str]]
    ) -> Any:
        return {key: {name: compare((row, name), (other, name)) for name in names} for key, row, other in pairs}

    own, no_memory = references
    others = [(row, own, row) for row in metrics if row != own] if own in metrics else []
    to_baseline = [(row, row, BASELINE) for row in metrics if row != BASELINE] if BASELINE in metrics else []
    with_memory = [row for row in metrics if ROWS[row].differs_in_memory or row == own]
    memories = [(row, row, no_memory) for row in with_memory] if no_memory in metrics else []
    return {
        "targets": len(users),
        "users": len(np.unique(users)),
        "rows": {row: {name: drawn.interval((row, name)) for name in names} for row in metrics},
        "minus_bigrec": against(drawn.difference, to_baseline),
        "minus_bigrec_relative": against(drawn.relative, to_baseline),
        "minus_no_memory": against(drawn.difference, memories),
        "minus_no_memory_relative": against(drawn.relative, memories),
        "own_minus": against(drawn.difference, others),
        "own_minus_relative": against(drawn.relative, others),
        "by_seed": {row: _means_by_seed(named) for row, named in metrics.items() if len(named[names[0]]) > 1},
    }


def _means_by_seed(named: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """The mean of each seed. The intervals are over users and do not show this variance."""
    return {name: values.mean(axis=1).tolist() for name, values in named.items()}
