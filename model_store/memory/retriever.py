"""The retriever: which memories help now? scores = softmax(MLP(z_t)ᵀ z_m), AutoMR section 3 (arXiv 2412.17593).

Departures: states are layer-normalised first (hidden states of LLMs have a few huge coordinates that would drown the
dot product), the dot product is scaled by √D, and a learned *null* slot, which depends on the query alone, competes
with the memories, so that the retriever can abstain. Knows neither Redis nor text.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Choice(NamedTuple):
    """The memories that reach the top half, in time order, padded on the left."""

    indices: Tensor  # (B, S) int64 into the memory
    mask: Tensor  # (B, S) int64, 1 = chosen


class Retriever(nn.Module):
    """Scores over (null, memory elements). Slot 0 is the null slot, also when it is switched off (-inf)."""

    def __init__(self, hidden_size: int, *, width: int = 256, has_null: bool = True) -> None:
        super().__init__()
        self.has_null = has_null
        self.query = nn.Sequential(nn.Linear(hidden_size, width), nn.GELU(), nn.Linear(width, hidden_size))
        self.null = nn.Linear(hidden_size, 1)

    def forward(self, query_state: Tensor, memory_states: Tensor, mask: Tensor) -> Tensor:
        """`query_state` (B, D), `memory_states` (B, M, D), `mask` (B, M) → log-probabilities (B, 1 + M), fp32.

        Padding and, when switched off, the null slot have -inf. Without a null slot, a row without memory is all -inf.
        """
        query, memory = _normalise(query_state), _normalise(memory_states)
        logits = torch.einsum("bd,bmd->bm", self.query(query), memory) / memory.shape[-1] ** 0.5
        logits = logits.masked_fill(mask == 0, -torch.inf)
        null = self.null(query) if self.has_null else torch.full_like(query[:, :1], -torch.inf)
        return F.log_softmax(torch.cat([null, logits], dim=1), dim=1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)


def choose(log_scores: Tensor, top_k: int) -> Choice:
    """The `top_k` memories with the highest scores, among those that beat the null slot. `log_scores` (B, 1 + M)."""
    null, memory = log_scores[:, :1], log_scores[:, 1:]
    num_chosen = min(top_k, memory.shape[1])
    best, indices = memory.topk(num_chosen, dim=1)
    beats_null = (best > null) & best.isfinite()
    in_time = indices.masked_fill(~beats_null, -1).sort(dim=1).values  # abstained slots become padding on the left
    return Choice(in_time.clamp(min=0), (in_time >= 0).long())


def take(memory_states: Tensor, choice: Choice) -> Tensor:
    """`memory_states` (B, M, D) → the chosen ones (B, S, D)."""
    return memory_states.gather(1, choice.indices[..., None].expand(-1, -1, memory_states.shape[-1]))


def _normalise(states: Tensor) -> Tensor:
    return F.layer_norm(states.float(), states.shape[-1:])
