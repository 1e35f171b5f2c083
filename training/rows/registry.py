"""The list of the rows of the evaluation table, and how to add one.

To add a row: write a function that takes an `Evaluation` and a seed and gives one list of ten items for each target
(a module of this folder, see `rella.py` for a short one), and add an `EvaluationRow` with it to `ROWS` below. The entry
also holds the name and the explanation that the report shows. `training.evaluate` then computes the row, caches, times
and compares it; `--models NAME` computes it alone. A model that scores items goes into `scorers.py`.

`automr` is the paper's AutoMR: a frozen generator, which was not tuned to read memory. `automr_plus` has a generator
tuned to read memory, and mixes in item neighbours (`model_store/neighbors.py`). One of the two is the bundle's own row
(`own_row`). The rows with `differs_in_memory` are the bundle's own row with another memory; `memory_reference` is the
same without one. A bundle without item neighbours lacks the rows that would repeat another row, see `canonical_row`.

Rows of other methods with a language model have generators that were tuned without memory (`generators.py`). Where the
bundle's own generator was tuned without memory, it is BIGRec's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.bundle import Bundle
from training.rows.evaluation import Evaluation, Rank, RankedLists, is_memory_tuned, recipe_of
from training.rows.frozen_automr import frozen_automr, retriever_directory
from training.rows.generators import (
    bigrec,
    full_history,
    full_length,
    generator_directory,
)
from training.rows.memory_choices import (
    ChooseMemories,
    best_single_choice,
    newest_choice,
    no_memory,
    random_choice,
    retriever_choice,
)
from training.rows.rella import extended_length, rella_extend, rella_replace
from training.rows.scorers import copy_last, popularity, scored, scorer_place
from training.rows.trsr import trsr
from training.run.stage import CERTIFICATE, read_certificate

Place = Callable[[Evaluation, int], Path | None]  # (evaluation, seed) → the folder of what a row trained, if it did

_ALMOST_ALL = 1 - 1e-6  # λ of item neighbours alone: the language model only orders items with equal votes


@dataclass(frozen=True)
class EvaluationRow:
    label: str  # name in the report
    explanation: str  # one sentence in the report
    rank: Rank
    is_seeded: bool = False  # lists differ by seed, so several seeds are drawn
    is_timed: bool = True  # a language model answers, so its time can be compared with that of the window alone
    is_costly: bool = False  # hours on a CPU: only `--models all` or its name computes it
    trains: str = ""  # the language model that the row tunes by the bundle's recipe, as text for people
    reads_bigrec: bool = False  # it tunes one only where the bundle's generator cannot be BIGRec's
    place: Place | None = None  # where the certificate of what it trained or chose is
    has_neighbors: bool = False  # item neighbours have the bundle's share in the ranking
    differs_in_memory: bool = False  # differs from `no_memory` in its memory only


def predict(evaluation: Evaluation, row: str, seed: int) -> RankedLists:
    """The lists of one row. Raises StageError where the bundle lacks what the row needs."""
    return ROWS[row].rank(evaluation.with_neighbor_share(neighbor_share(evaluation.bundle, row)), seed)


def own_row(bundle: Bundle) -> str:
    """The row of the bundle as it is served. It is compared with every other row."""
    return "automr_plus" if is_memory_tuned(bundle) else "automr"


def memory_reference(bundle: Bundle) -> str:
    """The row that differs from the bundle's own row only in having no memory."""
    return canonical_row("no_memory", bundle)


def neighbor_share(bundle: Bundle, row: str) -> float:
    """λ: the share of the item neighbours in the ranking of a row. Only rows of AutoMR + have neighbours."""
    share = bundle.manifest.generation.neighbor_share if is_memory_tuned(bundle) else 0.0
    if row == "neighbors":
        return _ALMOST_ALL if share else 0.0
    return share if ROWS[row].has_neighbors else 0.0


def canonical_row(row: str, bundle: Bundle) -> str:
    """The row that is evaluated when `row` is asked for.

    A generator that was not tuned to read memory is BIGRec's, and `automr_plus` is then `automr`. Without item
    neighbours, rows that differ in their neighbours only are equal: `no_memory` and `neighbors` are the generator
    alone, and `automr_plus_lm` is the bundle's own row.
    """
    own, alone = own_row(bundle), "generator_alone" if is_memory_tuned(bundle) else "bigrec"
    canonical = {"generator_alone": alone}
    if own == "automr":
        canonical["automr_plus"] = own
    if not neighbor_share(bundle, "no_memory"):
        canonical |= {"no_memory": alone, "neighbors": alone, "automr_plus_lm": own}
    return canonical.get(row, row)


def available_rows(bundle: Bundle) -> tuple[str, ...]:
    """All rows that this bundle can have. Rows that train a language model need the bundle's recipe."""
    has_recipe = recipe_of(bundle) is not None
    return tuple(
        name for name in ROWS if canonical_row(name, bundle) == name and (has_recipe or not trained_by(name, bundle))
    )


def default_rows(bundle: Bundle) -> tuple[str, ...]:
    """The available rows that are computed unless others are asked for."""
    return tuple(row for row in available_rows(bundle) if not ROWS[row].is_costly)


def trained_by(row: str, bundle: Bundle) -> str:
    """The language model that this row tunes, as text; empty where it tunes none."""
    is_needed = is_memory_tuned(bundle) or not ROWS[row].reads_bigrec
    return ROWS[row].trains if is_needed else ""


def certificate(evaluation: Evaluation, row: str, seed: int) -> dict[str, Any] | None:
    """What a row trained or chose, and how. None where it did neither, or where that is no longer in the work folder.

    For AutoMR + it is the choice of the item neighbours, which the bundle has with it.
    """
    if row == "automr_plus":
        chosen: dict[str, Any] | None = evaluation.bundle.manifest.provenance.get("mixture")
        return chosen
    find = ROWS[row].place
    place = find(evaluation, seed) if find else None
    return read_certificate(place) if place and (place / CERTIFICATE).is_file() else None


def _generator_place(length: Callable[[Evaluation], int]) -> Place:
    return lambda evaluation, seed: generator_directory(evaluation, length(evaluation), seed)


def _bigrec_place(evaluation: Evaluation, seed: int) -> Path | None:
    if not is_memory_tuned(evaluation.bundle):
        return None
    return generator_directory(evaluation, evaluation.recent_length, seed)


def _frozen_place(evaluation: Evaluation, seed: int) -> Path | None:
    if not is_memory_tuned(evaluation.bundle):
        return None
    return retriever_directory(evaluation, seed)


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


def _scorer_row(
    name: str, label: str, explanation: str, *, is_seeded: bool = False, is_costly: bool = False
) -> EvaluationRow:
    """The row of a model of `SCORERS`."""
    return EvaluationRow(
        label,
        explanation,
        scored(name),
        is_timed=False,
        is_seeded=is_seeded,
        is_costly=is_costly,
        place=scorer_place(name),
    )


ROWS: dict[str, EvaluationRow] = {
    # Without a language model.
    "popularity": EvaluationRow(
        "popularity",
        "the most popular items of the training period, the same list for every user",
        popularity,
        is_timed=False,
    ),
    "copy_last": EvaluationRow(
        "copy the last title",
        "the last item of the history again, then the most popular items",
        copy_last,
        is_timed=False,
    ),
    "item_knn": _scorer_row("item_knn", "item-kNN", "items that other users read close to the items of this history"),
    "item_knn_titles": _scorer_row(
        "item_knn_titles",
        "item-kNN with titles",
        "the same, and items with similar titles (TF-IDF), weighted as the valid period likes it best",
    ),
    "sasrec_bce": _scorer_row(
        "sasrec_bce",
        "SASRec (BCE)",
        "self-attention over item ids, trained with the loss of its paper until the valid period shows no more gain",
        is_seeded=True,
        is_costly=True,
    ),
    "sasrec": _scorer_row(
        "sasrec",
        "SASRec (strong)",
        "the same network, trained with a softmax over the items, from co-occurrence, with a recency bias",
        is_seeded=True,
    ),
    "sasrec_titles": _scorer_row(
        "sasrec_titles",
        "SASRec (strong) with titles",
        "the same, and a linear map of the title's TF-IDF vector in the vector of each item, also of new ones",
        is_seeded=True,
        is_costly=True,
    ),
    # Other uses of the language model; no item neighbours. Their generators are tuned without memory.
    "bigrec": EvaluationRow(
        "BIGRec",
        "a language model tuned without memory on windows of K titles, and chosen alone; it reads the window only",
        bigrec,
        trains="windows of K titles",
        reads_bigrec=True,
        place=_bigrec_place,
    ),
    "rella_replace": EvaluationRow(
        "ReLLa, replace (tuned on K titles)",
        "instead of the window, BIGRec's model reads the K items of the history that are most similar to it",
        rella_replace,
        trains="windows of K titles, shared with bigrec",
        reads_bigrec=True,
    ),
    "rella_extend": EvaluationRow(
        "ReLLa, extend (tuned on 2K titles)",
        "the K older items that are most similar to the window, then the window, read by a language model tuned without"
        " memory on windows of 2K titles",
        rella_extend,
        is_costly=True,
        trains="windows of 2K titles",
        place=_generator_place(extended_length),
    ),
    "trsr": EvaluationRow(
        "TRSR (tuned further)",
        "the prompt shows a summary of the older history, then the window; the bundle's language model, tuned further"
        " on such prompts",
        trsr,
        is_costly=True,
        trains="summaries and windows, from the bundle's model, with an eighth of the steps",
    ),
    "full_history": EvaluationRow(
        "full history in the prompt (tuned on K + M titles)",
        "all older items as text, read by a language model tuned without memory on windows of K + M titles: the"
        " reference for cost",
        full_history,
        is_costly=True,
        trains="windows of K + M titles",
        place=_generator_place(full_length),
    ),
    "automr": EvaluationRow(
        "AutoMR",
        "as published: BIGRec's language model, unchanged, reads the memory that a retriever ranks first, trained by"
        " the gains in log-probability (eq. 5 and 6)",
        frozen_automr,
        trains="windows of K titles, shared with bigrec; then a retriever",
        reads_bigrec=True,
        place=_frozen_place,
    ),
    # The language model of AutoMR + with item neighbours or other memories.
    "generator_alone": EvaluationRow(
        "AutoMR +'s generator, memory off",
        "the language model that was tuned to read memory, with the window only and without item neighbours",
        _generated("generator_alone", _no_memory),
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
        "best single memory by likelihood",
        "the single memory that raises the log-probability of the true title most, or none: it knows the answer. It"
        " bounds what one memory can add to the log-probability, and neither NDCG nor what several memories can add",
        _generated("oracle", _oracle),
        is_timed=False,
        has_neighbors=True,
        differs_in_memory=True,
    ),
}
