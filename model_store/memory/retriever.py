"""The retriever: scores = softmax(MLP(z_t)ᵀ z_m) over memory elements, AutoMR section 3 (arXiv 2412.17593).

Three things differ from the paper. States are layer-normalised first, because hidden states of LLMs have a few huge
coordinates that would dominate the dot product. The dot product is divided by √D. A learned *null* slot, which depends
on the query state only, competes with the memory elements, so that the retriever can select none of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Selection(NamedTuple):
    """The memory elements that enter the top half, in time order, padded on the left."""

    indices: Tensor  # (B, S) int64 into the memory
    mask: Tensor  # (B, S) int64, 1 = selected


class Retriever(nn.Module):
    """Scores the null slot (index 0) and the memory elements. Index 0 is there, with -inf, if `has_null` is False."""

    def __init__(self, hidden_size: int, *, width: int = 256, has_null: bool = True) -> None:
        super().__init__()
        self.has_null = has_null
        self.query = nn.Sequential(nn.Linear(hidden_size, width), nn.GELU(), nn.Linear(width, hidden_size))
        self.null = nn.Linear(hidden_size, 1)

    def forward(self, query_state: Tensor, memory_states: Tensor, mask: Tensor) -> Tensor:
        """`query_state` (B, D), `memory_states` (B, M, D), `mask` (B, M) → log-probabilities (B, 1 + M), fp32.

        `mask` is 1 for real memory elements. Padding has -inf, and so has the null slot if `has_null` is False; a row
        without memory is then -inf everywhere.
        """
        query, memory = _normalise(query_state), _normalise(memory_states)
        logits = torch.einsum("bd,bmd->bm", self.query(query), memory) / memory.shape[-1] ** 0.5
        logits = logits.masked_fill(mask == 0, -torch.inf)
        null = self.null(query) if self.has_null else torch.full_like(query[:, :1], -torch.inf)
        return F.log_softmax(torch.cat([null, logits], dim=1), dim=1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)


def choose(log_scores: Tensor, top_k: int) -> Selection:
    """At most `top_k` memory elements: those with the highest scores that are above the score of the null slot.

    `log_scores` (B, 1 + M) come from `Retriever`. S is the smaller of `top_k` and M.
    """
    null, memory = log_scores[:, :1], log_scores[:, 1:]
    num_selected = min(top_k, memory.shape[1])
    best, indices = memory.topk(num_selected, dim=1)
    beats_null = (best > null) & best.isfinite()
    in_time = indices.masked_fill(~beats_null, -1).sort(dim=1).values  # unused slots become padding on the left
    return Selection(in_time.clamp(min=0), (in_time >= 0).long())


def take(memory_states: Tensor, selection: Selection) -> Tensor:
    """`memory_states` (B, M, D) → the selected states (B, S, D)."""
    return memory_states.gather(1, selection.indices[..., None].expand(-1, -1, memory_states.shape[-1]))


def _normalise(states: Tensor) -> Tensor:
    return F.layer_norm(states.float(), states.shape[-1:])
