"""A pretrained checkpoint made smaller for one catalogue, so that a CPU can tune and serve it.

In: a model and its tokenizer. Out: the same model with fewer layers, or with tokens of the catalogue, in place.

The cost of a token grows with the layers, and the cost of a title with its tokens. The tokenizer of a checkpoint writes
a title of MovieLens in twelve tokens, half of them digits and brackets of the year; one made from the catalogue needs
less than three. A new token starts from the embeddings of the old tokens of its text, as in fast vocabulary transfer
(arXiv 2402.09977), and, with `vectors`, from what users had together with its titles. Afterwards the model must be
tuned: without its last layers, or with these tokens, it writes nonsense.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import decoders
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from model_store.lm.item_embedding import rows_from_pieces
from model_store.lm.split_lm import final_norm_of, layers_of
from training.data.splits import Split
from training.items.co_occurrence import co_occurrence_vectors
from training.run.stage import StageError

_START_SCALE = 0.15  # of the final norm
_RANK = 128  # of the co-occurrence vectors: more takes minutes on a large catalogue


def keep_first_layers(model: PreTrainedModel, count: int) -> None:
    """Raises StageError if the model has fewer layers.

    The states after these layers were not made for the head, which would be sure of wrong tokens. The final norm is
    scaled down, so that tuning starts near equal probabilities.
    """
    config, total = model.config, model.config.num_hidden_layers
    if not 0 < count <= total:
        raise StageError(f"the recipe keeps {count} layers, but the checkpoint has {total}")
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == total:  # one entry per layer, as in `layer_types`
            setattr(config, name, value[:count])
    config.num_hidden_layers = count
    del layers_of(model.base_model)[count:]
    with torch.no_grad():
        final_norm_of(model.base_model).get_parameter("weight").mul_(_START_SCALE)


@torch.no_grad()
def use_vocabulary(
    model: PreTrainedModel,
    old: PreTrainedTokenizerBase,
    new: PreTrainedTokenizerFast,
    vectors: NDArray[np.float32] | None = None,
) -> None:
    """Replaces the rows of embedding and head, made for `old`, by rows for `new`, a byte-level tokenizer.

    `vectors` (V, D), rows of length 1 or 0, are added, as long as what old rows do not have in common.
    """
    pieces = _pieces(old, new)
    tied = model.config.tie_word_embeddings
    tables = [model.get_input_embeddings()] if tied else [model.get_input_embeddings(), model.get_output_embeddings()]
    rows = [_rows(table.get_parameter("weight").float(), pieces, vectors) for table in tables]
    model.resize_token_embeddings(len(new), mean_resizing=False)
    for place, made in zip((model.get_input_embeddings(), model.get_output_embeddings()), rows, strict=False):
        place.get_parameter("weight").copy_(made)
    for config in (model.config, model.generation_config):
        if config is not None:
            config.bos_token_id, config.eos_token_id, config.pad_token_id = new.bos_token_id, None, None


def _pieces(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerFast) -> list[list[int]]:
    """The old tokens of the text of each new token; none if the token is a part of a character."""
    decoder = decoders.ByteLevel()
    texts = [decoder.decode([token]) for token in new.convert_ids_to_tokens(list(range(len(new))))]
    pieces = [
        [] if "\ufffd" in text else old.encode(text, add_special_tokens=False, split_special_tokens=True)
        for text in texts
    ]
    if new.bos_token_id is not None:
        pieces[new.bos_token_id] = [] if old.bos_token_id is None else [old.bos_token_id]
    return pieces


def _rows(table: Tensor, pieces: Sequence[Sequence[int]], vectors: NDArray[np.float32] | None) -> Tensor:
    """(V, D) m + Σ (piece − m) / √n for n pieces, where m is the mean of the whole table.

    All rows of a trained table have a large part in common, m. The rest would be small in a plain mean of n pieces.
    """
    mean = table.mean(dim=0)
    rows = mean + rows_from_pieces(table - mean, pieces)
    if vectors is not None:
        rows += (table - mean).norm(dim=1).mean() * torch.from_numpy(vectors).to(rows)
    return rows


def collaborative_vectors(
    split: Split, tokenizer: PreTrainedTokenizerBase, dimension: int, seed: int
) -> NDArray[np.float32]:
    """(V, dimension) of each token: the mean co-occurrence vector of the events with a title that contains it.

    Rows of length 1, and of zeros for tokens in no title. The vectors lie in a random subspace, because the first
    coordinates of a trained model are like any others.
    """
    rank = min(_RANK, dimension)
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(dimension, rank)))[0].astype(np.float32)
    items = co_occurrence_vectors(split, rank, seed=seed) * split.popularity[:, None].astype(np.float32)
    sums = np.zeros((len(tokenizer), rank), dtype=np.float32)
    for title, vector in zip(split.titles, items, strict=True):
        np.add.at(sums, tokenizer.encode(title, add_special_tokens=False), vector)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(lengths > 1e-6, sums / np.maximum(lengths, 1e-6), 0.0) @ basis.T
    return unit.astype(np.float32)


def learn_embeddings(model: PreTrainedModel) -> None:
    """New rows must be trained also where adapters are trained instead of the other weights."""
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.requires_grad_(True)
