"""The input of the top half: selected memory states placed among the layer-L states of a prompt.

`prepend`  before the whole prompt (the usual reading of the paper's `combine(z_t, z_m)`)
`insert`   directly before the query state z_t, which is the last state of the prompt

The default is `insert`. The answer is then predicted from z_t, as in tuning, and the states before the memory do not
depend on it, so annotation computes them once for all memory elements. Memory is never placed after z_t, because the
answer would then be predicted from a memory state. Pure tensor functions; they do not change their arguments.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Placement → how many of the T columns of a prompt come after the memory.
_NUM_AFTER = {"prepend": lambda width: width, "insert": lambda width: 1}


class TopInput(NamedTuple):
    """Input of the top half. Padding may be in any column; positions count only the columns that the mask marks."""

    states: Tensor  # (B, T, D)
    mask: Tensor  # (B, T) int64, 1 = real


def split_prompt(states: Tensor, mask: Tensor, placement: str) -> tuple[TopInput, TopInput]:
    """Split a left-padded prompt, `states` (B, T, D) and `mask` (B, T), where the memory goes.

    Raises ValueError for an unknown placement.
    """
    if placement not in _NUM_AFTER:
        raise ValueError(f"unknown placement {placement!r}: choose one of {', '.join(_NUM_AFTER)}")
    cut = states.shape[1] - _NUM_AFTER[placement](states.shape[1])
    return TopInput(states[:, :cut], mask[:, :cut]), TopInput(states[:, cut:], mask[:, cut:])


def combine(states: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor, placement: str) -> TopInput:
    """Place `memory` (B, S, D), in time order, among `states` (B, T, D) → (B, T + S, D).

    `mask` (B, T) and `memory_mask` (B, S) are 1 for real columns. Raises ValueError for an unknown placement.
    """
    before, after = split_prompt(states, mask, placement)
    return TopInput(
        torch.cat([before.states, memory.to(states.dtype), after.states], dim=1),
        torch.cat([before.mask, memory_mask.to(mask.dtype), after.mask], dim=1),
    )
