"""What tuning minimises, and by what it is judged on the valid period.

`titles`  cross entropy of every token; judged by the log-probability of whole true titles
`items`   cross entropy over the catalogue, sampled where it is large; judged by NDCG@10 in the full ranking, because a
          growing model gets surer of what it knows and so less likely on items that nobody had read before the cut,
          while its order of the others still improves
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_store.lm.split_lm import SplitLM
from training.data.splits import Target, sample_targets
from training.lm.item_tokens import LearnedItemHead, SampledSoftmax
from training.lm.packing import PackedBatches, Read, Row, read_packed, target_rows
from training.lm.windows import Windows
from training.run.metrics import ndcg
from training.run.recipes import Recipe
from training.run.stage import autocast

_VALID_BATCH = 16


def training_loss(lm: SplitLM, windows: Windows, recipe: Recipe, seed: int) -> Callable[[int], Tensor]:
    """The loss of the batch with a number. The batches of a step share its blocks."""
    num_parts = recipe.sft.batches_per_step
    batches = PackedBatches(
        windows,
        num_blocks=math.ceil(recipe.sft_batch_blocks / num_parts),
        memory_share=recipe.memory_share,
        memory_from=recipe.memory_from * num_parts,
        memory_sizes=recipe.memory_sizes,
        seed=seed,
    )
    criterion = _criterion(lm, windows, recipe)

    def loss_at(number: int) -> Tensor:
        with autocast(lm.device, lm.hidden_size):
            return criterion(read_packed(lm, batches(number)))

    return loss_at


def _criterion(lm: SplitLM, windows: Windows, recipe: Recipe) -> Callable[[Read], Tensor]:
    head = lm.model.get_output_embeddings()
    if not isinstance(head, LearnedItemHead) or len(head.embedding.vocabulary) <= recipe.max_softmax_items:
        return lambda read: F.cross_entropy(lm.head(read.hidden).float(), read.labels)
    popularity = token_popularity(windows, len(head.embedding.vocabulary)).tolist()
    sampled = SampledSoftmax(popularity, num_popular=recipe.softmax_popular, num_sampled=recipe.softmax_sampled)
    return lambda read: sampled(head, read.hidden, read.labels)


def token_popularity(windows: Windows, num_tokens: int) -> NDArray[np.int64]:
    """(V,) interactions in the train period by item token."""
    tokens = [windows.prompt.title_tokens(title)[0] for title in windows.split.titles]
    return np.bincount(tokens, weights=windows.split.popularity, minlength=num_tokens).astype(np.int64)


def validation(lm: SplitLM, windows: Windows, recipe: Recipe, seed: int) -> Callable[[], float]:
    """Smaller is better. With a memory-aware recipe, the mean of the cases without memory and with the newest of it."""
    targets = sample_targets(windows.split.valid, recipe.sft_valid_targets, seed)
    sizes = (0, max(recipe.memory_sizes)) if recipe.memory_share else (0,)
    judge = missed_ndcg if recipe.vocabulary == "items" else _nats

    @torch.inference_mode()
    def validate() -> float:
        lm.model.eval()
        total = 0.0
        for size in sizes:
            for start in range(0, len(targets), _VALID_BATCH):
                batch = _rows(windows, targets[start : start + _VALID_BATCH], size)
                with autocast(lm.device, lm.hidden_size):
                    read = read_packed(lm, batch)
                total += judge(lm.head(read.hidden.to(lm.dtype)).float(), read.labels)  # in bf16, ranks would tie
        lm.model.train()
        return total / len(targets) / len(sizes)

    return validate


def _rows(windows: Windows, targets: list[Target], memory_size: int) -> list[Row]:
    rows: list[Row] = []
    for target in targets:
        found = target_rows(windows, target.user, target.position, len(rows), with_memory=memory_size > 0)
        rows += [*found[:-1], found[-1]._replace(memory=found[-1].memory[-memory_size:] if memory_size else [])]
    return rows


def _nats(logits: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(logits, labels, reduction="sum"))


def missed_ndcg(logits: Tensor, labels: Tensor) -> float:
    """Sum of 1 − NDCG@10."""
    ranks = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
    return float((1 - ndcg(ranks.cpu().numpy())).sum())
