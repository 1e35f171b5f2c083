"""Embedding and head of a language model whose tokens are items: row = Σ pieces / √n + what training added.

`Σ pieces / √n` spells a title from embeddings of its pieces of text and keeps their length whatever n is. Rows of
titles known in training are stored whole; a later title is spelled, so it can be read and recommended at once.
Engine thread only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from model_store.text.vocabulary import ItemVocabulary

_SPARE = 16  # one spare row for so many


def spell(text: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """(W, D) from `text` (P, D) and the pieces of W titles; nothing of a title gives zeros."""
    counts = torch.tensor([len(each) for each in pieces], device=text.device)
    flat = torch.tensor([piece for each in pieces for piece in each], dtype=torch.long, device=text.device)
    return spell_flat(text, flat, counts)


def spell_flat(text: Tensor, flat: Tensor, counts: Tensor) -> Tensor:
    """The same from the pieces of all titles in a row and their `counts` (W,)."""
    sums = F.embedding_bag(flat, text, counts.cumsum(0) - counts, mode="sum")
    return sums / counts.clamp(min=1).sqrt()[:, None].to(text.dtype)


class ItemEmbedding(nn.Module):
    """tokens (…) → (…, D). `weight` (n, D) are the tokens known in training, `text` (P, D) spells the others.

    `scale` is for architectures that multiply embeddings, but not the head.
    """

    def __init__(self, weight: Tensor, text: Tensor, vocabulary: ItemVocabulary, *, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.text = nn.Parameter(text, requires_grad=False)
        self.vocabulary = vocabulary
        self.scale = scale
        self._room: Tensor | None = None  # begins with `weight`, once a title came late

    def rows(self) -> Tensor:
        """(V, D) of all tokens there are by now."""
        known, wanted = len(self.weight), len(self.vocabulary)
        if known < wanted:
            late = spell(self.text, self.vocabulary.spelled(known, wanted))
            with torch.inference_mode(False), torch.no_grad():
                self._room = self._room_for(wanted)
                self._room[known:wanted] = late
                self.weight = nn.Parameter(self._room[:wanted], requires_grad=False)
        return self.weight

    def _room_for(self, wanted: int) -> Tensor:
        """And for some more: a large table is not copied for each title that comes."""
        room = self._room
        if room is None or len(room) < wanted or room.data_ptr() != self.weight.data_ptr():
            room = self.weight.new_empty(wanted + wanted // _SPARE, self.weight.shape[1])
            room[: len(self.weight)] = self.weight
        return room

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.rows()) * self.scale


class ItemHead(nn.Module):
    """hidden (…, D) → logits (…, V)."""

    def __init__(self, embedding: ItemEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.rows())


def attach(model: PreTrainedModel, embedding: ItemEmbedding, head: ItemHead) -> None:
    """Puts item tokens into `model`."""
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)


def embedding_scale(model: PreTrainedModel) -> float:
    """Of the embedding module itself; what a model multiplies afterwards stays in the model."""
    return float(getattr(model.get_input_embeddings(), "embed_scale", 1.0))
