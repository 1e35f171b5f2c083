"""Rows of the evaluation table that are not language models: item-kNN and SASRec, behind one call."""

from pathlib import Path

import torch

from training.data.splits import Split
from training.rows.item_knn import fit_item_knn
from training.rows.sasrec import fit_sasrec
from training.rows.scoring import Scorer, ranked_lists, top_items
from training.run.stage import StageError

BASELINES = ("item_knn", "sasrec_bce", "sasrec")

__all__ = ["BASELINES", "Scorer", "fit_baseline", "ranked_lists", "top_items"]


def fit_baseline(name: str, split: Split, seed: int, directory: Path, device: torch.device) -> Scorer:
    """Loads from `directory` what was fitted on the same split with the same seed; else fits and saves it there.

    A directory holds one baseline, with all its seeds. Raises StageError for a name that is none of `BASELINES`.
    """
    if name == "item_knn":
        return fit_item_knn(split, seed=seed, directory=directory)
    if name in ("sasrec_bce", "sasrec"):
        loss = "bce" if name == "sasrec_bce" else "strong"
        return fit_sasrec(split, loss, seed=seed, directory=directory, device=device)
    raise StageError(f"unknown baseline {name!r}: choose among {', '.join(BASELINES)}")
