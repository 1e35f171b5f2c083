"""Rows `rella_replace` and `rella_extend`: retrieval of old behaviour by meaning (ReLLa, arXiv 2308.11131).

ReLLa embeds every title with the language model (the state that enters the head), reduces the vectors by PCA, and shows
the items of the history most similar, by cosine, to the candidate. Where the next item is to be generated there is no
candidate: the query is then the mean vector of the recent window, as in AutoMR's comparison, which does not say whether
what is retrieved replaces the window or joins it. So both:

`replace`  the prompt is the K items of memory and window most similar to the window
`extend`   the K most similar of memory stand before the K of the window

Items stand in the order of time, as in ReLLa's `sequential`. Of PCA only the centring is kept: without it all vectors
of a language model are alike, and beyond it a rotation changes no cosine (ReLLa also cuts to 512 dimensions). ReLLa
tunes on such prompts; here they meet the backbone as it is, tuned on windows of K.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.rows.contest import Contest, Lists


def replaced(contest: Contest) -> Lists:
    vectors = contest.once("unit vectors", lambda: _unit_vectors(contest))
    prompts = []
    for example in contest.examples:
        recent = contest.recent(example)
        history = [*contest.memory(example), *recent]
        kept = most_similar(vectors, recent, history, contest.recent_length)
        prompts.append(contest.prompt_of([history[place] for place in kept]))
    return contest.with_prompts(contest.bundle, prompts, "rella_replace")


def extended(contest: Contest) -> Lists:
    vectors = contest.once("unit vectors", lambda: _unit_vectors(contest))
    prompts = []
    for example in contest.examples:
        recent, memory = contest.recent(example), contest.memory(example)
        kept = most_similar(vectors, recent, memory, contest.recent_length)
        prompts.append(contest.prompt_of([*(memory[place] for place in kept), *recent]))
    return contest.with_prompts(contest.bundle, prompts, "rella_extend")


def most_similar(vectors: NDArray[np.float32], query: Sequence[int], items: Sequence[int], count: int) -> list[int]:
    """Places in `items`, in order, of the `count` most similar to the mean of `query`; of equals the later ones.

    `vectors` (N, D) are unit vectors by item.
    """
    if not items:
        return []
    similarity = vectors[list(items)] @ vectors[list(query)].mean(axis=0)
    best_first = np.lexsort((-np.arange(len(items)), -similarity))
    kept: list[int] = np.sort(best_first[:count]).tolist()
    return kept


def _unit_vectors(contest: Contest) -> NDArray[np.float32]:
    vectors = contest.title_vectors()
    centred = vectors - vectors.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(min=1e-12)
