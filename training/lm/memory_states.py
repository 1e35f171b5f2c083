"""Layer-L states of the memories of a training step, with gradients.

In: a split model, stretches of histories, the places of the memories in them. Out: one state for each memory: that of
the window of the last K titles up to the memory, as annotation and serving have it (`states.py`).

Neighbouring windows share K − 1 titles. In a bottom half of one layer, keys and values do not depend on the tokens
before them, and rotary positions count relative to each other only. All windows of a stretch are then one sequence: its
mask shows to each title its own window, and the tokens before the first title are repeated for each window, at the
positions just before it. A deeper bottom half reads each window alone, which takes about K times as many tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from training.lm.windows import groups_of_similar_length


class Stretch(NamedTuple):
    """Consecutive titles of one history, in the order in which they are read. Places count from its first title."""

    titles: Sequence[tuple[int, ...]]  # the tokens of each title
    head: Sequence[int]  # the tokens before the first title of a window
    recent_length: int  # K

    def window_start(self, place: int) -> int:
        """The first title of the window that ends with the title at `place`."""
        return max(0, place + 1 - self.recent_length)

    def window(self, place: int) -> list[int]:
        """The tokens of the window that ends with the title at `place`."""
        shown = self.titles[self.window_start(place) : place + 1]
        return [*self.head, *(token for title in shown for token in title)]


Wanted = Sequence[tuple[Stretch, Sequence[int]]]  # stretches, each with rising places, at least one


def memory_states(lm: SplitLM, wanted: Wanted) -> Tensor:
    """(S, D) states at the ends of the windows that end at the wanted places, in the order of `wanted`."""
    return _read_together(lm, wanted) if lm.split_layer == 1 else read_alone(lm, wanted)


def read_alone(lm: SplitLM, wanted: Wanted) -> Tensor:
    """Each window is a sequence. Right for any number of layers."""
    windows = [stretch.window(place) for stretch, places in wanted for place in places]
    groups = list(groups_of_similar_length([len(window) for window in windows]))
    states = torch.cat([lm.bottom(*pad([windows[row] for row in rows], device=lm.device))[:, -1] for rows in groups])
    return states[torch.from_numpy(np.argsort(np.concatenate(groups))).to(lm.device)]


class _Sequence(NamedTuple):
    """All windows of a stretch. Arrays have one entry for each token: first the titles, then the copies of the head."""

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]  # rotary
    titles: NDArray[np.int64]  # the place of the token's title; −1 in a copy of the head
    starts: NDArray[np.int64]  # the first title of the window that the token sees
    ends: NDArray[np.int64]  # the tokens whose states are wanted

    def visible(self) -> NDArray[np.bool_]:
        """(T, T): whether each token sees each other token."""
        is_own_head = (self.titles < 0) & (self.starts == self.starts[:, None])
        is_in_window = (self.titles >= 0) & (self.titles >= self.starts[:, None])
        return (self.positions <= self.positions[:, None]) & (is_own_head | is_in_window)


def _sequence(stretch: Stretch, places: Sequence[int]) -> _Sequence:
    first, stop, num_head = stretch.window_start(places[0]), places[-1] + 1, len(stretch.head)
    shown = stretch.titles[first:stop]
    ends = np.cumsum([len(title) for title in shown])
    titles = np.repeat(np.arange(first, stop), [len(title) for title in shown])
    window_starts = np.array(sorted({stretch.window_start(place) for place in places}))
    begins = np.concatenate([[0], ends])[window_starts - first]  # a copy of the head takes the positions before this
    copies = len(window_starts)
    return _Sequence(
        tokens=np.array([*(token for title in shown for token in title), *list(stretch.head) * copies], dtype=np.int64),
        positions=np.concatenate(
            [num_head + np.arange(len(titles)), np.add.outer(begins, np.arange(num_head)).ravel()]
        ),
        titles=np.concatenate([titles, np.full(num_head * copies, -1)]),
        starts=np.concatenate([np.maximum(0, titles + 1 - stretch.recent_length), np.repeat(window_starts, num_head)]),
        ends=ends[np.asarray(places) - first] - 1,
    )


def _read_together(lm: SplitLM, wanted: Wanted) -> Tensor:
    sequences = [_sequence(stretch, places) for stretch, places in wanted]
    found: dict[int, Tensor] = {}
    for rows in groups_of_similar_length([len(each.tokens) for each in sequences]):
        group = [sequences[row] for row in rows]
        tokens, positions = (
            pad([torch.from_numpy(values) for values in column], side="right", device=lm.device).values
            for column in ([each.tokens for each in group], [each.positions for each in group])
        )
        states = lm.bottom(tokens, _mask(group, lm), positions=positions)
        found |= {
            row: own[torch.from_numpy(each.ends).to(lm.device)]
            for row, own, each in zip(rows.tolist(), states, group, strict=True)
        }
    return torch.cat([found[row] for row in range(len(sequences))])


def _mask(group: Sequence[_Sequence], lm: SplitLM) -> Tensor:
    """(B, 1, T, T) what is added to the scores of attention. Padding sees itself, because a softmax needs a token."""
    width = max(len(each.tokens) for each in group)
    visible = np.broadcast_to(np.eye(width, dtype=np.bool_), (len(group), width, width)).copy()
    for row, each in zip(visible, group, strict=True):
        row[: len(each.tokens), : len(each.tokens)] = each.visible()
    mask = torch.zeros(len(group), 1, width, width, dtype=lm.dtype)
    return mask.masked_fill_(~torch.from_numpy(visible)[:, None], torch.finfo(lm.dtype).min).to(lm.device)
