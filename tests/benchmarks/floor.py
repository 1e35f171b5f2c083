"""Lower bound (floor) of the time that the observed work of the engine takes on this machine.

`counted` records the tokens that the halves of the model read and the rows of logits that are computed, without
padding. For each forward pass of a half, and for each use of the head, the floor is the larger of

    operations / matrix rate   operations = 2 × parameters of its matrices × tokens
                                            + 4 × D × layers × pairs of (token, attended token)
    bytes / bandwidth          bytes = its weights, read once

with the matrix rate and the bandwidth of `machine.py`. Norms, softmax, copies, the retriever, the trie and Python are
not counted.
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
class HalfPass:
    """What one half reads in one pass.

    `tokens` is None for a tree of beams: there, each token gives one row of logits, so `Step.head_rows` is the number.
    `pairs_per_token`: mean number of tokens that a token attends to.
    """

    tokens: int | None
    pairs_per_token: float


@dataclass
class Step:
    """One pass through the halves (or one of them), then the head."""

    bottom: HalfPass | None = None
    top: HalfPass | None = None
    head_rows: int = 0

    def tokens_of(self, half: HalfPass) -> int:
        return self.head_rows if half.tokens is None else half.tokens


@dataclass
class Work:
    """All steps of one or more calls of the engine."""

    steps: list[Step] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> tuple[int, int]:
        """(bottom half, top half). The top half also reads the memory elements."""
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

        def of_half(step: Step, half: HalfPass | None, num_layers: int) -> float:
            if half is None:
                return 0.0
            tokens = step.tokens_of(half)
            attention = 4 * shape.hidden_size * num_layers * half.pairs_per_token * tokens
            return seconds(num_layers * shape.layer_parameters, tokens, attention)

        return sum(
            of_half(step, step.bottom, shape.split_layer)
            + of_half(step, step.top, shape.num_layers - shape.split_layer)
            + seconds(shape.head_parameters, step.head_rows)
            for step in self.steps
        )


def _known_tokens(halves: tuple[HalfPass | None, ...]) -> int:
    return sum(half.tokens or 0 for half in halves if half is not None)


@contextmanager
def counted(lm: SplitLM) -> Iterator[Work]:
    """Record what the halves and the head of `lm` compute inside the block."""
    work = Work()

    def bottom(tokens: Tensor, mask: Tensor, *arguments: Any, **named: Any) -> Tensor:
        work.steps.append(Step(bottom=_half_pass(mask, tokens.shape[1])))
        return original["bottom"](tokens, mask, *arguments, **named)

    def top_hidden(states: Tensor, mask: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if not work.steps or work.steps[-1].top is not None:
            work.steps.append(Step())  # the output of the bottom half was cached
        work.steps[-1].top = _half_pass(mask, states.shape[1])
        return original["top_hidden"](states, mask, *arguments, **named)

    def head(hidden: Tensor) -> Tensor:
        work.steps[-1].head_rows += hidden[..., 0].numel()
        return original["head"](hidden)

    original: dict[str, Callable[..., Tensor]] = {}
    for wrapper in (bottom, top_hidden, head):
        original[wrapper.__name__] = getattr(lm, wrapper.__name__)
        setattr(lm, wrapper.__name__, wrapper)
    try:
        yield work
    finally:
        for name in original:
            delattr(lm, name)  # the method of the class is visible again


def _half_pass(mask: Tensor, width: int) -> HalfPass:
    """`mask`: (B, P + T) of 0 and 1, or (B, 1, T, P + T) as added to the attention. `width` = T, the new tokens."""
    if mask.dim() == 4:
        return HalfPass(None, (mask == 0).sum().item() / (mask.shape[0] * width))
    read = mask[:, -width:] == 1
    tokens = int(read.sum())
    return HalfPass(tokens, (mask.cumsum(dim=1)[:, -width:] * read).sum().item() / max(tokens, 1))
