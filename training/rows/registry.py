"""The list of the rows of the evaluation table, and how to add one.

To add a row: write a function that takes an `Evaluation` and a seed and gives one list of ten items for each target
(a module of this folder, see `rella.py` for a short one), and add an `EvaluationRow` with it to `ROWS` below. The entry
also holds the name and the explanation that the report shows. `training.evaluate` then computes the row, caches, times
and compares it; `--models NAME` computes it alone. A model that scores items goes into `scorers.py`.

`automr` is the paper's AutoMR: a frozen generator, which was not tuned to read memory. `automr_plus` has a generator
tuned to read memory, and voices (`model_store/voices`). One of the two is the bundle's own row (`own_row`). The rows
with `differs_in_memory` are the bundle's own row with another memory; `memory_reference` is the same without one. A
bundle without voices lacks the rows that would repeat another row (`canonical_row`), and the rows of single voices.

Rows of other methods with a language model have generators that were tuned without memory (`generators.py`). Where the
bundle's own generator was tuned without memory, it is BIGRec's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_store.bundle import Bundle
from training.rows.evaluation import Evaluation, RankedLists, is_memory_tuned, recipe_of
from training.rows.frozen_automr import frozen_automr, retriever_directory
from training.rows.generators import (
    bigrec,
    full_history,
    full_length,
    generator_directory,
    has_checkpoint,
    zero_shot,
)
from training.rows.plus.own_rows import OWN_ROWS, has_voices
from training.rows.rella import extended_length, rella_extend, rella_replace
from training.rows.row import EvaluationRow, Place
from training.rows.scorers import copy_last, popularity, scored, scorer_place
from training.rows.trsr import trsr
from training.run.stage import CERTIFICATE, StageError, read_certificate


def predict(evaluation: Evaluation, row: str, seed: int) -> RankedLists:
    """The lists of one row. Raises StageError where the bundle lacks what the row needs."""
    if not ROWS[row].fits(evaluation.bundle):
        raise StageError(f"the bundle cannot have the row {row!r}: it has no such voice")
    return ROWS[row].rank(evaluation, seed)


def is_plus(bundle: Bundle) -> bool:
    """Whether a bundle is AutoMR +: its generator was tuned to read memory, or it has voices."""
    return is_memory_tuned(bundle) or has_voices(bundle)


def own_row(bundle: Bundle) -> str:
    """The row of the bundle as it is served. It is compared with every other row."""
    return "automr_plus" if is_plus(bundle) else "automr"


def memory_reference(bundle: Bundle) -> str:
    """The row that differs from the bundle's own row only in having no memory."""
    return canonical_row("no_memory", bundle)


def canonical_row(row: str, bundle: Bundle) -> str:
    """The row that is evaluated when `row` is asked for.

    A generator that was not tuned to read memory is BIGRec's; with the retriever it is `automr`. Without voices,
    all memory is states, and rows that differ in their voices only are equal.
    """
    own, is_tuned = own_row(bundle), is_memory_tuned(bundle)
    canonical = {} if is_tuned else {"generator_alone": "bigrec", "automr_plus_lm": "automr"}
    alone = canonical.get("generator_alone", "generator_alone")
    if not has_voices(bundle):
        canonical |= {"no_memory": alone, "voice_memory": alone}
        canonical |= dict.fromkeys(("automr_plus_lm", "state_memory", "automr_plus"), own)
    return canonical.get(row, row)


def available_rows(bundle: Bundle) -> tuple[str, ...]:
    """All rows that this bundle can have. Rows that train a language model need the bundle's recipe."""
    has_recipe = recipe_of(bundle) is not None
    return tuple(
        name
        for name, row in ROWS.items()
        if row.fits(bundle) and canonical_row(name, bundle) == name and (has_recipe or not needs_recipe(name, bundle))
    )


def default_rows(bundle: Bundle) -> tuple[str, ...]:
    """The available rows that are computed unless others are asked for."""
    return tuple(row for row in available_rows(bundle) if not ROWS[row].is_costly)


def trained_by(row: str, bundle: Bundle) -> str:
    """The language model that this row tunes, as text; empty where it tunes none."""
    is_needed = is_memory_tuned(bundle) or not ROWS[row].reads_bigrec
    return ROWS[row].trains if is_needed else ""


def needs_recipe(row: str, bundle: Bundle) -> bool:
    """Whether the row learns as the bundle did."""
    return row == "boosted" or bool(trained_by(row, bundle))


def certificate(evaluation: Evaluation, row: str, seed: int) -> dict[str, Any] | None:
    """What a row trained or chose, and how. None where it did neither, or where the work folder lacks it."""
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
    # Other uses of the language model; no voices. Their generators are tuned without memory.
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
    "zero_shot": EvaluationRow(
        "zero-shot",
        "the checkpoint as it was published reads the window after an instruction; nothing is tuned",
        zero_shot,
        is_costly=True,
        fits=has_checkpoint,
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
    **OWN_ROWS,
}
