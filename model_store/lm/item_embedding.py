"""Embedding and head of a language model whose tokens are items.

The row of a token is Σ pieces / √n, the sum of the embeddings of the n text pieces of its title, plus a residual that
training learned. The factor 1/√n makes the length of a row independent of n. Rows of titles known in training are
stored complete. A title added later has no residual: its row is computed from its pieces, so it can be read and
recommended immediately. Not thread-safe.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from model_store.text.vocabulary import ItemVocabulary

_SPARE_SHARE = 16  # reserve 1/16 more rows


def rows_from_pieces(text: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Rows (W, D) of W titles from the piece embeddings `text` (P, D). A title without pieces has a row of zeros."""
    counts = torch.tensor([len(each) for each in pieces], device=text.device)
    flat = torch.tensor([piece for each in pieces for piece in each], dtype=torch.long, device=text.device)
    return rows_from_flat_pieces(text, flat, counts)


def rows_from_flat_pieces(text: Tensor, flat: Tensor, counts: Tensor) -> Tensor:
    """As `rows_from_pieces`, with all pieces in one tensor and the number of pieces of each title in `counts` (W,)."""
    sums = F.embedding_bag(flat, text, counts.cumsum(0) - counts, mode="sum")
    return sums / counts.clamp(min=1).sqrt()[:, None].to(text.dtype)


class ItemEmbedding(nn.Module):
    """tokens (…) → (…, D). `weight` holds the rows of known titles, `text` (P, D) the embeddings of text pieces.

    `scale` multiplies the output, for architectures that scale embeddings but not the head.
    """

    def __init__(self, weight: Tensor, text: Tensor, vocabulary: ItemVocabulary, *, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.text = nn.Parameter(text, requires_grad=False)
        self.vocabulary = vocabulary
        self.scale = scale
        self._buffer: Tensor | None = None  # `weight` is its beginning, once a title was added

    def rows(self) -> Tensor:
        """Rows (V, D) of all tokens that the vocabulary has at this moment."""
        known, wanted = len(self.weight), len(self.vocabulary)
        if known < wanted:
            added = rows_from_pieces(self.text, self.vocabulary.pieces(known, wanted))
            with torch.inference_mode(False), torch.no_grad():
                self._buffer = self._buffer_for(wanted)
                self._buffer[known:wanted] = added
                self.weight = nn.Parameter(self._buffer[:wanted], requires_grad=False)
        return self.weight

    def _buffer_for(self, wanted: int) -> Tensor:
        """A buffer of at least `wanted` rows with spare ones, so that most added titles need no copy of the table."""
        buffer = self._buffer
        if buffer is None or len(buffer) < wanted or buffer.data_ptr() != self.weight.data_ptr():
            buffer = self.weight.new_empty(wanted + wanted // _SPARE_SHARE, self.weight.shape[1])
            buffer[: len(self.weight)] = self.weight
        return buffer

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.rows()) * self.scale


class ItemHead(nn.Module):
    """hidden (…, D) → logits (…, V)."""

    def __init__(self, embedding: ItemEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.rows())


def use_item_tokens(model: PreTrainedModel, embedding: ItemEmbedding, head: ItemHead) -> None:
    """Replace the embedding and the head of `model`."""
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)


def embedding_scale(model: PreTrainedModel) -> float:
    """The factor inside the embedding module. A factor that the model applies afterwards is not included."""
    return float(getattr(model.get_input_embeddings(), "embed_scale", 1.0))
