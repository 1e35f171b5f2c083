"""Lists of items to the numbers of the report: metrics by target, slices of targets, rows against each other.

In: a contest, and for each row and seed the lists it showed. Out: means, differences and their 95 % intervals, as
metrics.json has them. Within a slice all rows and metrics see the same resamples of users.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from training.data.splits import Split, Target
from training.rows.registry import MEMORY_ROWS, NUM_RESULTS, Contest, Lists
from training.run.metrics import Interval, paired_bootstrap, rank_in_list, ranks_to_metrics, title_rank_in_list

BASELINE = "bigrec"
NO_MEMORY = "no_memory"  # the baseline of the rows that differ from it in their memory alone
OWN = ("automr_plus", "automr")  # which of them a bundle has is compared with every other row
Metrics = dict[str, dict[str, np.ndarray]]  # row → metric → (seeds, targets)
Pair = tuple[str, str]  # row, metric


def own_row(rows: Collection[str]) -> str | None:
    return next((row for row in OWN if row in rows), None)


def score(lists: Lists, targets: Sequence[Target], split: Split) -> dict[str, np.ndarray]:
    """metric → (targets,)"""
    truths = [int(split.histories[target.user].items[target.position]) for target in targets]
    pairs = list(zip(lists, truths, strict=True))
    ranks = np.array([rank_in_list(ranked, truth) for ranked, truth in pairs])
    titles = np.array([title_rank_in_list(ranked, truth, split.title_class) for ranked, truth in pairs])
    return ranks_to_metrics(ranks, titles)


def coverage(lists: Lists, num_items: int) -> float:
    """Share of the items that somebody is shown among the first ten."""
    return len({item for ranked in lists for item in ranked[:NUM_RESULTS]}) / num_items


def slices(contest: Contest) -> dict[str, np.ndarray]:
    """(targets,) bool: `memory` has an element beyond the window, `warm` has a true item seen in training."""
    split, targets = contest.split, contest.targets
    truths = np.array([split.histories[target.user].items[target.position] for target in targets])
    has_memory = np.array([len(example.memory_positions) > 0 for example in contest.examples])
    is_warm = split.popularity[truths] > 0
    return {
        "all": np.ones(len(targets), dtype=bool),
        "memory": has_memory,
        "warm": is_warm,
        "memory_warm": has_memory & is_warm,
        "cold": ~is_warm,
    }


def summarise(metrics: Metrics, contest: Contest, seed: int) -> dict[str, Any]:
    """By slice; a slice without targets is left out."""
    users = np.array([target.user for target in contest.targets])
    return {
        name: _summarise_slice(
            {row: {metric: values[:, kept] for metric, values in named.items()} for row, named in metrics.items()},
            users[kept],
            seed,
        )
        for name, kept in slices(contest).items()
        if kept.any()
    }


def _summarise_slice(metrics: Metrics, users: np.ndarray, seed: int) -> dict[str, Any]:
    columns = {(row, metric): values for row, named in metrics.items() for metric, values in named.items()}
    drawn = paired_bootstrap(columns, users, seed=seed)
    names = list(next(iter(metrics.values())))

    def against(compare: Callable[[Pair, Pair], Interval | None], pairs: Sequence[tuple[str, str, str]]) -> Any:
        return {key: {name: compare((row, name), (other, name)) for name in names} for key, row, other in pairs}

    own = own_row(metrics)
    rivals = [(row, own, row) for row in metrics if row != own] if own else []
    others = [(row, row, BASELINE) for row in metrics if row != BASELINE] if BASELINE in metrics else []
    memories = [(row, row, NO_MEMORY) for row in metrics if row in MEMORY_ROWS] if NO_MEMORY in metrics else []
    return {
        "targets": len(users),
        "users": len(np.unique(users)),
        "rows": {row: {name: drawn.interval((row, name)) for name in names} for row in metrics},
        "minus_bigrec": against(drawn.difference, others),
        "minus_bigrec_relative": against(drawn.relative, others),
        "minus_no_memory": against(drawn.difference, memories),
        "minus_no_memory_relative": against(drawn.relative, memories),
        "own_minus": against(drawn.difference, rivals),
        "own_minus_relative": against(drawn.relative, rivals),
        "by_seed": {row: _by_seed(named) for row, named in metrics.items() if len(named[names[0]]) > 1},
    }


def _by_seed(named: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """The mean of each draw: what an interval over users does not show."""
    return {name: values.mean(axis=1).tolist() for name, values in named.items()}
