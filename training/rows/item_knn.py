"""Item-kNN: items are near that the same users had near each other; what is near the recent history scores.

In: a split. Out: `item_knn.safetensors`, the similarities, and a scorer. From i in the history to j, the answer,

    similarity(i, j) = c / (n_i^(1-b) · n_j^b + h)

c counts how often the train period has both at most `span` events of one user apart, n how often it has one. Span None,
anywhere in the history, with b = 1/2 and h = 0 is the cosine of the sets of users; `balance` b below a half favours the
popular answer (Aiolli, RecSys 2013), `shrinkage` h distrusts small counts (Bell and Koren 2007). Each item keeps its
`num_neighbours` nearest. An event of the history counts 2^(-age / half_life), age in events. Seen items rank behind all
others unless `keep_seen`. All are chosen by NDCG@10 on the valid period, one after the other.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse

from training.data.splits import Split, Target, sample_targets
from training.rows.scoring import MAX_HISTORY, Scorer, ndcg_at_10, past, seen_last, truths
from training.run.inputs import fingerprint
from training.run.stage import begin, digest, finish, is_done, progress, read_certificate, whole_file

_FILE = "item_knn.safetensors"
_VALID_TARGETS = 3000
_SWEEPS = 2  # over the choices; a second one mends what the first chose beside a poor start


@dataclass(frozen=True)
class Settings:
    span: int | None = 20
    balance: float = 0.5
    shrinkage: float = 0.0
    num_neighbours: int = 300
    half_life: float = 3.0
    keep_seen: bool = False


CHOICES: dict[str, tuple[Any, ...]] = {
    "span": (3, 10, 20, None),
    "half_life": (1.0, 2.0, 4.0, 10.0, 50.0),
    "balance": (0.0, 0.15, 0.3, 0.5, 0.7),
    "shrinkage": (0.0, 5.0, 20.0, 80.0),
    "num_neighbours": (50, 300, 2000),
    "keep_seen": (True, False),
}


def co_occurrences(split: Split, span: int | None) -> sparse.csr_matrix:
    """(N, N) float32, symmetric, no diagonal: pairs in the train period at most `span` events of one user apart.

    With None, users who had both.
    """
    user = np.repeat(np.arange(len(split.histories)), [history.train_end for history in split.histories])
    item = np.concatenate([history.items[: history.train_end] for history in split.histories])
    num_items = len(split.item_ids)
    if span is None:
        had = sparse.csr_matrix((np.ones(len(item), np.float32), (user, item)), (len(split.histories), num_items))
        had.data[:] = 1  # a user who had it twice had it
        counts = (had.T @ had).tocsr()
    else:
        pairs = [np.stack([item[:-gap], item[gap:]])[:, user[gap:] == user[:-gap]] for gap in range(1, span + 1)]
        first, second = np.concatenate(pairs, axis=1)
        counts = sparse.csr_matrix((np.ones(len(first), np.float32), (first, second)), (num_items, num_items))
        counts = (counts + counts.T).tocsr()
    counts.setdiag(0)
    counts.eliminate_zeros()
    return counts


def similarities(counts: sparse.csr_matrix, popularity: NDArray[np.int64], settings: Settings) -> sparse.csr_matrix:
    """(N, N) float32: row i holds the nearest neighbours of item i and how near they are."""
    frequent = np.maximum(popularity, 1).astype(np.float32)
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    norms = frequent[rows] ** (1 - settings.balance) * frequent[counts.indices] ** settings.balance
    near = counts.copy()  # its indices, too, are changed below
    near.data /= norms + np.float32(settings.shrinkage)
    for start, stop in zip(near.indptr[:-1], near.indptr[1:], strict=True):
        if stop - start > settings.num_neighbours:
            values = near.data[start:stop]  # a view
            far = np.argpartition(values, len(values) - settings.num_neighbours)[: -settings.num_neighbours]
            values[far] = 0
    near.eliminate_zeros()
    return near


def score(
    near: sparse.csr_matrix,
    split: Split,
    targets: Sequence[Target],
    half_life: float,
    *,
    keep_seen: bool,
    length: int = MAX_HISTORY,
) -> NDArray[np.float32]:
    """(targets, N), not negative; minus infinity for seen items that are not kept. Of histories the last `length`."""
    histories = [past(split, target, length) for target in targets]
    ages = [np.arange(len(history))[::-1] for history in histories]
    rows = np.repeat(np.arange(len(targets)), [len(history) for history in histories])
    items = np.concatenate(histories)
    weights = np.exp2(-np.concatenate(ages) / half_life).astype(np.float32)
    history = sparse.csr_matrix((weights, (rows, items)), (len(targets), near.shape[0]))
    scores: NDArray[np.float32] = (history @ near).toarray()
    return scores if keep_seen else seen_last(scores, split, targets)


class _Search:
    """Tries settings on valid targets; remembers the counts and similarities that the last trial used."""

    def __init__(self, split: Split, targets: Sequence[Target]) -> None:
        self._split, self._targets, self._truths = split, targets, truths(split, targets)
        self._counts: tuple[int | None, sparse.csr_matrix] = (0, None)  # no span is 0
        self._near: tuple[Settings | None, sparse.csr_matrix] = (None, None)
        self._tried: dict[Settings, float] = {}

    def near(self, settings: Settings) -> sparse.csr_matrix:
        key = replace(settings, half_life=0.0, keep_seen=True)  # neither changes the similarities
        if self._counts[0] != settings.span:
            self._counts = (settings.span, co_occurrences(self._split, settings.span))
        if self._near[0] != key:
            self._near = (key, similarities(self._counts[1], self._split.popularity, settings))
        return self._near[1]

    def quality(self, settings: Settings) -> float:
        if settings not in self._tried:
            found = score(
                self.near(settings), self._split, self._targets, settings.half_life, keep_seen=settings.keep_seen
            )
            self._tried[settings] = float(ndcg_at_10(found, self._truths).mean())
        return self._tried[settings]

    def run(self) -> Settings:
        """The best value of each setting in turn, the others held."""
        best = Settings()
        bar = progress(total=_SWEEPS * len(CHOICES), desc="item-kNN", unit="setting")
        for _ in range(_SWEEPS):
            for name, values in CHOICES.items():
                best = max((replace(best, **{name: value}) for value in values), key=self.quality)
                bar.update()
                bar.set_postfix(ndcg=f"{self.quality(best):.4f}")
        bar.close()
        return best


class Fitted(NamedTuple):
    near: sparse.csr_matrix  # (N, N), see `similarities`
    settings: Settings


def fitted(split: Split, *, seed: int, directory: Path) -> Fitted:
    """Chooses and saves, unless `directory` holds the model of these very inputs. `seed` draws the valid targets."""
    inputs = digest([fingerprint(split), CHOICES, _VALID_TARGETS, seed])
    if not is_done(directory, inputs):
        begin(directory)
        search = _Search(split, sample_targets(split.valid, _VALID_TARGETS, seed))
        best = search.run()
        with whole_file(directory / _FILE) as draft:
            save_file(_arrays(search.near(best)), draft)
        finish(directory, inputs, {"settings": asdict(best), "valid_ndcg@10": round(search.quality(best), 4)})
    return Fitted(_matrix(load_file(directory / _FILE)), Settings(**read_certificate(directory)["settings"]))


def fit_item_knn(split: Split, *, seed: int, directory: Path) -> Scorer:
    near, settings = fitted(split, seed=seed, directory=directory)
    return lambda targets: score(near, split, targets, settings.half_life, keep_seen=settings.keep_seen)


def _arrays(matrix: sparse.csr_matrix) -> dict[str, NDArray[Any]]:
    return {"data": matrix.data, "indices": matrix.indices.astype(np.int32), "indptr": matrix.indptr.astype(np.int64)}


def _matrix(arrays: dict[str, NDArray[Any]]) -> sparse.csr_matrix:
    num_items = len(arrays["indptr"]) - 1
    return sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), (num_items, num_items))
