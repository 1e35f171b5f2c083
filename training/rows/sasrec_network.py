"""The network of SASRec, its losses and its scores (Kang and McAuley, ICDM 2018).

In: item ids, at most `max_length` for each user. Out: states that predict the next item, losses, scores of all items.
Causal self-attention over item ids, with the item vectors used for input and output. `sasrec.py` trains it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.data.splits import Split, Target
from training.items.scoring import MAX_HISTORY, past_items
from training.run.loop import Schedule

INITIAL_SPREAD = 0.02
_BATCH = 128  # targets scored at a time


@dataclass(frozen=True)
class SasrecSettings:
    width: int = 128  # D
    num_layers: int = 2
    num_heads: int = 4
    max_length: int = MAX_HISTORY
    title_width: int = 64  # F, features of a title
    # Tried with seed 0; the best on the valid period is used for all seeds.
    dropouts: tuple[float, ...] = (0.1, 0.3, 0.5)
    batch_tokens: int = 1024
    max_softmax_items: int = 8192  # with more items the softmax is over a sample of `num_negatives`
    num_negatives: int = 2048
    valid_targets: int = 1000
    # The limit is about a hundred epochs on half a million interactions; patience should end the training earlier.
    schedule: Schedule = field(
        default_factory=lambda: Schedule(max_steps=40_000, learning_rate=3e-3, evaluate_every=250, patience=6)
    )


class ItemVectors(nn.Module):
    """The vector of each item: a learned one; if titles are read, plus a learned linear map of the title's features.

    With titles, an item without an event in the train period has the mapped features only: what it would learn itself
    is that it was never the answer.
    """

    features: Tensor  # (N, F)
    is_trained: Tensor  # (N, 1), 1 for items that have an event in the train period

    def __init__(self, num_items: int, width: int, title_width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_items, width)
        nn.init.normal_(self.embedding.weight, std=INITIAL_SPREAD)
        self.from_title = nn.Linear(title_width, width, bias=False) if title_width else None
        if self.from_title is not None:
            nn.init.normal_(self.from_title.weight, std=INITIAL_SPREAD)
        self.register_buffer("features", torch.zeros(num_items, title_width), persistent=title_width > 0)
        self.register_buffer("is_trained", torch.ones(num_items, 1), persistent=title_width > 0)

    def forward(self, rows: Tensor) -> Tensor:
        """(…,) int64 → (…, D)"""
        own: Tensor = self.embedding(rows)
        if self.from_title is None:
            return own
        mapped: Tensor = self.from_title(self.features[rows])
        return own * self.is_trained[rows] + mapped

    def table(self) -> Tensor:
        """(N, D) the vectors of all items."""
        own = self.embedding.weight
        return own if self.from_title is None else own * self.is_trained + self.from_title(self.features)


class SasrecNetwork(nn.Module):
    bias: Tensor  # (1, heads, T, T)

    def __init__(
        self,
        num_items: int,
        settings: SasrecSettings,
        dropout: float,
        *,
        is_recency_biased: bool,
        reads_titles: bool = False,
    ) -> None:
        super().__init__()
        self.items = ItemVectors(num_items, settings.width, settings.title_width if reads_titles else 0)
        self.positions = nn.Embedding(settings.max_length, settings.width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            _Block(settings.width, settings.num_heads, dropout) for _ in range(settings.num_layers)
        )
        self.register_buffer("bias", recency_bias(settings, is_recency_biased), persistent=False)
        self.norm = nn.LayerNorm(settings.width)
        nn.init.normal_(self.positions.weight, std=INITIAL_SPREAD)

    def forward(self, items: Tensor) -> Tensor:
        """(B, T) int64 → states (B, T, D); the state of a place predicts the item after it. Padding is on the right."""
        scale = self.positions.embedding_dim**0.5
        states = self.dropout(self.items(items) * scale + self.positions.weight[: items.shape[1]])
        for block in self.blocks:
            states = block(states, self.bias[:, :, : items.shape[1], : items.shape[1]])
        normed: Tensor = self.norm(states)
        return normed


def recency_bias(settings: SasrecSettings, is_biased: bool) -> Tensor:
    """(1, heads, T, T), added to attention logits: minus infinity for future places; if biased, a penalty for age.

    Head h subtracts 2^-(2h + 1) for each event of age, the last head nothing (Press et al., ICLR 2022). Without the
    bias the network learns recency position by position, which takes hundreds of epochs.
    """
    place = torch.arange(settings.max_length)
    age = (place[:, None] - place).float()
    slopes = torch.tensor([2.0 ** -(2 * head + 1) for head in range(settings.num_heads - 1)] + [0.0])
    bias = -age * slopes[:, None, None] if is_biased else torch.zeros(settings.num_heads, 1, 1)
    return bias.masked_fill(age < 0, -torch.inf)[None]


class _Block(nn.Module):
    """x + Dropout(g(LayerNorm(x))), first with g = attention, then with g = two point-wise layers (eq. 2 to 5)."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.from_heads = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        states = states + self.dropout(self._attend(self.attention_norm(states), bias))
        fed: Tensor = states + self.dropout(self.feed(self.feed_norm(states)))
        return fed

    def _attend(self, states: Tensor, bias: Tensor) -> Tensor:
        heads = self.to_qkv(states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=bias)
        result: Tensor = self.from_heads(mixed.transpose(1, 2).flatten(2))
        return result


def binary_loss(states: Tensor, items: Tensor, true_rows: Tensor, negatives: Tensor, kept: Tensor) -> Tensor:
    """The published loss: binary cross-entropy of the true item and of one negative at each of P places.

    `states` (P, D), `items` (N, D), `true_rows` and `negatives` (P,), `kept` (P,) bool: which negatives count.
    """
    positive = (states * items[true_rows]).sum(dim=1)
    negative = (states * items[negatives]).sum(dim=1)
    return functional.softplus(-positive).mean() + (functional.softplus(negative) * kept).sum() / kept.sum().clamp(1)


def softmax_loss(states: Tensor, items: Tensor, true_rows: Tensor, left_out: Tensor | None = None) -> Tensor:
    """Cross-entropy over all items but those in `left_out` (N,) bool. `states` (P, D), `items` (N, D), `true_rows`
    (P,)."""
    with _fast_products(states.device):
        logits = (states @ items.T).float()
    return functional.cross_entropy(logits if left_out is None else logits.masked_fill(left_out, -torch.inf), true_rows)


def sampled_softmax_loss(
    states: Tensor, items: Tensor, true_rows: Tensor, sampled: Tensor, log_expected: Tensor
) -> Tensor:
    """Cross-entropy of the true item against a sample of S rows, shared by the batch.

    `sampled` (S,) rows; `log_expected` (S,) the log of the expected number of each in the sample. It is subtracted from
    the logit, so that the sum of exponentials over the sample is an unbiased estimate of the sum over all items. A true
    item that is in the sample counts once.
    """
    with _fast_products(states.device):
        logits = states @ items[sampled].T
    others = (logits.float() - log_expected).masked_fill(sampled == true_rows[:, None], -torch.inf)
    own = (states * items[true_rows]).sum(dim=1, keepdim=True)
    return functional.cross_entropy(torch.cat([own, others], dim=1), torch.zeros_like(true_rows))


def _fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 for the products with all items, which are most of the work, where the machine is faster with bf16."""
    is_fast = device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(device.type, dtype=torch.bfloat16) if is_fast else nullcontext()


@torch.inference_mode()
def sasrec_scores(
    network: SasrecNetwork, split: Split, targets: Sequence[Target], max_length: int
) -> NDArray[np.float32]:
    """(targets, N). Each target needs at least one earlier event."""
    network.eval()
    table = network.items.table()
    device = table.device
    scores = np.empty((len(targets), len(table)), dtype=np.float32)
    for start in range(0, len(targets), _BATCH):
        batch = targets[start : start + _BATCH]
        histories = [torch.from_numpy(past_items(split, target)[-max_length:]) for target in batch]
        padded = nn.utils.rnn.pad_sequence(histories, batch_first=True).long().to(device)
        last = torch.tensor([len(history) - 1 for history in histories], device=device)
        states = network(padded)[torch.arange(len(last), device=device), last]
        scores[start : start + len(histories)] = (states @ table.T).cpu().numpy()
    return scores
