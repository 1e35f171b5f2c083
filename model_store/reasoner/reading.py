"""A batch of dialogues that a language model reads piece by piece, in one cache of keys and values.

Rows take pieces of different lengths: a row that takes less is filled up, and the filling is masked, so that no row
waits for another and nothing is read twice. Positions count what a row has read. Not thread-safe.
"""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class Reading:
    """`model` is a causal language model of transformers, with or without adapters in its layers."""

    def __init__(self, model: PreTrainedModel, num_rows: int) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)
        self._mask = torch.zeros(num_rows, 0, dtype=torch.long, device=model.device)
        self._states = torch.zeros(num_rows, model.config.hidden_size, dtype=model.dtype, device=model.device)

    @torch.inference_mode()
    def feed(self, pieces: Sequence[Sequence[int]]) -> Self:
        """Each row reads its piece, which may be empty."""
        longest = max(len(piece) for piece in pieces)
        if longest == 0:
            return self
        tokens = torch.tensor([[*piece, *[0] * (longest - len(piece))] for piece in pieces], device=self._mask.device)
        is_read = torch.tensor(
            [[1] * len(piece) + [0] * (longest - len(piece)) for piece in pieces], device=self._mask.device
        )
        positions = self._mask.sum(dim=1, keepdim=True) + is_read.cumsum(dim=1) - 1
        self._mask = torch.cat([self._mask, is_read], dim=1)
        states = self._model.base_model(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=positions.clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        lengths = is_read.sum(dim=1)
        last = states[torch.arange(len(states)), (lengths - 1).clamp(min=0)]
        self._states = torch.where((lengths > 0)[:, None], last, self._states)
        return self

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int] | None = None) -> Tensor:
        """(rows, V), or only those of `tokens`, of what follows each row; float32."""
        head = self._model.get_output_embeddings()
        weight = head.weight if tokens is None else head.weight[list(tokens)]
        return (self._states.to(weight.dtype) @ weight.T).float()

    @torch.inference_mode()
    def repeated(self, count: int) -> "Reading":
        """A new reading with each row `count` times. This one stays as it is."""
        other = copy.copy(self)
        other._cache = copy.deepcopy(self._cache)
        if count > 1:
            other._cache.batch_repeat_interleave(count)
        other._mask = self._mask.repeat_interleave(count, dim=0)
        other._states = self._states.repeat_interleave(count, dim=0)
        return other
