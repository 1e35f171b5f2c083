"""SASRec (Kang and McAuley, ICDM 2018), trained until the valid period shows no more gain.

In: a split. Out: `sasrec.safetensors` and a scorer. Three variants:

`bce`     the published one: binary cross-entropy against one sampled item for each position
`strong`  a softmax over all items, or over a sample of them where there are many (Klenitskiy and Vasilev, RecSys 2023;
          the sample is corrected by log Q, Bengio and Senécal 2008), attention with a recency bias, and item embeddings
          that start from co-occurrence: minutes on a CPU are too short to learn recency and embeddings from nothing
`titles`  `strong`, with a linear map of each title's features added to its item's vector. Items without an event in the
          train period are left out of the softmax: their titles give them a place, and as constant negatives they would
          lose it

The published variant alone would be a weak competitor. All are trained on the train period of all users. Three things
are chosen by NDCG@10 on the valid period: the step to stop at, the dropout (with seed 0, then used for all seeds), and
whether items that the user had rank behind all others, as in the paper's evaluation. The seed decides the first
weights, the batches, the negatives and the dropout.

Training has two parts. In the first, the learning rate hardly falls, and early stopping ends it; the certificate says
`stopped_early: false` where the limit of steps did, so that more training may help. The second takes a twentieth as
many steps at a rate that falls from a third; its result is kept unless it is worse.

In the first two variants, an item without an event in the train period was only ever a negative, so it ranks low;
models of item ids cannot do better. Positions count from the start of the window; in the paper they count from its end.
So batches need no padding on the left, and the last place of a full window, which is used for scoring, is also trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.data.splits import Split, Target, sample_targets
from training.items.co_occurrence import co_occurrence_vectors
from training.items.item_knn import at_grid_end
from training.items.scoring import Scorer, ndcg_at_10, seen_last, true_items
from training.items.title_features import title_vectors
from training.rows.sasrec_batches import SasrecBatches
from training.rows.sasrec_network import (
    INITIAL_SPREAD,
    SasrecNetwork,
    SasrecSettings,
    binary_loss,
    sampled_softmax_loss,
    sasrec_scores,
    softmax_loss,
)
from training.run.device import seed_everything
from training.run.inputs import fingerprint
from training.run.loop import Progress, Schedule, fit
from training.run.stage import atomic_file, begin, digest, finish, is_done, read_certificate

_VERSION = 2  # of the training; 2: to convergence, and seeds decide dropout and negatives
_WEIGHTS = "sasrec.safetensors"
_CHOOSING_SEED = 0  # the seed that chooses the dropout
_FALLING_SHARE = 20  # the second part takes this part of the first one's limit of steps


def new_network(num_items: int, variant: str, settings: SasrecSettings, dropout: float) -> SasrecNetwork:
    """With random weights. `variant` is bce, strong or titles."""
    return SasrecNetwork(
        num_items, settings, dropout, is_recency_biased=variant != "bce", reads_titles=variant == "titles"
    )


@dataclass(frozen=True)
class ItemStart:
    """What is known of the items before training. None: nothing is."""

    vectors: Tensor | None = None  # (N, D) first item vectors; rows of zeros where an item has none
    titles: Tensor | None = None  # (N, F) features of titles, of the variant `titles`


def item_start(split: Split, variant: str, settings: SasrecSettings, seed: int) -> ItemStart:
    """Co-occurrence vectors with the spread of random embeddings, and the features of titles."""
    if variant == "bce":
        return ItemStart()
    vectors = torch.from_numpy(co_occurrence_vectors(split, settings.width, seed=seed))
    vectors *= INITIAL_SPREAD * settings.width**0.5
    if variant == "strong":
        return ItemStart(vectors)
    return ItemStart(vectors, torch.from_numpy(title_vectors(split, settings.title_width, seed=seed)))


class Training(NamedTuple):
    """How a training went."""

    steps: int
    epochs: float
    stopped_early: bool  # False: the limit of steps ended it


class SasrecTrainer:
    """Trains one network with one dropout."""

    def __init__(
        self,
        split: Split,
        variant: str,
        settings: SasrecSettings,
        *,
        dropout: float,
        seed: int,
        device: torch.device,
        start: ItemStart | None = None,
    ) -> None:
        seed_everything(seed)
        self.network = new_network(len(split.item_ids), variant, settings, dropout)
        is_trained = torch.from_numpy(split.popularity > 0)
        _start_from(start or ItemStart(), is_trained, self.network)
        self.network.to(device)
        self._variant, self._settings, self._seed, self._device = variant, settings, seed, device
        self._batches = SasrecBatches(
            split, max_length=settings.max_length, batch_tokens=settings.batch_tokens, seed=seed
        )
        self._split = split
        self._valid = sample_targets(split.valid, settings.valid_targets, seed)
        self._left_out = ~is_trained.to(device) if variant == "titles" else None
        self._proposal = _proposal(split, is_trained if variant == "titles" else None).to(device, torch.float32)

    def loss_at(self, step: int) -> Tensor:
        """Draws negatives and dropout from torch's generator, which `fit` seeds for each step."""
        self.network.train()
        items, following, mask = (tensor.to(self._device) for tensor in self._batches(step))
        states, true_rows = self.network(items)[mask], following[mask]
        table = self.network.items.table()
        if self._variant == "bce":
            negatives = torch.randint(len(table), following.shape, device=self._device)
            windows = torch.cat([items, following[:, -1:]], dim=1)
            is_new = (negatives[:, :, None] != windows[:, None]).all(dim=2)
            return binary_loss(states, table, true_rows, negatives[mask], is_new[mask])
        if len(table) <= self._settings.max_softmax_items:
            return softmax_loss(states, table, true_rows, self._left_out)
        count = self._settings.num_negatives
        sampled = torch.multinomial(self._proposal, count, replacement=True)
        return sampled_softmax_loss(states, table, true_rows, sampled, (count * self._proposal[sampled]).log())

    def quality(self) -> tuple[float, float]:
        """NDCG@10 on a sample of the valid period: with items ranked by score, and with seen items ranked last."""
        scores = sasrec_scores(self.network, self._split, self._valid, self._settings.max_length)
        true_rows, masked = true_items(self._split, self._valid), seen_last(scores, self._split, self._valid)
        return float(ndcg_at_10(scores, true_rows).mean()), float(ndcg_at_10(masked, true_rows).mean())

    def validate(self) -> float:
        """A loss: minus the better NDCG@10 of the two rankings."""
        return -max(self.quality())

    def fit(self, checkpoints: Path) -> Training:
        """Sets the network to the best weights of both parts."""
        schedule = self._settings.schedule
        # At least an epoch between two validations, or patience would end before all data was seen again.
        schedule = replace(schedule, evaluate_every=max(schedule.evaluate_every, self._batches.num_batches))
        main = self._fit(schedule, checkpoints / "main", first_step=0)
        best = {name: each.detach().clone() for name, each in self.network.state_dict().items()}
        falling = self._fit(_falling(schedule), checkpoints / "falling", first_step=main.step)
        if falling.best_loss > main.best_loss:
            self.network.load_state_dict(best)
        steps = main.step + falling.step
        return Training(steps, steps / self._batches.num_batches, main.num_bad >= schedule.patience)

    def _fit(self, schedule: Schedule, checkpoints: Path, *, first_step: int) -> Progress:
        return fit(
            dict(self.network.named_parameters()),
            lambda step: self.loss_at(first_step + step),
            self.validate,
            schedule,
            checkpoints=checkpoints,
            label=f"sasrec {self._variant} dropout={self.network.dropout.p}",
            seed=self._seed,
        )


def _falling(schedule: Schedule) -> Schedule:
    steps = max(1, schedule.max_steps // _FALLING_SHARE)
    return replace(schedule, max_steps=steps, learning_rate=schedule.learning_rate / 3, warmup_steps=0)


def _proposal(split: Split, is_candidate: Tensor | None) -> Tensor:
    """(N,) the probability of each item as a negative.

    Half by popularity, because popular items are hard to rank below the true one, and half uniform, so that rare items
    are negatives too. With `is_candidate` (N,), only these.
    """
    share = torch.from_numpy(split.popularity / max(1, split.popularity.sum()))
    candidates = torch.ones_like(share) if is_candidate is None else is_candidate.to(share.dtype)
    return 0.5 * share + 0.5 * candidates / candidates.sum()


@torch.no_grad()
def _start_from(start: ItemStart, is_trained: Tensor, network: SasrecNetwork) -> None:
    """Items without a first vector stay random."""
    weight = network.items.embedding.weight
    if start.vectors is not None:
        is_known = start.vectors.norm(dim=1, keepdim=True) > 0
        weight.copy_(torch.where(is_known, start.vectors, weight))
    if start.titles is not None:
        network.items.features.copy_(start.titles)
        network.items.is_trained.copy_(is_trained[:, None])


class _Trial(NamedTuple):
    """A network trained with one dropout."""

    weights: dict[str, Tensor]
    training: Training
    seen_kept: float  # NDCG@10 on valid targets
    seen_last: float

    @property
    def quality(self) -> float:
        return max(self.seen_kept, self.seen_last)


def fit_sasrec(
    split: Split,
    variant: str,
    *,
    seed: int,
    directory: Path,
    device: torch.device,
    settings: SasrecSettings | None = None,
) -> Scorer:
    """Trains a model, or loads it where `directory` holds one of the same inputs; an interrupted run is resumed.

    `variant` is bce, strong or titles. A directory holds the models of all seeds; another seed than 0 first needs that
    of seed 0.
    """
    settings = settings or SasrecSettings()
    facts = _trained(split, variant, settings, seed=seed, directory=directory, device=device)
    network = new_network(len(split.item_ids), variant, settings, float(facts["settings"]["dropout"]))
    network.load_state_dict(load_file(_folder(directory, seed) / _WEIGHTS))
    network.to(device)

    def scorer(targets: Sequence[Target]) -> NDArray[np.float32]:
        scores = sasrec_scores(network, split, targets, settings.max_length)
        return scores if facts["keep_seen"] else seen_last(scores, split, targets)

    return scorer


def _folder(directory: Path, seed: int) -> Path:
    return directory / f"seed-{seed}"


def _trained(
    split: Split, variant: str, settings: SasrecSettings, *, seed: int, directory: Path, device: torch.device
) -> dict[str, Any]:
    """Trains the model of one seed where it is missing. Returns its certificate."""
    if seed != _CHOOSING_SEED:
        first = _trained(split, variant, settings, seed=_CHOOSING_SEED, directory=directory, device=device)
        settings = replace(settings, dropouts=(float(first["settings"]["dropout"]),))
    folder, inputs = _folder(directory, seed), digest([_VERSION, fingerprint(split), variant, settings, seed])
    if not is_done(folder, inputs):
        begin(folder)
        _train(split, variant, settings, seed=seed, directory=folder, device=device, inputs=inputs)
    return read_certificate(folder)


def _train(
    split: Split,
    variant: str,
    settings: SasrecSettings,
    *,
    seed: int,
    directory: Path,
    device: torch.device,
    inputs: str,
) -> None:
    """Trains one network for each dropout, and writes the one with the best NDCG@10 on the valid period."""
    trials: dict[float, _Trial] = {}
    start = item_start(split, variant, settings, seed)
    for dropout in settings.dropouts:
        trainer = SasrecTrainer(split, variant, settings, dropout=dropout, seed=seed, device=device, start=start)
        training = trainer.fit(directory / f"checkpoints-{inputs}-{dropout}")
        weights = {name: each.cpu() for name, each in trainer.network.state_dict().items()}
        trials[dropout] = _Trial(weights, training, *trainer.quality())
    dropout, best = max(trials.items(), key=lambda pair: pair[1].quality)
    with atomic_file(directory / _WEIGHTS) as draft:
        save_file(best.weights, draft)
    facts = {
        "variant": variant,
        "settings": {"dropout": dropout},
        "at_grid_end": at_grid_end({"dropout": dropout}, {"dropout": settings.dropouts}),
        "steps": best.training.steps,
        "epochs": round(best.training.epochs, 1),
        "stopped_early": best.training.stopped_early,
        "keep_seen": best.seen_kept >= best.seen_last,
        "valid_ndcg@10": round(best.quality, 4),
        "valid_ndcg@10_by_dropout": {str(each): round(trial.quality, 4) for each, trial in trials.items()},
    }
    finish(directory, inputs, facts)
