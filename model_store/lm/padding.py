"""Batches of ragged rows: padded tensors and their masks."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Side = Literal["left", "right"]
Rows = Sequence[Sequence[int]] | Sequence[Tensor]


class Padded(NamedTuple):
    """A padded batch and its mask. T is the length of the longest row, at least 1, so that no dimension is empty."""

    values: Tensor  # (B, T, …)
    mask: Tensor  # (B, T) int64, 1 = real


def pad(rows: Rows, *, side: Side = "left", value: float = 0, device: torch.device | str = "cpu") -> Padded:
    """Pad token lists (T_b,) or tensors (T_b, …) with `value` to one length.

    Padding on the left puts the last token of every row at index -1, where the language model is read.
    """
    tensors = [row if isinstance(row, Tensor) else torch.tensor(row, dtype=torch.long) for row in rows]
    mask = padding_mask([len(row) for row in tensors], side=side, device=device)
    return Padded(pad_values(tensors, side=side, value=value).to(device), mask)


def pad_values(rows: Sequence[Tensor], *, side: Side = "left", value: float = 0) -> Tensor:
    """The values (B, T, …) of `pad`, on the device of `rows`. May share memory with a single row."""
    if len(rows) == 1 and len(rows[0]):
        return rows[0][None]
    padded = pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
    return padded if padded.shape[1] else padded.new_full((len(rows), 1, *padded.shape[2:]), value)


def padding_mask(lengths: Sequence[int], *, side: Side = "left", device: torch.device | str = "cpu") -> Tensor:
    """(B, T) int64: the last (`left`) or the first (`right`) `lengths[b]` columns of row b are 1."""
    width = max(1, *lengths)
    counts = torch.tensor(lengths)[:, None]
    columns = torch.arange(width)
    is_real = columns >= width - counts if side == "left" else columns < counts
    return is_real.long().to(device)
