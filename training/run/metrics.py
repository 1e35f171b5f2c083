"""Ranks to numbers: recall, NDCG, and what a difference between two rows is worth.

In: the rank of the true item for every target, 0 for the first place. Out: a value of every metric for every
target, and means with 95 % intervals. One true item per target, so NDCG is 1 / log2(rank + 2) within the cut.
Pure numpy; knows neither models nor files.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

RECALL_CUTS, NDCG_CUTS = (1, 5, 10), (5, 10)
TITLE_SUFFIX = "/title"
MISSED = np.iinfo(np.int64).max  # the rank of a truth that was not ranked at all
CHUNK_BYTES = 64 * 1024 * 1024

Id = TypeVar("Id", str, int)
Name = TypeVar("Name", bound=Hashable)
Interval = tuple[float, float, float]  # mean, low, high


@dataclass(frozen=True)
class Bootstrap(Generic[Name]):
    """Means of named columns: of the data, and of every resample of its users. All columns saw the same resamples."""

    means: dict[Name, float]
    drawn: dict[Name, np.ndarray]  # (draws,)
    level: float

    def interval(self, name: Name) -> Interval:
        return _interval(self.means[name], self.drawn[name], self.level)

    def difference(self, name: Name, other: Name) -> Interval:
        return _interval(self.means[name] - self.means[other], self.drawn[name] - self.drawn[other], self.level)

    def ratio(self, name: Name, other: Name) -> Interval | None:
        """One mean over the other's. None where the other's mean, or that of some resample, is not above zero."""
        base, bases = self.means[other], self.drawn[other]
        if min(base, bases.min()) <= 0:
            return None
        return _interval(self.means[name] / base, self.drawn[name] / bases, self.level)

    def relative(self, name: Name, other: Name) -> Interval | None:
        """The difference as a share of the other's mean; None as with `ratio`."""
        ratio = self.ratio(name, other)
        return (ratio[0] - 1, ratio[1] - 1, ratio[2] - 1) if ratio else None


def ranks_to_metrics(ranks: np.ndarray, title_ranks: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """One value per target under each name of `metrics.json`; the title names only with `title_ranks`.

    `ranks` (targets,) int64, 0 is best, `MISSED` is never found. Means over targets are the usual metrics.
    """
    metrics = dict(_metrics(np.asarray(ranks, dtype=np.int64)))
    if title_ranks is not None:
        titles = _metrics(np.asarray(title_ranks, dtype=np.int64))
        metrics |= {name + TITLE_SUFFIX: values for name, values in titles}
    return metrics


def ndcg(ranks: np.ndarray, cut: int = 10) -> np.ndarray:
    """A value for each rank, 0 is the first place; half a rank is what ties may leave."""
    ranks = np.asarray(ranks, dtype=np.float64)
    return np.where(ranks < cut, 1 / np.log2(ranks + 2), 0.0)


def rank_in_list(ranked: Sequence[Id], truth: Id) -> int:
    """Place of the truth in a list, best first; `MISSED` if not there. The list's own order breaks ties."""
    return next((place for place, item in enumerate(ranked) if item == truth), MISSED)


def title_rank_in_list(ranked: Sequence[int], truth: int, title_class: np.ndarray) -> int:
    """Place of the first item whose title is the truth's, counting each title once. Items are rows."""
    classes = dict.fromkeys(title_class[np.asarray(ranked, dtype=np.int64)].tolist())
    return rank_in_list(list(classes), int(title_class[truth]))


def popularity_tie_order(popularity: np.ndarray, item_ids: Sequence[str]) -> np.ndarray:
    """(N,) places: the more popular first, then by item id. The documented rule for equal scores."""
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
    """Means over targets with percentile intervals. The resamples are drawn once, however many columns there are.

    `columns` (targets,) each, or (seeds, targets), which is averaged over seeds first; `users` (targets,)
    says whose each target is. Users are drawn whole: targets of one user are not independent. Values that
    are not finite are a ValueError: leave a missing column out.
    """
    table = _table(columns, len(users))  # (columns, targets)
    whose, num_targets = np.unique(users, return_inverse=True, return_counts=True)[1:]
    sums = np.stack([np.bincount(whose, weights=column, minlength=len(num_targets)) for column in table])
    means = (sums.sum(axis=1) / len(users)).tolist()
    drawn = np.concatenate([_means(sums, num_targets, w) for w in _weights(len(num_targets), draws, seed)])
    return Bootstrap(dict(zip(columns, means, strict=True)), dict(zip(columns, drawn.T, strict=True)), level)


def rank_correlation(scores: np.ndarray, gains: np.ndarray) -> float:
    """Spearman's, equal values sharing the mean of their places; both (M,). NaN where either knows no order."""
    a, b = _places(scores), _places(gains)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


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
    """How often each user was drawn, (some draws, users) at a time, so that memory stays bounded."""
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_BYTES // (8 * num_users))
    for begin in range(0, draws, chunk):
        chosen = rng.integers(num_users, size=(min(chunk, draws - begin), num_users))
        chosen += np.arange(len(chosen))[:, None] * num_users
        yield np.bincount(chosen.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)


def _means(sums: np.ndarray, num_targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws, columns): mean over the targets of the users drawn."""
    return (weights @ sums.T) / (weights @ num_targets.astype(np.float64))[:, None]


def _interval(mean: float, drawn: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(mean), float(low), float(high)


def _places(values: np.ndarray) -> np.ndarray:
    """(M,) places in rising order, from 0."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    places: np.ndarray = (first + (counts - 1) / 2)[group]
    return places
