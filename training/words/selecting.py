"""Trains the selector of memories: a supervised warm-up, then GRPO on its choices.

Warm-up: KL to softmax(gain / τ) of the gains in reward that each entry alone gives, with gain 0 for the null choice.
GRPO (Shao et al. 2024): for each query `GROUP` choices are drawn from the Plackett–Luce model of the logits, each of at
most three entries, ended by null; the advantage of a choice is its reward against the group's, in standard deviations.
One update per batch, so the ratio to the old policy is one; no penalty. Groups with equal rewards teach nothing.
Early end by the mean reward of the most probable choices on other users.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store.words.selector import MAX_CHOSEN, SELECTOR_FEATURES, Selector
from training.run.stage import progress
from training.words.rewards import Rewards

GROUP = 8
TEMPERATURE = 0.02  # of the gains
WIDTH = 32
BATCH, LEAST_STEPS = 64, 20  # queries of a step; steps of an epoch, with smaller batches for few queries
LEAST_TASKS = 20
WARM_UP_EPOCHS, GRPO_EPOCHS, PATIENCE = 60, 60, 10
WARM_UP_RATE, GRPO_RATE = 3e-3, 1e-3
_OUT = -1e9


class Task(NamedTuple):
    """A query with a pool: its features (1 + n, S), and the rewards of choices."""

    inputs: NDArray[np.float32]
    rewards: Rewards


class Settings(NamedTuple):
    name: str
    epochs: int
    rate: float
    seed: int


class Trained(NamedTuple):
    selector: Selector
    facts: dict[str, Any]


def warm_up(teach: Sequence[Task], choose: Sequence[Task], seed: int = 0) -> Trained:
    """A selector trained by KL. Where fewer than `LEAST_TASKS` teach or none chooses, one that chooses no memory."""
    if len(teach) < LEAST_TASKS or not choose:
        return Trained(_no_memory(), {"epoch": 0})
    torch.manual_seed(seed)
    network = _network()
    inputs, mask = _padded(teach)
    gains = torch.full(mask.shape, _OUT)
    for row, task in enumerate(progress(teach, desc="gains of memories", unit="query")):
        gains[row, : len(task.inputs)] = torch.tensor([0.0, *task.rewards.gains()], dtype=torch.float32) / TEMPERATURE
    labels = torch.softmax(gains, dim=1)

    def loss_of(places: Tensor) -> Tensor:
        logs = torch.log_softmax(_logits(network, inputs[places], mask[places]), dim=1)
        return -(labels[places] * logs).sum(dim=1).mean()

    return _train(network, loss_of, len(teach), choose, Settings("warm-up", WARM_UP_EPOCHS, WARM_UP_RATE, seed))


def grpo(start: Selector, teach: Sequence[Task], choose: Sequence[Task], seed: int = 0) -> Trained:
    """The selector after GRPO. `tied`: the share of groups with equal rewards. Few queries teach nothing."""
    if len(teach) < LEAST_TASKS or not choose:
        return Trained(start, {"epoch": 0})
    torch.manual_seed(seed)
    network = _network(start)
    inputs, mask = _padded(teach)
    tied: list[float] = []

    def loss_of(places: Tensor) -> Tensor:
        logits = _logits(network, inputs[places], mask[places])
        drawn, logs = draw(logits, GROUP)
        choices = zip(places.tolist(), drawn.tolist(), strict=True)
        rewards = torch.tensor(
            [[teach[place].rewards.reward(_entries(choice)) for choice in group] for place, group in choices]
        )
        spread = rewards.std(dim=1, keepdim=True)
        differs = spread > 1e-6
        tied.append(1 - float(differs.float().mean()))
        advantage = torch.where(differs, (rewards - rewards.mean(dim=1, keepdim=True)) / (spread + 1e-6), 0.0)
        return -(advantage * logs).mean()

    trained = _train(network, loss_of, len(teach), choose, Settings("GRPO", GRPO_EPOCHS, GRPO_RATE, seed))
    return Trained(trained.selector, trained.facts | {"tied": round(float(np.mean(tied)), 4) if tied else None})


def draw(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choices (B, count, MAX_CHOSEN) of columns of `logits` (B, n), 0 from the null choice on, and their log p.

    Plackett–Luce without replacement, by Gumbel noise: the order of noisy logits is a draw.
    """
    noise = -torch.log(-torch.log(torch.rand(len(logits), count, logits.shape[1]).clamp(1e-12, 1 - 1e-7)))
    length = min(MAX_CHOSEN, logits.shape[1])
    order = (logits.detach()[:, None, :] + noise).topk(length, dim=2).indices
    before_end = (order == 0).cumsum(dim=2) - (order == 0).long() == 0  # up to the null choice, included
    left = logits[:, None, :].expand(-1, count, -1)
    logs = torch.zeros(len(logits), count)
    for step in range(length):
        picked = order[:, :, step : step + 1]
        logs = logs + before_end[:, :, step] * torch.log_softmax(left, dim=2).gather(2, picked).squeeze(2)
        left = left.scatter(2, picked, _OUT)
    return torch.where(before_end, order, 0), logs


def mean_reward(selector: Selector, tasks: Sequence[Task]) -> NDArray[np.float64]:
    """(tasks,) the reward of the most probable choice."""
    return np.array([task.rewards.reward(selector.choose(task.inputs)) for task in tasks])


def _entries(choice: Sequence[int]) -> list[int]:
    """Places in the pool of a drawn choice; column 0 is null."""
    return [column - 1 for column in choice if column]


def _train(
    network: nn.Sequential,
    loss_of: Callable[[Tensor], Tensor],
    count: int,
    choose: Sequence[Task],
    settings: Settings,
) -> Trained:
    """Keeps the epoch with the best mean reward on `choose`; epoch 0 is the start."""
    optimizer, rng = torch.optim.Adam(network.parameters(), lr=settings.rate), np.random.default_rng(settings.seed)
    best, found, kept = 0, [float(mean_reward(_selector(network), choose).mean())], copy.deepcopy(network)
    for epoch in progress(range(1, settings.epochs + 1), desc=settings.name, unit="epoch"):
        for places in np.array_split(rng.permutation(count), min(count, max(LEAST_STEPS, count // BATCH))):
            optimizer.zero_grad()
            loss_of(torch.from_numpy(places)).backward()
            optimizer.step()
        found.append(float(mean_reward(_selector(network), choose).mean()))
        if found[-1] > found[best]:
            best, kept = epoch, copy.deepcopy(network)
        elif epoch - best >= PATIENCE:
            break
    facts = {"epoch": best, "reward_before": round(found[0], 5), "reward": round(found[best], 5)}
    return Trained(_selector(kept), facts)


def _network(start: Selector | None = None) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(len(SELECTOR_FEATURES), WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    if start is not None:
        for layer, (weight, bias) in zip(_layers(network), start.layers, strict=True):
            layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return network


def _layers(network: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in network if isinstance(layer, nn.Linear)]


def _selector(network: nn.Sequential) -> Selector:
    pairs = ((layer.weight, layer.bias) for layer in _layers(network))
    return Selector(tuple((weight.detach().numpy().copy(), bias.detach().numpy().copy()) for weight, bias in pairs))


def _no_memory() -> Selector:
    """Null has a larger logit than every entry."""
    network = _network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for layer in _layers(network):
            layer.weight[0, 0] = 1
    return _selector(network)


def _padded(tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
    """(B, n, S) features and (B, n) whether an entry is there."""
    longest = max(len(task.inputs) for task in tasks)
    inputs = torch.zeros(len(tasks), longest, len(SELECTOR_FEATURES))
    mask = torch.zeros(len(tasks), longest, dtype=torch.bool)
    for row, task in enumerate(tasks):
        inputs[row, : len(task.inputs)] = torch.from_numpy(task.inputs)
        mask[row, : len(task.inputs)] = True
    return inputs, mask


def _logits(network: nn.Sequential, inputs: Tensor, mask: Tensor) -> Tensor:
    return network(inputs).squeeze(2).masked_fill(~mask, _OUT)
