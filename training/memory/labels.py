"""What a retriever learns from: annotations as padded batches, gains as a distribution over (null, memory)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.annotate import Annotation
from training.lm.states import States


class Batch(NamedTuple):
    """Padded on the right; slot 0 of the weights and gains is the null slot."""

    query: Tensor  # (B, D)
    memory: Tensor  # (B, M, D)
    mask: Tensor  # (B, M)
    target_weights: Tensor  # (B, 1 + M)
    gains: Tensor  # (B, M) nats per title


def target_weights(gains: np.ndarray, temperature: float) -> np.ndarray:
    """S′ over (null, memory elements) from gains (M,): softmax(gain / temperature), the null slot at gain zero."""
    logits = np.concatenate([[0.0], gains]) / temperature
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def collate(annotations: Sequence[Annotation], states: States, form: str, temperature: float) -> Batch:
    longest = max(len(annotation.memory_positions) for annotation in annotations)
    hidden_size = annotations[0].query_state.shape[0]
    memory = np.zeros((len(annotations), longest, hidden_size), dtype=np.float32)
    mask = np.zeros((len(annotations), longest), dtype=np.int64)
    weights = np.zeros((len(annotations), 1 + longest), dtype=np.float32)
    gains = np.zeros((len(annotations), longest), dtype=np.float32)
    for row, annotation in enumerate(annotations):
        count = len(annotation.memory_positions)
        memory[row, :count] = annotation.memory(states)
        mask[row, :count] = 1
        weights[row, : 1 + count] = target_weights(annotation.gains(form), temperature)
        gains[row, :count] = annotation.log_probs[1:] - annotation.log_probs[0]
    query = np.stack([annotation.query_state for annotation in annotations]).astype(np.float32)
    return Batch(*(torch.from_numpy(array) for array in (query, memory, mask, weights, gains)))
