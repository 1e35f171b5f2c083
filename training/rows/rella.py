"""Rows `rella_replace` and `rella_extend`: older items chosen by the meaning of their titles (ReLLa, arXiv 2308.11131).

ReLLa embeds every title with the language model (the state that enters the head), reduces the vectors by PCA, and shows
the items of the history that are most similar, by cosine, to the candidate. Here the next item is generated, so there
is no candidate; as in AutoMR's comparison, the query is the mean vector of the window. That paper does not say whether
the retrieved items replace the window or join it, so there are two rows:

`replace`  the prompt shows the K items of memory and window that are most similar to the window
`extend`   the prompt shows the K most similar items of the memory, then the K items of the window

Items stand in the order of time, as in ReLLa's `sequential`. Only the centring of the PCA is used: without it all
vectors of a language model are alike, and a rotation changes no cosine (ReLLa also reduces to 512 dimensions). The
vectors are those of the bundle's index. ReLLa tunes the model on such prompts; here it is tuned without memory on
windows as long as the prompts (`generators.py`): the generator of BIGRec reads those of `replace`, and one that is
tuned on windows of 2K items reads those of `extend`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.rows.evaluation import Evaluation, RankedLists
from training.rows.generators import bigrec_generator, generator


def rella_replace(evaluation: Evaluation, seed: int) -> RankedLists:
    bundle, vectors = bigrec_generator(evaluation, seed), _unit_vectors(evaluation)
    shown = []
    for example in evaluation.examples:
        recent = evaluation.recent(example)
        history = [*evaluation.memory(example), *recent]
        kept = most_similar(vectors, recent, history, evaluation.recent_length)
        shown.append([history[place] for place in kept])
    return evaluation.rank_with_items(bundle, shown, "rella_replace")


def rella_extend(evaluation: Evaluation, seed: int) -> RankedLists:
    bundle, vectors = generator(evaluation, extended_length(evaluation), seed), _unit_vectors(evaluation)
    shown = []
    for example in evaluation.examples:
        recent, memory = evaluation.recent(example), evaluation.memory(example)
        kept = most_similar(vectors, recent, memory, evaluation.recent_length)
        shown.append([*(memory[place] for place in kept), *recent])
    return evaluation.rank_with_items(bundle, shown, "rella_extend")


def extended_length(evaluation: Evaluation) -> int:
    """2K: the retrieved items and the window."""
    return 2 * evaluation.recent_length


def most_similar(vectors: NDArray[np.float32], query: Sequence[int], items: Sequence[int], count: int) -> list[int]:
    """Places in `items`, rising, of the `count` items most similar to the mean of `query`; later places win ties.

    `vectors` (N, D) are unit vectors by item.
    """
    if not items:
        return []
    similarity = vectors[list(items)] @ vectors[list(query)].mean(axis=0)
    best_first = np.lexsort((-np.arange(len(items)), -similarity))
    kept: list[int] = np.sort(best_first[:count]).tolist()
    return kept


def _unit_vectors(evaluation: Evaluation) -> NDArray[np.float32]:
    """(N, D) centred title vectors of length one, computed once."""

    def compute() -> NDArray[np.float32]:
        vectors = evaluation.title_vectors()
        centred = vectors - vectors.mean(axis=0)
        unit: NDArray[np.float32] = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(min=1e-12)
        return unit

    return evaluation.compute_once("unit vectors", compute)
