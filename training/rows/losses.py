"""What SASRec minimises. In: states of places, item vectors, what follows. Out: a loss, the mean over places."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def binary_loss(states: Tensor, items: Tensor, true_rows: Tensor, negatives: Tensor, kept: Tensor) -> Tensor:
    """The published loss. `states` (P, D), `items` (N, D), `true_rows` and `negatives` (P,); a negative that the
    window holds is not `kept` (P,) bool."""
    positive = (states * items[true_rows]).sum(dim=1)
    negative = (states * items[negatives]).sum(dim=1)
    return functional.softplus(-positive).mean() + (functional.softplus(negative) * kept).sum() / kept.sum().clamp(1)


def softmax_loss(states: Tensor, items: Tensor, true_rows: Tensor) -> Tensor:
    """Cross-entropy over all items. `states` (P, D), `items` (N, D), `true_rows` (P,)."""
    with _fast_products(states.device):
        logits = states @ items.T
    return functional.cross_entropy(logits.float(), true_rows)


def sampled_softmax_loss(
    states: Tensor, items: Tensor, true_rows: Tensor, sampled: Tensor, log_expected: Tensor
) -> Tensor:
    """Cross-entropy of the truth against `sampled` (S,) rows shared by the batch.

    `log_expected` (S,) is the log of how often the row is expected in the sample: taken off its logit, the sum of
    exponentials over the sample estimates that over all items without bias. A sampled truth does not count twice.
    """
    with _fast_products(states.device):
        logits = states @ items[sampled].T
    others = (logits.float() - log_expected).masked_fill(sampled == true_rows[:, None], -torch.inf)
    own = (states * items[true_rows]).sum(dim=1, keepdim=True)
    return functional.cross_entropy(torch.cat([own, others], dim=1), torch.zeros_like(true_rows))


def _fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 for the head, which is most of the work, where the machine multiplies it faster than float32."""
    is_fast = device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(device.type, dtype=torch.bfloat16) if is_fast else nullcontext()
