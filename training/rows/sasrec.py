"""SASRec (Kang and McAuley, ICDM 2018): causal self-attention over item ids, with tied item embeddings.

In: a split. Out: `sasrec.safetensors` and a scorer. Two variants:

`bce`     the published one: binary cross-entropy against one sampled item for each position
`strong`  a softmax over all items, or over a sample of them where there are many (Klenitskiy and Vasilev, RecSys 2023;
          the sample is corrected by log Q, Bengio and Senécal 2008), attention with a recency bias, and item embeddings
          that start from co-occurrence: minutes on a CPU are too short to learn recency and embeddings from nothing

The published variant alone would be a weak competitor. Both are trained on the train period of all users. Three things
are chosen by NDCG@10 on the valid period: the step to stop at, the dropout (with seed 0, then used for all seeds), and
whether items that the user had rank behind all others, as in the paper's evaluation.

An item without an event in the train period was only ever a negative, so it ranks low; models of item ids cannot do
better. Positions count from the start of the window; in the paper they count from its end. So batches need no padding
on the left, and the last place of a full window, which is used for scoring, is also trained.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from training.data.splits import Split, Target, sample_targets
from training.items.co_occurrence import co_occurrence_vectors
from training.items.scoring import MAX_HISTORY, Scorer, ndcg_at_10, past_items, seen_last, true_items
from training.rows.sasrec_batches import SasrecBatches
from training.run.device import seed_everything
from training.run.inputs import fingerprint
from training.run.loop import Progress, Schedule, fit
from training.run.stage import atomic_file, begin, digest, finish, is_done, read_certificate

_WEIGHTS = "sasrec.safetensors"
_INITIAL_SPREAD = 0.02
_BATCH = 128  # targets scored at a time
_CHOOSING_SEED = 0  # the seed that chooses the dropout


@dataclass(frozen=True)
class SasrecSettings:
    width: int = 128  # D
    num_layers: int = 2
    num_heads: int = 4
    max_length: int = MAX_HISTORY
    dropouts: tuple[float, ...] = (0.1, 0.3)  # tried with seed 0; the best on the valid period is used for all seeds
    batch_tokens: int = 1024
    max_softmax_items: int = 8192  # with more items the softmax is over a sample of `num_negatives`
    num_negatives: int = 2048
    valid_targets: int = 1000
    schedule: Schedule = field(
        default_factory=lambda: Schedule(max_steps=2500, learning_rate=3e-3, evaluate_every=250, patience=3)
    )


class SasrecNetwork(nn.Module):
    bias: Tensor  # (1, heads, T, T)

    def __init__(self, num_items: int, settings: SasrecSettings, dropout: float, *, is_recency_biased: bool) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items, settings.width)
        self.positions = nn.Embedding(settings.max_length, settings.width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            _Block(settings.width, settings.num_heads, dropout) for _ in range(settings.num_layers)
        )
        self.register_buffer("bias", recency_bias(settings, is_recency_biased), persistent=False)
        self.norm = nn.LayerNorm(settings.width)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=_INITIAL_SPREAD)

    def forward(self, items: Tensor) -> Tensor:
        """(B, T) int64 → states (B, T, D); the state of a place predicts the item after it. Padding is on the right."""
        scale = self.items.embedding_dim**0.5
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


def softmax_loss(states: Tensor, items: Tensor, true_rows: Tensor) -> Tensor:
    """Cross-entropy over all items. `states` (P, D), `items` (N, D), `true_rows` (P,)."""
    with _fast_products(states.device):
        logits = states @ items.T
    return functional.cross_entropy(logits.float(), true_rows)


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


class SasrecTrainer:
    """Trains one network with one dropout. `start` (N, D) are the first item embeddings; None starts at random."""

    def __init__(
        self,
        split: Split,
        loss: str,
        settings: SasrecSettings,
        *,
        dropout: float,
        seed: int,
        device: torch.device,
        start: Tensor | None = None,
    ) -> None:
        seed_everything(seed)
        self.network = SasrecNetwork(len(split.item_ids), settings, dropout, is_recency_biased=loss == "strong")
        if start is not None:
            _start_from(start, self.network.items.weight)
        self.network.to(device)
        self._loss, self._settings, self._device = loss, settings, device
        self._batches = SasrecBatches(
            split, max_length=settings.max_length, batch_tokens=settings.batch_tokens, seed=seed
        )
        self._split = split
        self._valid = sample_targets(split.valid, settings.valid_targets, seed)
        # Negatives: half by popularity, because popular items are hard to rank below the true one, and half uniform, so
        # that rare items are negatives too.
        share = split.popularity / max(1, split.popularity.sum())
        self._proposal = torch.from_numpy(0.5 * share + 0.5 / len(share)).to(device, torch.float32)

    def loss_at(self, step: int) -> Tensor:
        self.network.train()
        items, following, mask = (tensor.to(self._device) for tensor in self._batches(step))
        states, true_rows = self.network(items)[mask], following[mask]
        weight = self.network.items.weight
        if self._loss == "bce":
            negatives = torch.randint(len(weight), following.shape, device=self._device)
            windows = torch.cat([items, following[:, -1:]], dim=1)
            is_new = (negatives[:, :, None] != windows[:, None]).all(dim=2)
            return binary_loss(states, weight, true_rows, negatives[mask], is_new[mask])
        if len(weight) <= self._settings.max_softmax_items:
            return softmax_loss(states, weight, true_rows)
        count = self._settings.num_negatives
        sampled = torch.multinomial(self._proposal, count, replacement=True)
        return sampled_softmax_loss(states, weight, true_rows, sampled, (count * self._proposal[sampled]).log())

    def quality(self) -> tuple[float, float]:
        """NDCG@10 on a sample of the valid period: with items ranked by score, and with seen items ranked last."""
        scores = sasrec_scores(self.network, self._split, self._valid, self._settings.max_length)
        true_rows, masked = true_items(self._split, self._valid), seen_last(scores, self._split, self._valid)
        return float(ndcg_at_10(scores, true_rows).mean()), float(ndcg_at_10(masked, true_rows).mean())

    def validate(self) -> float:
        """A loss: minus the better NDCG@10 of the two rankings."""
        return -max(self.quality())

    def fit(self, checkpoints: Path) -> Progress:
        label = f"sasrec {self._loss} dropout={self.network.dropout.p}"
        parameters = dict(self.network.named_parameters())
        return fit(
            parameters, self.loss_at, self.validate, self._settings.schedule, checkpoints=checkpoints, label=label
        )


@torch.inference_mode()
def sasrec_scores(
    network: SasrecNetwork, split: Split, targets: Sequence[Target], max_length: int
) -> NDArray[np.float32]:
    """(targets, N). Each target needs at least one earlier event."""
    network.eval()
    device = network.items.weight.device
    scores = np.empty((len(targets), len(network.items.weight)), dtype=np.float32)
    for start in range(0, len(targets), _BATCH):
        batch = targets[start : start + _BATCH]
        histories = [torch.from_numpy(past_items(split, target)[-max_length:]) for target in batch]
        padded = nn.utils.rnn.pad_sequence(histories, batch_first=True).long().to(device)
        last = torch.tensor([len(history) - 1 for history in histories], device=device)
        states = network(padded)[torch.arange(len(last), device=device), last]
        scores[start : start + len(histories)] = (states @ network.items.weight.T).cpu().numpy()
    return scores


def _co_occurrence_start(split: Split, settings: SasrecSettings, seed: int) -> Tensor:
    """(N, D) co-occurrence vectors with the spread of random embeddings; zeros for items without co-occurrence."""
    vectors = torch.from_numpy(co_occurrence_vectors(split, settings.width, seed=seed))
    return vectors * _INITIAL_SPREAD * settings.width**0.5


@torch.no_grad()
def _start_from(start: Tensor, weight: Tensor) -> None:
    is_known = start.norm(dim=1, keepdim=True) > 0  # the other embeddings stay random
    weight.copy_(torch.where(is_known, start, weight))


class _Trial(NamedTuple):
    """A network trained with one dropout."""

    weights: dict[str, Tensor]
    steps: int
    seen_kept: float  # NDCG@10 on valid targets
    seen_last: float

    @property
    def quality(self) -> float:
        return max(self.seen_kept, self.seen_last)


def fit_sasrec(
    split: Split,
    loss: str,
    *,
    seed: int,
    directory: Path,
    device: torch.device,
    settings: SasrecSettings | None = None,
) -> Scorer:
    """Trains a model, or loads it where `directory` holds one of the same inputs; an interrupted run is resumed.

    `loss` is bce or strong. A directory holds the models of all seeds; another seed than 0 first needs that of seed 0.
    """
    settings = settings or SasrecSettings()
    facts = _trained(split, loss, settings, seed=seed, directory=directory, device=device)
    network = SasrecNetwork(len(split.item_ids), settings, float(facts["dropout"]), is_recency_biased=loss == "strong")
    network.load_state_dict(load_file(_folder(directory, seed) / _WEIGHTS))
    network.to(device)

    def scorer(targets: Sequence[Target]) -> NDArray[np.float32]:
        scores = sasrec_scores(network, split, targets, settings.max_length)
        return scores if facts["keep_seen"] else seen_last(scores, split, targets)

    return scorer


def _folder(directory: Path, seed: int) -> Path:
    return directory / f"seed-{seed}"


def _trained(
    split: Split, loss: str, settings: SasrecSettings, *, seed: int, directory: Path, device: torch.device
) -> dict[str, Any]:
    """Trains the model of one seed where it is missing. Returns its certificate."""
    if seed != _CHOOSING_SEED:
        first = _trained(split, loss, settings, seed=_CHOOSING_SEED, directory=directory, device=device)
        settings = replace(settings, dropouts=(float(first["dropout"]),))
    folder, inputs = _folder(directory, seed), digest([fingerprint(split), loss, settings, seed])
    if not is_done(folder, inputs):
        begin(folder)
        _train(split, loss, settings, seed=seed, directory=folder, device=device, inputs=inputs)
    return read_certificate(folder)


def _train(
    split: Split, loss: str, settings: SasrecSettings, *, seed: int, directory: Path, device: torch.device, inputs: str
) -> None:
    """Trains one network for each dropout, and writes the one with the best NDCG@10 on the valid period."""
    trials: dict[float, _Trial] = {}
    start = _co_occurrence_start(split, settings, seed) if loss == "strong" else None
    for dropout in settings.dropouts:
        trainer = SasrecTrainer(split, loss, settings, dropout=dropout, seed=seed, device=device, start=start)
        state = trainer.fit(directory / f"checkpoints-{inputs}-{dropout}")
        weights = {name: each.cpu() for name, each in trainer.network.state_dict().items()}
        trials[dropout] = _Trial(weights, state.best_step, *trainer.quality())
    dropout, best = max(trials.items(), key=lambda pair: pair[1].quality)
    with atomic_file(directory / _WEIGHTS) as draft:
        save_file(best.weights, draft)
    facts = {
        "loss": loss,
        "dropout": dropout,
        "steps": best.steps,
        "keep_seen": best.seen_kept >= best.seen_last,
        "valid_ndcg@10": round(best.quality, 4),
        "valid_ndcg@10_by_dropout": {str(each): round(trial.quality, 4) for each, trial in trials.items()},
    }
    finish(directory, inputs, facts)
