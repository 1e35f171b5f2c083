"""Memory into the top half: where the chosen states stand among the states of the prompt.

`prepend`  before the whole prompt (the usual reading of the paper's `combine(z_t, z_m)`)
`insert`   right before the query state z_t, the last of the prompt

The default is `insert`: the answer is still predicted from z_t, as in tuning, and everything before the memory is the
same for all memory elements, so annotation runs it once. (Appending after z_t would predict the answer from a memory.)
Pure tensor functions that never change their arguments.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# How many columns of a prompt of T columns come after the memory.
_TAILS = {"prepend": lambda width: width, "insert": lambda width: 1}


class Combined(NamedTuple):
    """Input of the top half. Padding may stand anywhere: the mask tells, and positions are counted over the mask."""

    states: Tensor  # (B, T, D)
    mask: Tensor  # (B, T) int64


def split_prompt(states: Tensor, mask: Tensor, placement: str) -> tuple[Combined, Combined]:
    """The part of a left-padded prompt before the memory, and the part after it."""
    if placement not in _TAILS:
        raise ValueError(f"unknown placement {placement!r}: choose one of {', '.join(_TAILS)}")
    cut = states.shape[1] - _TAILS[placement](states.shape[1])
    return Combined(states[:, :cut], mask[:, :cut]), Combined(states[:, cut:], mask[:, cut:])


def combine(states: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor, placement: str) -> Combined:
    """`states` (B, T, D), `mask` (B, T), `memory` (B, S, D) in time order, `memory_mask` (B, S) → (B, T + S, D)."""
    before, after = split_prompt(states, mask, placement)
    return Combined(
        torch.cat([before.states, memory.to(states.dtype), after.states], dim=1),
        torch.cat([before.mask, memory_mask.to(mask.dtype), after.mask], dim=1),
    )
