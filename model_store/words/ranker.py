"""The ranking: a weighted sum of features, with weights that depend a little on the query and the user.

Two sets of weights were learned: `alone` without memory, `joint` with it. `memory_scale` between 0 and 1 says how far
the joint ones are used; it is chosen on users who did not teach, so a data set on which memory does not help gets
`alone`. Immutable.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model_store.words.evidence import CONTEXT, FEATURES
from model_store.words.index import Values


@dataclass(frozen=True)
class Ranker:
    """`alone` and `joint` (X, F): weights by context and feature, of features divided by `spread` (F,)."""

    alone: Values
    joint: Values
    spread: Values
    memory_scale: float

    def scores(self, features: Values, context: Values) -> Values:
        """(C,) of features (F, C); `context` (X,) as in `Evidence`. A context without events has no memory."""
        has_memory = context[CONTEXT.index("history")] > 0
        scale = np.float32(self.memory_scale if has_memory else 0.0)
        weights = context @ ((1 - scale) * self.alone + scale * self.joint)
        return np.asarray((weights / self.spread) @ features, dtype=np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        scale = np.array([self.memory_scale], dtype=np.float32)
        return {
            "ranker.alone": self.alone,
            "ranker.joint": self.joint,
            "ranker.spread": self.spread,
            "ranker.scale": scale,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Raises KeyError or ValueError where arrays are missing or have other shapes."""
        alone, joint, spread = (arrays[f"ranker.{name}"] for name in ("alone", "joint", "spread"))
        if (
            alone.shape != (len(CONTEXT), len(FEATURES))
            or joint.shape != alone.shape
            or spread.shape != (len(FEATURES),)
        ):
            raise ValueError("the ranker has other features")
        return cls(alone, joint, spread, float(arrays["ranker.scale"][0]))
