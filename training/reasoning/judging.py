"""Rewards of thoughts about many situations: of the most probable ones, and of drawn ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.reasoner.policy import Policy, Thought
from training.reasoning.situations import Reward, Situation
from training.run.metrics import paired_bootstrap
from training.run.stage import progress

_ROWS = 16  # dialogues side by side


class Sample(NamedTuple):
    """The thoughts about one situation, and their rewards."""

    situation: Situation
    thoughts: list[Thought]
    rewards: list[float]

    @property
    def best(self) -> Thought:
        return self.thoughts[int(np.argmax(self.rewards))]

    @property
    def has_better(self) -> bool:
        """Whether a thought was better than the mean of its group."""
        return max(self.rewards) > float(np.mean(self.rewards)) + 1e-6


def most_probable(policy: Policy, situations: Sequence[Situation], reward: Reward, desc: str) -> list[Sample]:
    """One thought about each."""
    return _samples(policy, situations, reward, desc=desc, times=1, generator=None)


def drawn(
    policy: Policy, situations: Sequence[Situation], reward: Reward, desc: str, *, times: int, seed: int
) -> list[Sample]:
    """`times` thoughts about each."""
    generator = torch.Generator().manual_seed(seed)
    return _samples(policy, situations, reward, desc=desc, times=times, generator=generator)


def _samples(
    policy: Policy,
    situations: Sequence[Situation],
    reward: Reward,
    *,
    desc: str,
    times: int,
    generator: torch.Generator | None,
) -> list[Sample]:
    found = []
    count = max(_ROWS // times, 1)
    for start in progress(range(0, len(situations), count), desc=desc, unit="batch"):
        part = situations[start : start + count]
        thoughts = think(policy, part, times, generator)
        for number, situation in enumerate(part):
            own = thoughts[number * times : (number + 1) * times]
            found.append(Sample(situation, own, [rewarded(situation, thought, reward) for thought in own]))
    return found


def think(
    policy: Policy, situations: Sequence[Situation], times: int, generator: torch.Generator | None
) -> list[Thought]:
    """`times` thoughts about each, side by side."""
    return policy.think(
        [situation.target.query for situation in situations],
        [situation.names for situation in situations],
        lambda row, need: situations[row // times].texts(need),
        times=times,
        generator=generator,
    )


def rewarded(situation: Situation, thought: Thought, reward: Reward) -> float:
    parts = reward.parts(situation, thought.need, thought.used, thought.ideal, is_ended=thought.is_ended)
    return sum(parts.values())


def first_rewards(samples: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array([sample.rewards[0] for sample in samples])


def gain(before: Sequence[Sample], after: Sequence[Sample]) -> dict[str, Any]:
    """Mean rewards of the most probable thoughts, and the paired difference with its 95 % interval by user."""
    users = np.array([sample.situation.target.user for sample in before])
    found = paired_bootstrap({"before": first_rewards(before), "after": first_rewards(after)}, users)
    return {
        "reward": [round(value, 5) for value in found.means.values()],
        "gain": [round(value, 5) for value in found.difference("after", "before")],
    }


def spread(samples: Sequence[Sample]) -> dict[str, float]:
    """What drawing tells before reinforcement learning: tied groups teach nothing, the best of a group bounds it."""
    rewards = np.array([sample.rewards for sample in samples])
    return {
        "mean": round(float(rewards.mean()), 5),
        "best": round(float(rewards.max(axis=1).mean()), 5),
        "best_over_mean": round(float(rewards.max(axis=1).mean() / rewards.mean() - 1), 5),
        "tied": round(float((np.ptp(rewards, axis=1) < 1e-6).mean()), 5),
    }
