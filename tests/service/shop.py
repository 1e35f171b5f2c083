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


BAGS = [f"JUMBO BAG {pattern}" for pattern in ("TOYS", "OWLS", "RED SPOTS", "PAISLEY", "STRAWBERRY", "PINK", "BAROQUE")]
SHELF = [*BAGS, *TITLES[1:]]


def voices_that_trust_behaviour() -> Voices:
    """After a bag people take the other bags, sometimes a plate or a lamp; other channels hardly count in the ranking.

    So the networks have learned that what nobody took together is no good choice.
    """
    size = len(SHELF) + 1
    near = np.zeros((size, size), dtype=np.float32)
    near[1 : len(BAGS) + 1, 1 : len(BAGS) + 1] = 1
    near[1 : len(BAGS) + 1, len(BAGS) + 1 : len(BAGS) + 17] = 0.05
    near[np.arange(len(BAGS) + 1, size - 1), np.arange(len(BAGS) + 2, size)] = 1
    np.fill_diagonal(near, 0)
    near /= np.maximum(near.sum(axis=1, keepdims=True), 1)
    empty = sparse.csr_matrix((size, size), dtype=np.float32)
    spec = VoicesSpec(tables=("near", "alike"), recent_length=K, past_length=12, has_returns=False)
    facts = ItemFacts(np.append(0, np.full(size - 1, 9)).astype(np.float32), *np.full((2, size), 0.2, np.float32))
    voices = Voices(spec, facts, {"near": sparse.csr_matrix(near), "alike": empty}, near_sums=np.ones(size, np.float32))
    with torch.no_grad():
        voices.combiner.window.linear.weight[:, 0] = 0.5  # of the votes of `near`
        voices.combiner.window.linear.weight[:, 3] = 0.1  # of the mixture
        for gate in voices.gates:
            gate.overall.bias.zero_()
    return voices
