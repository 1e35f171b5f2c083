"""The reward of a choice of memories: how well the ranking finds the answers with it.

    reward = NDCG@100 + 0.2 · (1 − log(1 + rank) / log(1 + N))

rank is that of the first answer. The second term also tells choices apart that leave all answers below place 100;
without it most groups of choices are equal. Rewards of equal choices are computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model_store.words.evidence import CHOSEN_PART, FEATURES
from model_store.words.index import Values
from model_store.words.ranker import Ranker
from training.words.examples import Example
from training.words.metrics import CUT

RANK_WEIGHT = 0.2
_FIRST = FEATURES.index(CHOSEN_PART[0])
_CHOSEN = slice(_FIRST, _FIRST + len(CHOSEN_PART))


@dataclass
class Rewards:
    """Rewards of choices from one pool of one example. `places` are those of the pool, from 0."""

    example: Example
    ranker: Ranker
    num_items: int
    pool: str = "chain"
    _known: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        evidence = self.example.evidence
        # The weights with memory, even where the scale is still to be chosen.
        weights = np.asarray(evidence.context @ self.ranker.joint / self.ranker.spread, dtype=np.float32)
        self._weights = weights[_CHOSEN]
        self._base = weights @ evidence.features
        self._answers = np.flatnonzero(self.example.is_answer)
        self._places = self.example.pools[self.pool]

    def __len__(self) -> int:
        """Entries of the pool."""
        return len(self._places)

    def reward(self, places: Sequence[int]) -> float:
        key = tuple(places)
        if key not in self._known:
            chosen = self.example.evidence.pool.chosen([self._places[place] for place in key])
            self._known[key] = self._reward(self._base + self._weights @ chosen)
        return self._known[key]

    def gains(self) -> NDArray[np.float64]:
        """(n,) what each entry alone adds to the reward of none."""
        return np.array([self.reward([place]) for place in range(len(self))]) - self.reward([])

    def _reward(self, scores: Values) -> float:
        ranks = np.sort((scores[None, :] > scores[self._answers][:, None]).sum(axis=1))
        ranks = ranks + _ties(ranks)
        return ndcg_of_ranks(ranks, len(self.example.target.answers)) + RANK_WEIGHT * self._nearness(ranks)

    def _nearness(self, ranks: NDArray[np.int64]) -> float:
        return 1 - float(np.log1p(ranks[0]) / np.log1p(self.num_items)) if len(ranks) else 0.0


def ndcg_of_ranks(ranks: NDArray[np.int64], num_answers: int) -> float:
    """NDCG@100 of the ranks of the answers that are candidates."""
    best = (1 / np.log2(np.arange(min(CUT, num_answers)) + 2)).sum()
    return float((1 / np.log2(ranks[ranks < CUT] + 2)).sum() / best)


def _ties(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """(a,) 0, 1, … among answers of equal scores, so that no two have the same place."""
    first = np.searchsorted(ranks, ranks, side="left")
    return np.arange(len(ranks)) - first
