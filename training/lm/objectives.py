"""The training loss of tuning, and the validation loss that selects its checkpoint; both depend on the vocabulary.

`titles`  trained by cross entropy of every token; validated by the log-probability of whole true titles
`items`   trained by cross entropy over the catalogue, or over a sample of a large one; validated by 1 − NDCG@10 in the
          full ranking. The log-probability would stop training too early: the model grows more certain of items it
          knows and gives less to items first seen after the cut, while its order of the others still improves
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_store.lm.split_lm import SplitLM
from training.data.splits import sample_targets
from training.lm.item_tokens import LearnedItemHead, SampledSoftmax
from training.lm.packing import HeadInputs, PackedBatches, head_inputs, target_row
from training.lm.windows import Windows
from training.run.device import autocast
from training.run.metrics import ndcg
from training.run.recipes import Recipe

_VALID_BATCH = 16


def training_loss(lm: SplitLM, windows: Windows, recipe: Recipe, seed: int) -> Callable[[int], Tensor]:
    """Maps the number of a batch to its loss. The batches of one step share `recipe.sft_batch_blocks` blocks."""
    num_parts = recipe.sft.batches_per_step
    batches = PackedBatches(
        windows,
        num_blocks=math.ceil(recipe.sft_batch_blocks / num_parts),
        memory_share=recipe.memory_share,
        memory_from=recipe.memory_from * num_parts,
        memory_sizes=recipe.memory_sizes,
        retrieved_share=recipe.memory_retrieved_share,
        retrieved_from=first_step_with_retrieved(recipe) * num_parts,
        retrieved_sizes=recipe.top_ks,
        seed=seed,
    )
    criterion = _criterion(lm, windows, recipe)

    def loss_at(number: int) -> Tensor:
        with autocast(lm.device, lm.hidden_size):
            return criterion(head_inputs(lm, batches(number)))

    return loss_at


def first_step_with_retrieved(recipe: Recipe) -> int:
    """Two thirds of the steps with memory have random memories only, because similarity means little to a new model."""
    return recipe.memory_from + 2 * max(0, recipe.sft.max_steps - recipe.memory_from) // 3


def _criterion(lm: SplitLM, windows: Windows, recipe: Recipe) -> Callable[[HeadInputs], Tensor]:
    head = lm.model.get_output_embeddings()
    if not isinstance(head, LearnedItemHead) or len(head.embedding.vocabulary) <= recipe.max_softmax_items:
        return lambda inputs: F.cross_entropy(lm.head(inputs.hidden).float(), inputs.labels)
    popularity = token_popularity(windows, len(head.embedding.vocabulary)).tolist()
    sampled = SampledSoftmax(popularity, num_popular=recipe.softmax_popular, num_sampled=recipe.softmax_sampled)
    return lambda inputs: sampled(head, inputs.hidden, inputs.labels)


def token_popularity(windows: Windows, num_tokens: int) -> NDArray[np.int64]:
    """(V,) number of interactions in the train period for each item token."""
    tokens = [windows.prompt.title_tokens(title)[0] for title in windows.split.titles]
    return np.bincount(tokens, weights=windows.split.popularity, minlength=num_tokens).astype(np.int64)


def validation(lm: SplitLM, windows: Windows, recipe: Recipe, seed: int) -> Callable[[], float]:
    """Smaller is better. If the recipe trains with memory: the mean of the losses without it and with the newest."""
    targets = sample_targets(windows.split.valid, recipe.sft_valid_targets, seed)
    sizes = (0, max(recipe.memory_sizes)) if recipe.memory_share else (0,)
    loss_of = ndcg_loss if recipe.vocabulary == "items" else _nats

    @torch.inference_mode()
    def validate() -> float:
        lm.model.eval()
        total = 0.0
        for size in sizes:
            for start in range(0, len(targets), _VALID_BATCH):
                batch = targets[start : start + _VALID_BATCH]
                rows = [target_row(windows, target, num_memories=size) for target in batch]
                with autocast(lm.device, lm.hidden_size):
                    inputs = head_inputs(lm, rows)
                hidden = inputs.hidden.to(lm.dtype)  # in bf16 many scores would be equal
                total += loss_of(lm.head(hidden).float(), inputs.labels)
        lm.model.train()
        return total / len(targets) / len(sizes)

    return validate


def _nats(logits: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(logits, labels, reduction="sum"))


def ndcg_loss(logits: Tensor, labels: Tensor) -> float:
    """Sum of 1 − NDCG@10 over the rows. `logits` (R, V), `labels` (R,)."""
    ranks = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
    return float((1 - ndcg(ranks.cpu().numpy())).sum())
