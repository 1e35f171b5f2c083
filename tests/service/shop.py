"""A small shop of household goods, whose titles share words, and whose ranking is that of the mixture of voices."""

import numpy as np
import torch
from scipy import sparse

from model_store.manifest import VoicesSpec
from model_store.voices.past import ItemFacts
from model_store.voices.voices import Voices
from tests.service.real import K

TITLES = [
    "JUMBO BAG TOYS",
    *(f"{noun} number {size}" for noun in ("Plate", "Lamp", "Chair", "Rug") for size in range(8)),
]
TOYS, LAMP = "i0", "i9"


def voices_that_follow_the_mixture() -> Voices:
    """Tables of the trained items; all channels weigh alike, and the ranking is that of the mixture."""
    size = len(TITLES) + 1
    empty = sparse.csr_matrix((size, size), dtype=np.float32)
    near = sparse.csr_matrix((np.ones(1, np.float32), ([10], [11])), (size, size))
    spec = VoicesSpec(tables=("near", "alike"), recent_length=K, past_length=12, has_returns=False)
    facts = ItemFacts(np.append(0, np.full(size - 1, 9)).astype(np.float32), *np.full((2, size), 0.2, np.float32))
    voices = Voices(spec, facts, {"near": near, "alike": empty}, near_sums=np.full(size, 0.4, np.float32))
    of_mixture = 3  # after the two tables and returns
    with torch.no_grad():
        voices.combiner.window.linear.weight[:, of_mixture] = 1
        for gate in voices.gates:
            gate.overall.bias.zero_()
    return voices
