"""Item neighbours: items chosen together or with similar titles, mixed into the language model's forecast.

    p(item) = (1 − λ) · p_LM(item | prompt, memory) + λ · p_kNN(item | prompt)

The mixture follows kNN-LM (Khandelwal et al., ICLR 2020), with items in place of training examples: row i of a sparse
matrix holds the nearness of other items to item i, each item of the prompt has the weight 2^(−age / half-life), and the
weighted sum is scaled to one. A small model learns rare pairs of items only vaguely; counts hold them exactly, and
similar titles give neighbours to an item that nobody has chosen. Item vocabulary only. Immutable.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch import from_numpy as to_tensor

from model_store.errors import BundleCorrupt


class ItemNeighbors(NamedTuple):
    """A sparse matrix, tokens × tokens, by rows: the neighbours of token t are `indices[starts[t] : starts[t + 1]]`."""

    starts: NDArray[np.int64]
    indices: NDArray[np.int32]
    nearness: NDArray[np.float32]

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read `neighbors.safetensors`. Raises BundleCorrupt."""
        try:
            arrays = load_file(file)
            found = cls(arrays["starts"], arrays["indices"], arrays["nearness"].astype(np.float32))
        except (OSError, KeyError, SafetensorError) as error:
            raise BundleCorrupt(f"{file}: not a table of neighbours; build the bundle again") from error
        if len(found.indices) != len(found.nearness) or int(found.starts[-1]) != len(found.indices):
            raise BundleCorrupt(f"{file}: its parts disagree in length; build the bundle again")
        return found

    def save(self, file: Path) -> None:
        arrays: dict[str, NDArray[Any]] = {"starts": self.starts, "indices": self.indices}
        save_file({**arrays, "nearness": self.nearness.astype(np.float16)}, file)

    def votes(self, tokens: Sequence[int], num_tokens: int, half_life: float) -> NDArray[np.float32]:
        """p_kNN (num_tokens,) after `tokens`, oldest first. All zeros if none of them has a neighbour."""
        found = np.zeros(num_tokens, dtype=np.float32)
        for age, token in enumerate(reversed(tokens)):
            if token < len(self.starts) - 1:
                part = slice(self.starts[token], self.starts[token + 1])
                found[self.indices[part]] += np.float32(0.5 ** (age / half_life)) * self.nearness[part]
        total = found.sum()
        return found / total if total > 0 else found


def mix(log_probs: Tensor, votes: NDArray[np.float32], share: float) -> Tensor:
    """log p (B, V) from the language model's `log_probs` (B, V), `votes` = p_kNN (B, V) and `share` = λ.

    λ is 0 for a row without votes.
    """
    knn = to_tensor(votes).to(log_probs.device)
    weight = share * (knn.sum(dim=1, keepdim=True) > 0)
    mixed: Tensor = ((1 - weight) * log_probs.exp() + weight * knn).log()
    return mixed


class Mixture(NamedTuple):
    """Item neighbours with their share λ and their half-life in events."""

    neighbors: ItemNeighbors
    share: float  # λ
    half_life: float

    def votes(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> NDArray[np.float32]:
        """p_kNN (B, num_tokens) after each prompt."""
        return np.stack([self.neighbors.votes(prompt, num_tokens, self.half_life) for prompt in prompts])

    def mixed(self, log_probs: Tensor, prompts: Sequence[Sequence[int]]) -> Tensor:
        """log p (B, V) of the next item after each prompt, mixed from the language model's `log_probs` (B, V)."""
        return mix(log_probs, self.votes(prompts, log_probs.shape[1]), self.share)
