"""Global memory: what matters to people who ask for a kind of thing, learned from the queries of the train period.

An aspect is a word or phrase that tells the chosen items of a scenario from similar items that were not chosen. At
least `MIN_USERS` people chose an item with it, so that no aspect tells of one person. Immutable. Needs no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model_store.words.vectors import Vectors

MIN_USERS = 5
SAME_NAME = 0.85  # names of a higher cosine are one aspect


@dataclass(frozen=True)
class Aspect:
    """`scenario`: the query or kind of queries. `embedding` (D,) float16 of scenario and name."""

    id: str
    scenario: str
    name: str
    description: str
    embedding: NDArray[np.float16] = field(repr=False, compare=False)
    num_users: int


class GlobalMemory:
    """All aspects of a bundle."""

    def __init__(self, aspects: Sequence[Aspect], dimension: int) -> None:
        self.aspects = list(aspects)
        stacked = [aspect.embedding for aspect in self.aspects]
        self.vectors: Vectors = (np.stack(stacked) if stacked else np.zeros((0, dimension))).astype(np.float32)

    def __len__(self) -> int:
        return len(self.aspects)

    def nearest(self, vector: Vectors, count: int) -> list[tuple[Aspect, float]]:
        """The aspects with the largest cosine to a query vector (D,), best first, and the cosine."""
        cosines = self.vectors @ vector
        best = np.argsort(-cosines, kind="stable")[:count]
        return [(self.aspects[place], float(cosines[place])) for place in best.tolist()]

    def facts(self) -> list[dict[str, Any]]:
        """The aspects without embeddings, for JSON; `from_facts` is the inverse."""
        names = ("id", "scenario", "name", "description", "num_users")
        return [{name: getattr(aspect, name) for name in names} for aspect in self.aspects]

    @classmethod
    def from_facts(cls, facts: Sequence[Mapping[str, Any]], vectors: NDArray[np.float16]) -> Self:
        """`vectors` (aspects, D). Raises ValueError where the numbers differ."""
        pairs = zip(facts, vectors, strict=True)
        return cls([Aspect(**fact, embedding=vector) for fact, vector in pairs], vectors.shape[1])
