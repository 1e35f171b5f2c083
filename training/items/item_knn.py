"""Item-kNN: two items are similar if users had them near each other; items similar to the recent history score high.

In: a split. Out: `item_knn.safetensors` with the similarities, and a scorer. From item i of the history to item j

    similarity(i, j) = c / (n_i^(1-b) · n_j^b + h)

c counts how often the train period has both at most `span` events of one user apart, n the events of one item. With
`span` None (anywhere in the history), b = 1/2 and h = 0 this is the cosine of the sets of users. `balance` b below 1/2
favours popular answers (Aiolli, RecSys 2013); `shrinkage` h reduces the similarity of rare pairs (Bell and Koren 2007).
Each item keeps its `num_neighbours` nearest. An event of the history has weight 2^(-age / half_life), age in events.
Items that the user had rank behind all others unless `keep_seen`. The settings are chosen by NDCG@10 on the valid
period, one after the other.
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
from training.items.co_occurrence import co_occurrences, keep_largest
from training.items.scoring import MAX_HISTORY, Scorer, ndcg_at_10, past_items, seen_last, true_items
from training.run.inputs import fingerprint
from training.run.stage import atomic_file, begin, digest, finish, is_done, progress, read_certificate

_FILE = "item_knn.safetensors"
_VALID_TARGETS = 3000
_SWEEPS = 2  # over the settings; the second corrects what the first chose beside poor values of later settings


@dataclass(frozen=True)
class KnnSettings:
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


def similarities(counts: sparse.csr_matrix, popularity: NDArray[np.int64], settings: KnnSettings) -> sparse.csr_matrix:
    """(N, N) float32: row i holds the nearest neighbours of item i and their similarities."""
    frequent = np.maximum(popularity, 1).astype(np.float32)
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    norms = frequent[rows] ** (1 - settings.balance) * frequent[counts.indices] ** settings.balance
    near = counts.copy()
    near.data /= norms + np.float32(settings.shrinkage)
    return keep_largest(near, settings.num_neighbours)


def knn_scores(
    near: sparse.csr_matrix,
    split: Split,
    targets: Sequence[Target],
    half_life: float,
    *,
    keep_seen: bool,
    length: int = MAX_HISTORY,
) -> NDArray[np.float32]:
    """(targets, N) scores ≥ 0, or −∞ for seen items that are not kept. Reads the last `length` events of a history."""
    histories = [past_items(split, target, length) for target in targets]
    ages = [np.arange(len(history))[::-1] for history in histories]
    rows = np.repeat(np.arange(len(targets)), [len(history) for history in histories])
    items = np.concatenate(histories)
    weights = np.exp2(-np.concatenate(ages) / half_life).astype(np.float32)
    history = sparse.csr_matrix((weights, (rows, items)), (len(targets), near.shape[0]))
    scores: NDArray[np.float32] = (history @ near).toarray()
    return scores if keep_seen else seen_last(scores, split, targets)


class _Search:
    """Tries settings on valid targets; keeps the counts and similarities of the last trial."""

    def __init__(self, split: Split, targets: Sequence[Target]) -> None:
        self._split, self._targets, self._truths = split, targets, true_items(split, targets)
        self._counts: tuple[int | None, sparse.csr_matrix] = (0, None)  # 0 is not a span: nothing is cached yet
        self._near: tuple[KnnSettings | None, sparse.csr_matrix] = (None, None)
        self._tried: dict[KnnSettings, float] = {}

    def near(self, settings: KnnSettings) -> sparse.csr_matrix:
        key = replace(settings, half_life=0.0, keep_seen=True)  # neither changes the similarities
        if self._counts[0] != settings.span:
            self._counts = (settings.span, co_occurrences(self._split, settings.span))
        if self._near[0] != key:
            self._near = (key, similarities(self._counts[1], self._split.popularity, settings))
        return self._near[1]

    def valid_ndcg(self, settings: KnnSettings) -> float:
        if settings not in self._tried:
            found = knn_scores(
                self.near(settings), self._split, self._targets, settings.half_life, keep_seen=settings.keep_seen
            )
            self._tried[settings] = float(ndcg_at_10(found, self._truths).mean())
        return self._tried[settings]

    def run(self) -> KnnSettings:
        """Chooses the best value of each setting in turn, with the others fixed."""
        best = KnnSettings()
        bar = progress(total=_SWEEPS * len(CHOICES), desc="item-kNN", unit="setting")
        for _ in range(_SWEEPS):
            for name, values in CHOICES.items():
                best = max((replace(best, **{name: value}) for value in values), key=self.valid_ndcg)
                bar.update()
                bar.set_postfix(ndcg=f"{self.valid_ndcg(best):.4f}")
        bar.close()
        return best


class ItemKnn(NamedTuple):
    near: sparse.csr_matrix  # (N, N), see `similarities`
    settings: KnnSettings


def load_or_fit(split: Split, *, seed: int, directory: Path) -> ItemKnn:
    """Loads the model from `directory` if it was made of the same inputs; otherwise chooses settings and saves it.

    `seed` draws the valid targets.
    """
    inputs = digest([fingerprint(split), CHOICES, _VALID_TARGETS, seed])
    if not is_done(directory, inputs):
        begin(directory)
        search = _Search(split, sample_targets(split.valid, _VALID_TARGETS, seed))
        best = search.run()
        with atomic_file(directory / _FILE) as draft:
            save_file(_arrays(search.near(best)), draft)
        finish(directory, inputs, {"settings": asdict(best), "valid_ndcg@10": round(search.valid_ndcg(best), 4)})
    return ItemKnn(_matrix(load_file(directory / _FILE)), KnnSettings(**read_certificate(directory)["settings"]))


def fit_item_knn(split: Split, *, seed: int, directory: Path) -> Scorer:
    near, settings = load_or_fit(split, seed=seed, directory=directory)
    return lambda targets: knn_scores(near, split, targets, settings.half_life, keep_seen=settings.keep_seen)


def _arrays(matrix: sparse.csr_matrix) -> dict[str, NDArray[Any]]:
    return {"data": matrix.data, "indices": matrix.indices.astype(np.int32), "indptr": matrix.indptr.astype(np.int64)}


def _matrix(arrays: dict[str, NDArray[Any]]) -> sparse.csr_matrix:
    num_items = len(arrays["indptr"]) - 1
    return sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), (num_items, num_items))
