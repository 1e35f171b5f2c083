"""Item tokens in training: embeddings spelled from text pieces, plus a learned residual for every title.

The pieces train through all titles that share them, so a title that nobody has read yet starts near titles of like
words. From scratch the pieces are learned too; of a checkpoint they are its own embeddings, frozen. When training is
over, the rows are stored whole and the model is an ordinary checkpoint with one token per title (see
model_store/checkpoint.py).
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

_WORDS_STEP_BACK, _LAYERS_STEP_BACK = 0.3, 0.1


class LearnedItemEmbedding(ItemEmbedding):
    """Rows are made anew from `text` (P, D) and `weight`, the residual (V, D), whenever they are read."""

    def __init__(self, text: Tensor, vocabulary: ItemVocabulary, *, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__(text.new_zeros(len(vocabulary), text.shape[1]), text, vocabulary, scale=scale)
        self.weight.requires_grad_(True)
        # Not zeros, which the first norm would divide by nearly nothing: any piece will do where none begins a text.
        self.weight.data[BEGIN] = text[vocabulary.tokenizer.bos_token_id or 0]
        self.dropout = dropout
        pieces = [[], *vocabulary.pieces(1, len(vocabulary))]
        self.flat = nn.Buffer(torch.tensor([piece for each in pieces for piece in each], dtype=torch.long))
        self.counts = nn.Buffer(torch.tensor([len(each) for each in pieces]))

    def rows(self) -> Tensor:
        return rows_from_flat_pieces(self.text, self.flat, self.counts) + self.weight

    def some(self, tokens: Tensor) -> Tensor:
        """`rows()[tokens]` (…, D) at the cost of these tokens alone."""
        each = tokens.flatten()
        counts = self.counts[each]
        firsts = (self.counts.cumsum(0) - self.counts)[each]
        shifts = torch.repeat_interleave(firsts - (counts.cumsum(0) - counts), counts)
        pieces = self.flat[shifts + torch.arange(len(shifts), device=each.device)]
        return (rows_from_flat_pieces(self.text, pieces, counts) + F.embedding(each, self.weight)).view(
            *tokens.shape, -1
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return F.dropout(self.some(tokens), self.dropout, self.training) * self.scale


class LearnedItemHead(ItemHead):
    """Drops out what it reads, as the embedding drops out what it writes."""

    embedding: LearnedItemEmbedding

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(F.dropout(hidden, self.embedding.dropout, self.training))


class SampledSoftmax:
    """Cross entropy over a part of a large catalogue: its most popular items, and a fresh sample of the others.

    The sampled ones stand for all the others (each counts as many as it represents), so the sum of exponentials is
    estimated without bias, and where it matters most it is exact.
    """

    def __init__(self, popularity: Sequence[int], *, num_popular: int, num_sampled: int) -> None:
        """`popularity` (V,) by token."""
        order = torch.tensor(popularity).argsort(descending=True, stable=True)
        self._popular, self._others = order[:num_popular], order[num_popular:]
        self._num_sampled = min(num_sampled, len(self._others))

    def __call__(self, head: LearnedItemHead, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of `hidden` (R, D) at `labels` (R,)."""
        embedding = head.embedding
        sampled = self._others[torch.randint(max(1, len(self._others)), (self._num_sampled,))]
        candidates = torch.cat([self._popular, sampled]).to(labels.device)
        hidden = F.dropout(hidden, embedding.dropout, embedding.training)
        own = (hidden.float() * embedding.some(labels).float()).sum(dim=1)
        logits = F.linear(hidden, embedding.some(candidates)).float()
        if self._num_sampled:
            logits[:, len(self._popular) :] += math.log(len(self._others) / self._num_sampled)
        logits = logits.masked_fill(candidates == labels[:, None], -torch.inf)
        return (torch.cat([own[:, None], logits], dim=1).logsumexp(dim=1) - own).mean()


def learn_items(model: PreTrainedModel, vocabulary: ItemVocabulary, *, dropout: float, train_text: bool) -> None:
    """Replaces the text tokens of `model` by items that are spelled from them. Call it after adapters are in place."""
    text = _copy(model.get_input_embeddings())
    inputs = LearnedItemEmbedding(text, vocabulary, scale=embedding_scale(model), dropout=dropout)
    outputs = inputs
    if not model.config.tie_word_embeddings:
        outputs = LearnedItemEmbedding(_copy(model.get_output_embeddings()), vocabulary, dropout=dropout)
    for embedding in (inputs, outputs):
        embedding.text.requires_grad_(train_text)
    use_item_tokens(model, inputs, LearnedItemHead(outputs))
    model.config.vocab_size = len(vocabulary)
    model.config.pad_token_id = None  # of the text: among items it would be another one's row, or none


@torch.no_grad()
def start_from(model: PreTrainedModel, vectors: NDArray[np.float32], tokens: Sequence[int]) -> None:
    """Adds `vectors` (N, D) to the residuals of `tokens` (N,), items that share a token on top of each other.

    The words step back, and so does what the layers write: the first forecast is then "what is near the last item".
    """
    inputs, _ = _embeddings(model)
    inputs.weight.index_add_(0, torch.tensor(tokens), torch.from_numpy(vectors))
    inputs.text.mul_(_WORDS_STEP_BACK)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.mul_(_LAYERS_STEP_BACK)


def _copy(module: nn.Module) -> Tensor:
    return module.get_parameter("weight").detach().clone()


@torch.no_grad()
def save_item_model(model: PreTrainedModel, directory: Path) -> None:
    """An ordinary checkpoint with one row per title, and beside it what spells later ones."""
    inputs, outputs = _embeddings(model)
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    plain.load_state_dict(model.state_dict(), strict=False)  # all but the embeddings, whose names differ
    plain.get_input_embeddings().get_parameter("weight").copy_(inputs.rows())
    if outputs is not inputs:
        plain.get_output_embeddings().get_parameter("weight").copy_(outputs.rows())
    plain.save_pretrained(directory)
    inputs.vocabulary.save(directory)
    save_pieces(directory, inputs.text, None if outputs is inputs else outputs.text)


def _embeddings(model: PreTrainedModel) -> tuple[LearnedItemEmbedding, LearnedItemEmbedding]:
    """Of the input and of the head."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(inputs, LearnedItemEmbedding) and isinstance(head, LearnedItemHead)
    return inputs, head.embedding


def piece_tokenizer(titles: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of words in lower case: frequent words are one piece, any other text can still be spelled."""
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
