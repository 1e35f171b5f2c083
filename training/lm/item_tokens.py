"""Item tokens in training: the embedding of a title is made from its text pieces, plus a learned residual.

A piece is trained through all titles that contain it, so a title without events starts near titles with similar words.
A model made from scratch learns the pieces too; with a pretrained checkpoint they are its own token embeddings, frozen.
After training the complete rows are stored, and the model is an ordinary checkpoint with one token per title (see
model_store/lm/checkpoint.py).
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from model_store.lm.checkpoint import save_pieces
from model_store.lm.item_embedding import (
    ItemEmbedding,
    ItemHead,
    embedding_scale,
    rows_from_flat_pieces,
    use_item_tokens,
)
from model_store.text.vocabulary import BEGIN, ItemVocabulary

_TEXT_FACTOR, _LAYER_FACTOR = 0.3, 0.1


class LearnedItemEmbedding(ItemEmbedding):
    """Computes its rows from `text` (P, D) and the residuals `weight` (V, D) at every call, so that both learn."""

    def __init__(self, text: Tensor, vocabulary: ItemVocabulary, *, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__(text.new_zeros(len(vocabulary), text.shape[1]), text, vocabulary, scale=scale)
        self.weight.requires_grad_(True)
        # The row of the prompt's first token must not be zero: the first norm would divide it by almost nothing.
        self.weight.data[BEGIN] = text[vocabulary.tokenizer.bos_token_id or 0]
        self.dropout = dropout
        pieces = [[], *vocabulary.pieces(1, len(vocabulary))]
        self.flat = nn.Buffer(torch.tensor([piece for each in pieces for piece in each], dtype=torch.long))
        self.counts = nn.Buffer(torch.tensor([len(each) for each in pieces]))

    def rows(self) -> Tensor:
        return rows_from_flat_pieces(self.text, self.flat, self.counts) + self.weight

    def rows_of(self, tokens: Tensor) -> Tensor:
        """`rows()[tokens]` (…, D), computed for these tokens only."""
        each = tokens.flatten()
        counts = self.counts[each]
        firsts = (self.counts.cumsum(0) - self.counts)[each]
        shifts = torch.repeat_interleave(firsts - (counts.cumsum(0) - counts), counts)
        pieces = self.flat[shifts + torch.arange(len(shifts), device=each.device)]
        rows = rows_from_flat_pieces(self.text, pieces, counts) + F.embedding(each, self.weight)
        return rows.view(*tokens.shape, -1)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.dropout(self.rows_of(tokens), self.dropout, self.training) * self.scale


class LearnedItemHead(ItemHead):
    """Applies the dropout of the embedding to the input of the head."""

    embedding: LearnedItemEmbedding

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(F.dropout(hidden, self.embedding.dropout, self.training))


class SampledSoftmax:
    """Cross entropy over a part of a large catalogue: its most popular items and a new random sample of the others.

    Each sampled item is weighted by the number of items it represents, so the estimate of the sum of exponentials is
    unbiased; the popular items, which weigh most, are exact.
    """

    def __init__(self, popularity: Sequence[int], *, num_popular: int, num_sampled: int) -> None:
        """`popularity` (V,) of each token."""
        order = torch.tensor(popularity).argsort(descending=True, stable=True)
        self._popular, self._others = order[:num_popular], order[num_popular:]
        self._num_sampled = min(num_sampled, len(self._others))

    def __call__(self, head: LearnedItemHead, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of states `hidden` (R, D) with true tokens `labels` (R,)."""
        embedding = head.embedding
        sampled = self._others[torch.randint(max(1, len(self._others)), (self._num_sampled,))]
        candidates = torch.cat([self._popular, sampled]).to(labels.device)
        hidden = F.dropout(hidden, embedding.dropout, embedding.training)
        own = (hidden.float() * embedding.rows_of(labels).float()).sum(dim=1)
        logits = F.linear(hidden, embedding.rows_of(candidates)).float()
        if self._num_sampled:
            logits[:, len(self._popular) :] += math.log(len(self._others) / self._num_sampled)
        logits = logits.masked_fill(candidates == labels[:, None], -torch.inf)
        return (torch.cat([own[:, None], logits], dim=1).logsumexp(dim=1) - own).mean()


def make_item_model(model: PreTrainedModel, vocabulary: ItemVocabulary, *, dropout: float, train_text: bool) -> None:
    """Replaces the embedding and head of `model` by item tokens made from its text tokens. Add LoRA adapters first."""
    text = _copy(model.get_input_embeddings())
    inputs = LearnedItemEmbedding(text, vocabulary, scale=embedding_scale(model), dropout=dropout)
    outputs = inputs
    if not model.config.tie_word_embeddings:
        outputs = LearnedItemEmbedding(_copy(model.get_output_embeddings()), vocabulary, dropout=dropout)
    for embedding in (inputs, outputs):
        embedding.text.requires_grad_(train_text)
    use_item_tokens(model, inputs, LearnedItemHead(outputs))
    model.config.vocab_size = len(vocabulary)
    model.config.pad_token_id = None  # the number of a text token, which means an item now


@torch.no_grad()
def add_item_vectors(model: PreTrainedModel, vectors: NDArray[np.float32], tokens: Sequence[int]) -> None:
    """Adds `vectors` (N, D) to the residuals of `tokens` (N,); vectors of items that share a token are summed.

    The text pieces and the output weights of the layers are scaled down, so that at first the model predicts items near
    the last one.
    """
    inputs, _ = _embeddings(model)
    inputs.weight.index_add_(0, torch.tensor(tokens), torch.from_numpy(vectors))
    inputs.text.mul_(_TEXT_FACTOR)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.mul_(_LAYER_FACTOR)


def _copy(module: nn.Module) -> Tensor:
    return module.get_parameter("weight").detach().clone()


@torch.no_grad()
def save_item_model(model: PreTrainedModel, directory: Path) -> None:
    """Writes an ordinary checkpoint with one row per title, and the pieces from which later titles are made."""
    inputs, outputs = _embeddings(model)
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    plain.load_state_dict(model.state_dict(), strict=False)  # the embeddings have other names and are copied below
    plain.get_input_embeddings().get_parameter("weight").copy_(inputs.rows())
    if outputs is not inputs:
        plain.get_output_embeddings().get_parameter("weight").copy_(outputs.rows())
    plain.save_pretrained(directory)
    inputs.vocabulary.save(directory)
    save_pieces(directory, inputs.text, None if outputs is inputs else outputs.text)


def _embeddings(model: PreTrainedModel) -> tuple[LearnedItemEmbedding, LearnedItemEmbedding]:
    """The embedding of the input and that of the head; one object if they are tied."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(inputs, LearnedItemEmbedding) and isinstance(head, LearnedItemHead)
    return inputs, head.embedding


def piece_tokenizer(titles: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of lower-case words: frequent words are one piece, and any other text can still be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(titles, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
