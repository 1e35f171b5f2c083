"""The least time in which a machine could do the work that the engine was seen to do.

Counted are the tokens that were read and the rows of logits that were asked for, padding left out; for each forward
pass of a half, and for each use of the head, the time is the larger of

    operations  2 × parameters of its matrices × tokens, + 4 × D × layers × pairs of (token, token that it attends to)
    bytes       of its weights, read once
                                               over the matrix rate and the bandwidth of `machine.py`.

Norms, softmaxes, copies, the retriever, the trie, Python: not counted, they are what a floor leaves out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model_store.lm.split_lm import SplitLM
from tests.benchmarks.machine import bandwidth, matrix_rate
from tests.benchmarks.world import Shape


@dataclass
class Reading:
    """Of one half in one pass. `tokens` is None of a tree of beams, whose every token is asked for a row of logits."""

    tokens: int | None
    pairs_per_token: float


@dataclass
class Step:
    """One pass through the halves (or one of them), then the head."""

    bottom: Reading | None = None
    top: Reading | None = None
    head_rows: int = 0

    def tokens_of(self, reading: Reading) -> int:
        return self.head_rows if reading.tokens is None else reading.tokens


@dataclass
class Work:
    steps: list[Step] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> tuple[int, int]:
        """Of the bottom and of the top half, whose prompt has memory in it."""
        known = [(step.bottom, step.top) for step in self.steps]
        bottom, top = zip(*known, strict=True)
        return _known_tokens(bottom), _known_tokens(top)

    @property
    def beam_tokens(self) -> int:
        return sum(step.head_rows for step in self.steps if step.top and step.top.tokens is None)

    @property
    def head_rows(self) -> int:
        return sum(step.head_rows for step in self.steps)

    def floor_s(self, shape: Shape, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
        rate, bytes_per_s = matrix_rate(dtype, device=device), bandwidth(device=device)

        def seconds(parameters: int, tokens: int, attention: float = 0.0) -> float:
            operations = 2 * parameters * tokens + attention
            return max(operations / rate, parameters * dtype.itemsize / bytes_per_s) if tokens else 0.0

        def of_half(step: Step, reading: Reading | None, num_layers: int) -> float:
            if reading is None:
                return 0.0
            tokens = step.tokens_of(reading)
            attention = 4 * shape.hidden_size * num_layers * reading.pairs_per_token * tokens
            return seconds(num_layers * shape.layer_parameters, tokens, attention)

        return sum(
            of_half(step, step.bottom, shape.split_layer)
            + of_half(step, step.top, shape.num_layers - shape.split_layer)
            + seconds(shape.head_parameters, step.head_rows)
            for step in self.steps
        )


def _known_tokens(readings: tuple[Reading | None, ...]) -> int:
    return sum(reading.tokens or 0 for reading in readings if reading is not None)


@contextmanager
def counted(lm: SplitLM) -> Iterator[Work]:
    """What the halves and the head of `lm` are asked for meanwhile."""
    work = Work()

    def bottom(tokens: Tensor, mask: Tensor, *arguments: Any, **named: Any) -> Tensor:
        work.steps.append(Step(bottom=_reading(mask, tokens.shape[1])))
        return plain["bottom"](tokens, mask, *arguments, **named)

    def top_hidden(states: Tensor, mask: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if not work.steps or work.steps[-1].top is not None:
            work.steps.append(Step())  # the bottom half's part was known
        work.steps[-1].top = _reading(mask, states.shape[1])
        return plain["top_hidden"](states, mask, *arguments, **named)

    def head(hidden: Tensor) -> Tensor:
        work.steps[-1].head_rows += hidden[..., 0].numel()
        return plain["head"](hidden)

    plain: dict[str, Callable[..., Tensor]] = {}
    for door in (bottom, top_hidden, head):
        plain[door.__name__] = getattr(lm, door.__name__)
        setattr(lm, door.__name__, door)
    try:
        yield work
    finally:
        for name in plain:
            delattr(lm, name)  # what the class has shows again


def _reading(mask: Tensor, width: int) -> Reading:
    """`mask` (B, P + T) of 0 and 1, or (B, 1, T, P + T) as added to the attention, for the last `width` = T columns."""
    if mask.dim() == 4:
        return Reading(None, (mask == 0).sum().item() / (mask.shape[0] * width))
    read = mask[:, -width:] == 1
    tokens = int(read.sum())
    return Reading(tokens, (mask.cumsum(dim=1)[:, -width:] * read).sum().item() / max(tokens, 1))
