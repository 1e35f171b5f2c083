"""Popularity as a model that scores items: the same scores for every user."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.splits import Split, Target
from training.items.scoring import Scorer


def popularity_scorer(split: Split, *, repeat_last: bool) -> Scorer:
    """Scores are the number of interactions in the train period.

    `repeat_last` puts the last item before the target first; each target then needs an earlier event.
    """

    def score(targets: Sequence[Target]) -> NDArray[np.float32]:
        scores = np.tile(split.popularity.astype(np.float32), (len(targets), 1))
        if repeat_last:
            last = [split.histories[target.user].items[: target.position][-1] for target in targets]
            scores[np.arange(len(targets)), last] = np.inf
        return scores

    return score
