"""Titles as features of rows without a language model: vectors of titles, and item-kNN that also reads titles.

In: a split. Out: (N, F) vectors for SASRec; a scorer whose similarity is

    nearness(i, j) = similarity(i, j) of item-kNN + β · likeness of the titles of i and j

(`likeness.combined`). The settings of the similarity are those of item-kNN. β, the half-life, and whether seen items
are kept are chosen by NDCG@10 on the valid period. AutoMR + reads titles in the same way, so these rows show how much
of its lead is due to titles alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from training.data.splits import Split, Target, sample_targets
from training.items.item_knn import (
    CHOICES,
    VALID_TARGETS,
    ItemKnn,
    at_grid_end,
    choose_in_turn,
    knn_scores,
    load_matrix,
    save_matrix,
)
from training.items.likeness import alike_items, combined, tf_idf
from training.items.scoring import Scorer, ndcg_at_10, true_items
from training.run.inputs import fingerprint
from training.run.stage import begin, digest, finish, is_done, read_certificate

_VERSION = 1
_FILE = "nearness.safetensors"


@dataclass(frozen=True)
class TitleKnnSettings:
    likeness_weight: float = 1.0  # β
    half_life: float = 3.0
    keep_seen: bool = False


TITLE_CHOICES: dict[str, tuple[Any, ...]] = {
    "likeness_weight": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "half_life": CHOICES["half_life"],
    "keep_seen": CHOICES["keep_seen"],
}


class _Search:
    """Tries settings on valid targets; keeps the table of the last weight."""

    def __init__(self, split: Split, near: sparse.csr_matrix, targets: Sequence[Target]) -> None:
        self._split, self._targets, self._truths = split, targets, true_items(split, targets)
        self._parts = near, alike_items(split)
        self._table: tuple[float | None, sparse.csr_matrix] = (None, None)
        self._tried: dict[TitleKnnSettings, float] = {}

    def table(self, weight: float) -> sparse.csr_matrix:
        if self._table[0] != weight:
            self._table = (weight, combined(*self._parts, weight))
        return self._table[1]

    def valid_ndcg(self, settings: TitleKnnSettings) -> float:
        if settings not in self._tried:
            table = self.table(settings.likeness_weight)
            found = knn_scores(table, self._split, self._targets, settings.half_life, keep_seen=settings.keep_seen)
            self._tried[settings] = float(ndcg_at_10(found, self._truths).mean())
        return self._tried[settings]


def fit_title_knn(split: Split, plain: ItemKnn, *, seed: int, directory: Path) -> Scorer:
    """Chooses the settings, or loads them where `directory` holds the result of the same inputs.

    `plain` is the fitted item-kNN of the split; `seed` draws the valid targets.
    """
    inputs = digest([_VERSION, fingerprint(split), asdict(plain.settings), TITLE_CHOICES, VALID_TARGETS, seed])
    if not is_done(directory, inputs):
        begin(directory)
        search = _Search(split, plain.near, sample_targets(split.valid, VALID_TARGETS, seed))
        start = TitleKnnSettings(half_life=plain.settings.half_life, keep_seen=plain.settings.keep_seen)
        best: TitleKnnSettings = choose_in_turn(start, TITLE_CHOICES, search.valid_ndcg, "item-kNN with titles")
        save_matrix(search.table(best.likeness_weight), directory / _FILE)
        facts = {"settings": asdict(best), "at_grid_end": at_grid_end(asdict(best), TITLE_CHOICES)}
        finish(directory, inputs, {**facts, "valid_ndcg@10": round(search.valid_ndcg(best), 4)})
    table = load_matrix(directory / _FILE)
    chosen = TitleKnnSettings(**read_certificate(directory)["settings"])
    return lambda targets: knn_scores(table, split, targets, chosen.half_life, keep_seen=chosen.keep_seen)


def title_vectors(split: Split, dimension: int, *, seed: int) -> NDArray[np.float32]:
    """(N, dimension), rows of length 1; zeros where a title shares no term with another one.

    The truncated singular vectors, times the singular values, of the TF-IDF vectors of the distinct titles (latent
    semantic analysis, Deerwester et al. 1990). Needs titles only, so items without events have vectors too.
    """
    first, number = np.unique(split.title_class, return_index=True, return_inverse=True)[1:]
    table = tf_idf([split.titles[item] for item in first])
    rank = min(dimension, min(table.shape) - 1)
    vectors = np.zeros((table.shape[0], dimension), dtype=np.float32)
    if table.nnz and rank > 0:
        left, values, _ = svds(table, k=rank, rng=np.random.default_rng(seed))
        vectors[:, :rank] = left * values
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(lengths > 1e-6, vectors / np.maximum(lengths, 1e-6), 0.0).astype(np.float32)
    return unit[number]
