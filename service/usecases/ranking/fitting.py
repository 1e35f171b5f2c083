"""The items that exploration draws from, the best fit first: from what the model answered for little-known items.

Where the model was not asked, because nothing is known of the user or it failed, some are taken by chance. Pure.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_store.answers import Answer
from model_store.catalogue.catalogue import Catalogue
from service.usecases.ranking.candidates import Candidate, candidates_of
from service.usecases.ranking.exploration import MOST_EXPLORED, dice_of, some_of
from service.usecases.ranking.requests import Progress
from service.usecases.ranking.rules import Exploration
from service.usecases.words import ranked_items


def fitting(
    progress: Progress, catalogue: Catalogue, little_known: Callable[[Exploration], NDArray[np.bool_]]
) -> list[Candidate]:
    """`little_known`: (N,) the items that may be explored."""
    exploration, answer = progress.request.rules.exploration, progress.little_known
    if exploration is None or (answer is None and progress.answer is not None):
        return []
    if isinstance(answer, Answer):
        return candidates_of(catalogue, answer.items, answer.reasons)
    mask = little_known(exploration)
    if answer is None:
        return candidates_of(catalogue, some_of(dice_of(progress.recommendation_id), mask))
    return candidates_of(catalogue, ranked_items(answer, catalogue, mask, MOST_EXPLORED))
