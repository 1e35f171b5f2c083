"""The list of the rows of the evaluation table, and how to add one.

To add a row: write a function that takes an `Evaluation` and a seed and gives one list of ten items for each target
(a module of this folder, see `rella.py` for a short one), and add an `EvaluationRow` with it to `ROWS` below. The entry
also holds the name and the explanation that the report shows. `training.evaluate` then computes the row, caches, times
and compares it; `--models NAME` computes it alone. A trained model that scores items goes through `_scored`.

`automr` and `automr_plus` are the bundle's own rows; a bundle has one of the two. In `automr` the generator was not
tuned to read memory (the paper's frozen model). `automr_plus` has a generator tuned to read memory, and mixes in item
neighbours (`model_store/neighbors.py`). The rows with `differs_in_memory` are `automr_plus` with another memory, and
`no_memory` is the same without one. A bundle without item neighbours lacks the rows that would repeat another row,
see `canonical_row`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from model_store.bundle import Bundle
from training.data.splits import Split
from training.items.item_knn import fit_item_knn
from training.items.scoring import Scorer, ranked_lists
from training.rows.evaluation import NUM_RESULTS, Evaluation, RankedLists, recipe_of
from training.rows.full_history import full_history
from training.rows.memory_choices import (
    ChooseMemories,
    best_single_choice,
    newest_choice,
    no_memory,
    random_choice,
    retriever_choice,
)
from training.rows.popularity import popularity_scorer
from training.rows.rella import rella_extend, rella_replace
from training.rows.sasrec import fit_sasrec
from training.rows.trsr import trsr
from training.run.device import pick_device

Rank = Callable[[Evaluation, int], RankedLists]  # (evaluation, seed) → lists
FitScorer = Callable[[Split, int, Path, torch.device], Scorer]  # (split, seed, directory, device); loads if fitted

_ALMOST_ALL = 1 - 1e-6  # λ of item neighbours alone: the language model only orders items with equal votes


@dataclass(frozen=True)
class EvaluationRow:
    label: str  # name in the report
    explanation: str  # one sentence in the report
    rank: Rank
    is_seeded: bool = False  # lists differ by seed, so several seeds are drawn
    is_timed: bool = True  # a language model answers, so its time can be compared with that of `bigrec`
    needs_recipe: bool = False  # trains a language model as the bundle was trained
    has_neighbors: bool = False  # item neighbours have the bundle's share in the ranking
    differs_in_memory: bool = False  # differs from `no_memory` in its memory only


def predict(evaluation: Evaluation, row: str, seed: int) -> RankedLists:
    """The lists of one row. Raises StageError where the bundle lacks what the row needs."""
    return ROWS[row].rank(evaluation.with_neighbor_share(neighbor_share(evaluation.bundle, row)), seed)


def neighbor_share(bundle: Bundle, row: str) -> float:
    """λ: the share of the item neighbours in the ranking of a row. Only rows of AutoMR + have neighbours."""
    share = bundle.manifest.generation.neighbor_share if _is_tuned(bundle) else 0.0
    if row == "neighbors":
        return _ALMOST_ALL if share else 0.0
    return share if ROWS[row].has_neighbors else 0.0


def canonical_row(row: str, bundle: Bundle) -> str:
    """The row that is evaluated when `row` is asked for.

    `automr` and `automr_plus` both mean the one that the bundle has. Without item neighbours, rows that differ in their
    neighbours only are equal: `no_memory` and `neighbors` are `bigrec`, and `automr_plus_lm` is the bundle's own row.
    """
    own = "automr_plus" if _is_tuned(bundle) else "automr"
    canonical = {"automr": own, "automr_plus": own}
    if not neighbor_share(bundle, "no_memory"):
        canonical |= {"no_memory": "bigrec", "neighbors": "bigrec", "automr_plus_lm": own}
    return canonical.get(row, row)


def available_rows(bundle: Bundle) -> tuple[str, ...]:
    """All rows that this bundle can have. Rows that train a language model need the bundle's recipe."""
    has_recipe = recipe_of(bundle) is not None
    return tuple(
        name
        for name, row in ROWS.items()
        if canonical_row(name, bundle) == name and (has_recipe or not row.needs_recipe)
    )


def _is_tuned(bundle: Bundle) -> bool:
    """Whether the generator was tuned to read memory."""
    return "memory-aware" in (bundle.manifest.backbone.adapter or "")


def _popularity(evaluation: Evaluation, seed: int) -> RankedLists:
    return _top_items(evaluation, popularity_scorer(evaluation.split, repeat_last=False))


def _copy_last(evaluation: Evaluation, seed: int) -> RankedLists:
    return _top_items(evaluation, popularity_scorer(evaluation.split, repeat_last=True))


def _scored(name: str) -> Rank:
    """A model of `SCORERS`, fitted once for each directory and seed."""

    def rank(evaluation: Evaluation, seed: int) -> RankedLists:
        training = evaluation.training
        directory = training.directory / f"{name}-{training.fingerprint}"
        device = pick_device(training.device)
        fit = SCORERS[name]
        return _top_items(
            evaluation,
            evaluation.compute_once((name, seed), lambda: fit(evaluation.split, seed, directory, device)),
        )

    return rank


def _top_items(evaluation: Evaluation, scorer: Scorer) -> RankedLists:
    return ranked_lists(scorer, evaluation.split, evaluation.targets, NUM_RESULTS, mask_seen=evaluation.mask_seen)


def _generated(name: str, choice: Callable[[Evaluation, int], ChooseMemories]) -> Rank:
    """The bundle's own generator, with the memories of `choice`."""
    return lambda evaluation, seed: evaluation.rank_with_memory(choice(evaluation, seed), name)


def _no_memory(evaluation: Evaluation, seed: int) -> ChooseMemories:
    return no_memory


def _retriever(evaluation: Evaluation, seed: int) -> ChooseMemories:
    return retriever_choice


def _random(evaluation: Evaluation, seed: int) -> ChooseMemories:
    return random_choice(evaluation.bundle.manifest.retriever.top_k, seed)


def _newest(evaluation: Evaluation, seed: int) -> ChooseMemories:
    return newest_choice(evaluation.bundle.manifest.retriever.top_k)


def _oracle(evaluation: Evaluation, seed: int) -> ChooseMemories:
    return best_single_choice(evaluation.annotate())


def _sasrec(loss: str) -> FitScorer:
    return lambda split, seed, directory, device: fit_sasrec(split, loss, seed=seed, directory=directory, device=device)


SCORERS: dict[str, FitScorer] = {
    "item_knn": lambda split, seed, directory, device: fit_item_knn(split, seed=seed, directory=directory),
    "sasrec_bce": _sasrec("bce"),
    "sasrec": _sasrec("strong"),
}

ROWS: dict[str, EvaluationRow] = {
    # Without a language model.
    "popularity": EvaluationRow(
        "popularity",
        "the most popular items of the training period, the same list for every user",
        _popularity,
        is_timed=False,
    ),
    "copy_last": EvaluationRow(
        "copy the last title",
        "the last item of the history again, then the most popular items",
        _copy_last,
        is_timed=False,
    ),
    "item_knn": EvaluationRow(
        "item-kNN",
        "items that other users read close to the items of this history",
        _scored("item_knn"),
        is_timed=False,
    ),
    "sasrec_bce": EvaluationRow(
        "SASRec (BCE)",
        "self-attention over item ids, trained with the loss of its paper",
        _scored("sasrec_bce"),
        is_seeded=True,
        is_timed=False,
    ),
    "sasrec": EvaluationRow(
        "SASRec (strong)",
        "the same network, trained with a softmax over the items",
        _scored("sasrec"),
        is_seeded=True,
        is_timed=False,
    ),
    # Other uses of the language model; no item neighbours.
    "bigrec": EvaluationRow("BIGRec", "the language model reads the window only", _generated("bigrec", _no_memory)),
    "rella_replace": EvaluationRow(
        "ReLLa, replace",
        "instead of the window, the prompt shows the items of the history that are most similar to it",
        rella_replace,
    ),
    "rella_extend": EvaluationRow(
        "ReLLa, extend",
        "the prompt shows the older items that are most similar to the window, then the window",
        rella_extend,
    ),
    "trsr": EvaluationRow(
        "TRSR", "the prompt shows a summary of the older history, then the window", trsr, needs_recipe=True
    ),
    "full_history": EvaluationRow(
        "full history in the prompt",
        "the prompt shows all older items as text: the reference for cost",
        full_history,
        needs_recipe=True,
    ),
    # The bundle's own rows, and the same with other memories.
    "automr": EvaluationRow(
        "AutoMR",
        "the memories that the retriever picks, if any, and a generator that was not tuned to read memory",
        _generated("automr", _retriever),
    ),
    "neighbors": EvaluationRow(
        "item neighbours of AutoMR +",
        "item neighbours alone: items that others read next to the items of the window, and items with similar titles",
        _generated("neighbors", _no_memory),
    ),
    "no_memory": EvaluationRow(
        "AutoMR + without memory",
        "the window and item neighbours: the reference for what memory adds",
        _generated("no_memory", _no_memory),
        has_neighbors=True,
    ),
    "random": EvaluationRow(
        "random memory",
        "as many random memories as the retriever may take; the mean of several draws",
        _generated("random", _random),
        is_seeded=True,
        has_neighbors=True,
        differs_in_memory=True,
    ),
    "recent_beyond": EvaluationRow(
        "newest memory",
        "the newest memories older than the window, as many as the retriever may take",
        _generated("recent_beyond", _newest),
        has_neighbors=True,
        differs_in_memory=True,
    ),
    "automr_plus_lm": EvaluationRow(
        "AutoMR + without neighbours",
        "its language model with memory, without item neighbours",
        _generated("automr_plus_lm", _retriever),
    ),
    "automr_plus": EvaluationRow(
        "AutoMR +",
        "the memories that the retriever picks, if any, a generator tuned to read them, and item neighbours",
        _generated("automr_plus", _retriever),
        has_neighbors=True,
        differs_in_memory=True,
    ),
    "oracle": EvaluationRow(
        "oracle",
        "the single memory that raises the probability of the true title most, or none: it knows the answer",
        _generated("oracle", _oracle),
        is_timed=False,
        has_neighbors=True,
        differs_in_memory=True,
    ),
}
