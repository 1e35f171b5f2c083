"""Recall and NDCG from ranks, and bootstrap intervals by user.

In: the rank of the true item for every target, 0 for the first place. Out: every metric for every target, and means
with 95 % intervals. Each target has one true item, so NDCG is 1 / log2(rank + 2) within the cut-off. Knows neither
models nor files.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from scipy.stats import spearmanr

RECALL_CUTS, NDCG_CUTS = (1, 5, 10), (5, 10)
TITLE_SUFFIX = "/title"
MISSED = np.iinfo(np.int64).max  # the rank of a true item that was not ranked
CHUNK_BYTES = 64 * 1024 * 1024

Id = TypeVar("Id", str, int)
Name = TypeVar("Name", bound=Hashable)
Interval = tuple[float, float, float]  # mean, low, high


@dataclass(frozen=True)
class Bootstrap(Generic[Name]):
    """Means of named columns, in the data and in every resample of users. All columns share the same resamples."""

    means: dict[Name, float]
    drawn: dict[Name, np.ndarray]  # (draws,)
    level: float

    def interval(self, name: Name) -> Interval:
        return _interval(self.means[name], self.drawn[name], self.level)

    def difference(self, name: Name, other: Name) -> Interval:
        return _interval(self.means[name] - self.means[other], self.drawn[name] - self.drawn[other], self.level)

    def ratio(self, name: Name, other: Name) -> Interval | None:
        """One mean divided by the other. None if the other mean is not positive in the data and in all resamples."""
        base, bases = self.means[other], self.drawn[other]
        if min(base, bases.min()) <= 0:
            return None
        return _interval(self.means[name] / base, self.drawn[name] / bases, self.level)

    def relative(self, name: Name, other: Name) -> Interval | None:
        """The difference divided by the other mean; None as with `ratio`."""
        ratio = self.ratio(name, other)
        return (ratio[0] - 1, ratio[1] - 1, ratio[2] - 1) if ratio else None


def ranks_to_metrics(ranks: np.ndarray, title_ranks: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Metric name as in `metrics.json` → one value per target. Metrics by title are there only with `title_ranks`.

    `ranks` (targets,) int64; 0 is best, `MISSED` is not found.
    """
    metrics = dict(_metrics(np.asarray(ranks, dtype=np.int64)))
    if title_ranks is not None:
        titles = _metrics(np.asarray(title_ranks, dtype=np.int64))
        metrics |= {name + TITLE_SUFFIX: values for name, values in titles}
    return metrics


def ndcg(ranks: np.ndarray, cut: int = 10) -> np.ndarray:
    """NDCG for each rank, 0 is the first place. Ranks may be fractional, as the mean rank of ties is."""
    ranks = np.asarray(ranks, dtype=np.float64)
    return np.where(ranks < cut, 1 / np.log2(ranks + 2), 0.0)


def rank_in_list(ranked: Sequence[Id], truth: Id) -> int:
    """Rank of the true item in a list, best first; `MISSED` if it is not in the list."""
    return next((place for place, item in enumerate(ranked) if item == truth), MISSED)


def title_rank_in_list(ranked: Sequence[int], truth: int, title_class: np.ndarray) -> int:
    """Rank of the first item with the title of the true item; each title counts once. Items are row numbers."""
    classes = dict.fromkeys(title_class[np.asarray(ranked, dtype=np.int64)].tolist())
    return rank_in_list(list(classes), int(title_class[truth]))


def popularity_tie_order(popularity: np.ndarray, item_ids: Sequence[str]) -> np.ndarray:
    """(N,) rank of each item when scores are equal: the more popular first, then by item id."""
    by_id = np.argsort(np.array(item_ids, dtype=np.str_), kind="stable")
    order = by_id[np.argsort(-popularity[by_id], kind="stable")]
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return places


def paired_bootstrap(
    columns: Mapping[Name, np.ndarray],
    users: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Bootstrap[Name]:
    """Means over targets with percentile intervals. The resamples are drawn once for all columns.

    `columns` are (targets,) each, or (seeds, targets), which are averaged over seeds first; `users` (targets,) is the
    user of each target. Resampling draws whole users, because targets of one user are not independent. Raises
    ValueError for values that are not finite.
    """
    table = _table(columns, len(users))  # (columns, targets)
    whose, num_targets = np.unique(users, return_inverse=True, return_counts=True)[1:]
    sums = np.stack([np.bincount(whose, weights=column, minlength=len(num_targets)) for column in table])
    means = (sums.sum(axis=1) / len(users)).tolist()
    drawn = np.concatenate([_means(sums, num_targets, w) for w in _weights(len(num_targets), draws, seed)])
    return Bootstrap(dict(zip(columns, means, strict=True)), dict(zip(columns, drawn.T, strict=True)), level)


def standard_error(gains: np.ndarray, users: Sequence[int]) -> float:
    """Of the mean of `gains` (T,), with targets clustered by user. There must be targets."""
    whose = np.unique(np.array(users), return_inverse=True)[1]
    sums = np.bincount(whose, weights=gains - gains.mean())
    return float(np.sqrt((sums**2).sum()) / len(gains))


def rank_correlation(scores: np.ndarray, gains: np.ndarray) -> float:
    """Spearman's ρ of two (M,) arrays; NaN if all values of one are equal."""
    if np.ptp(scores) == 0 or np.ptp(gains) == 0:
        return float("nan")
    return float(spearmanr(scores, gains).statistic)


def _metrics(ranks: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if (ranks < 0).any():
        raise ValueError("a rank is negative: ranks count from 0")
    yield from ((f"recall@{k}", (ranks < k).astype(np.float64)) for k in RECALL_CUTS)
    yield from ((f"ndcg@{k}", ndcg(ranks, k)) for k in NDCG_CUTS)


def _table(columns: Mapping[Name, np.ndarray], num_targets: int) -> np.ndarray:
    if not columns or not num_targets:
        raise ValueError("a bootstrap needs at least one column and one target")
    table = [np.atleast_2d(np.asarray(values, dtype=np.float64)).mean(axis=0) for values in columns.values()]
    for name, values in zip(columns, table, strict=True):
        if values.shape != (num_targets,):
            raise ValueError(f"{name}: {values.shape[-1]} values for {num_targets} targets")
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: {int((~np.isfinite(values)).sum())} values are not finite")
    return np.stack(table)


def _weights(num_users: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each user was drawn, (draws, users), in chunks that keep memory bounded."""
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_BYTES // (8 * num_users))
    for begin in range(0, draws, chunk):
        chosen = rng.integers(num_users, size=(min(chunk, draws - begin), num_users))
        chosen += np.arange(len(chosen))[:, None] * num_users
        yield np.bincount(chosen.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)


def _means(sums: np.ndarray, num_targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws, columns) means over the targets of the drawn users."""
    return (weights @ sums.T) / (weights @ num_targets.astype(np.float64))[:, None]


def _interval(mean: float, drawn: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(mean), float(low), float(high)
