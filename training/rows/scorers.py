"""Rows without a language model: popularity, item-kNN and SASRec score all items, and one rule makes lists of scores.

In: an evaluation. Out: lists. To add such a model, write a function that fits it, or loads it where it is fitted, and
add it to `SCORERS`; then `scored` is its row and `scorer_place` the folder of its certificate.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.splits import Split, Target
from training.items.item_knn import fit_item_knn, load_or_fit
from training.items.scoring import Scorer
from training.items.title_features import fit_title_knn
from training.rows.evaluation import Evaluation, Rank, RankedLists
from training.rows.sasrec import fit_sasrec
from training.run.device import pick_device

FitScorer = Callable[[Split, int, Path, torch.device], Scorer]  # (split, seed, directory, device); loads if fitted


# --- rows ---------------------------------------------------------------------------------------------------------


def popularity(evaluation: Evaluation, seed: int) -> RankedLists:
    return evaluation.rank_with_scores(popularity_scorer(evaluation.split))


def copy_last(evaluation: Evaluation, seed: int) -> RankedLists:
    """The newest item of the history that may be shown again, then the most popular items."""
    return evaluation.rank_with_scores(last_item_scorer(evaluation))


def scored(name: str) -> Rank:
    """A model of `SCORERS`, fitted once for each directory and seed."""

    def rank(evaluation: Evaluation, seed: int) -> RankedLists:
        device = pick_device(evaluation.training.device)
        directory, fit = _directory(evaluation, name), SCORERS[name]
        scorer = evaluation.compute_once((name, seed), lambda: fit(evaluation.split, seed, directory, device))
        return evaluation.rank_with_scores(scorer)

    return rank


def scorer_place(name: str) -> Callable[[Evaluation, int], Path]:
    """Where the certificate of a model of `SCORERS` is. Models with several seeds have a folder for each."""

    def place(evaluation: Evaluation, seed: int) -> Path:
        directory = _directory(evaluation, name)
        of_seed = directory / f"seed-{seed}"
        return of_seed if of_seed.is_dir() else directory

    return place


def _directory(evaluation: Evaluation, name: str) -> Path:
    return evaluation.training.directory / f"{name}-{evaluation.training.fingerprint}"


# --- models -------------------------------------------------------------------------------------------------------


def popularity_scorer(split: Split) -> Scorer:
    """The same scores for every user: the number of interactions in the train period."""
    return lambda targets: np.tile(split.popularity.astype(np.float32), (len(targets), 1))


def last_item_scorer(evaluation: Evaluation) -> Scorer:
    """Popularity, but the newest item of the history that may be shown comes first."""
    split, popular = evaluation.split, popularity_scorer(evaluation.split)

    def score(targets: Sequence[Target]) -> NDArray[np.float32]:
        scores = popular(targets)
        for row, target in enumerate(targets):
            items = split.histories[target.user].items[: target.position]
            shown = items[~np.isin(items, evaluation.hidden(target))]
            scores[row, shown[-1:]] = np.inf
        return scores

    return score


def _title_knn(split: Split, seed: int, directory: Path, device: torch.device) -> Scorer:
    """The similarities are those of the row `item_knn`, whose folder is beside."""
    plain = load_or_fit(split, seed=seed, directory=directory.with_name(directory.name.replace("_titles", "")))
    return fit_title_knn(split, plain, seed=seed, directory=directory)


def _sasrec(variant: str) -> FitScorer:
    return lambda split, seed, directory, device: fit_sasrec(
        split, variant, seed=seed, directory=directory, device=device
    )


SCORERS: dict[str, FitScorer] = {
    "item_knn": lambda split, seed, directory, device: fit_item_knn(split, seed=seed, directory=directory),
    "item_knn_titles": _title_knn,
    "sasrec_bce": _sasrec("bce"),
    "sasrec": _sasrec("strong"),
    "sasrec_titles": _sasrec("titles"),
}
