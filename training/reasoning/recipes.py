"""Settings of `training.reason`, by name.

`demo`     supervised learning only, in minutes
`small`    SmolLM2 on two cores in less than an hour
`tiny`     a few steps, for tests
"""

from dataclasses import dataclass
from typing import NamedTuple

from training.run.loop import Schedule
from training.run.recipes import chosen

GROUP = 8  # rollouts that GRPO compares with each other


class TuningSettings(NamedTuple):
    """`batch`: dialogues of a step. LoRA of this rank in the `top_layers`."""

    batch: int
    rank: int
    top_layers: int
    seed: int


class GrpoSettings(NamedTuple):
    """`groups` of `GROUP` rollouts in each step."""

    steps: int
    groups: int
    rate: float
    seed: int


@dataclass(frozen=True)
class ReasonRecipe:
    """`teach`, `explore`, `choose`, `judge`: at most so many situations of valid users with this role.

    `teach` are for supervised learning, `explore` for reinforcement learning: other situations of the same users, whose
    dialogues the model has not learned. `draw_situations` of `explore`
    are drawn `draws` times each; the best thoughts of these groups teach `raft`. With 0, there is no reinforcement
    learning. `fit`: situations of teachers whose most probable thoughts fit the weights of the ranking.
    """

    teach: int
    explore: int
    choose: int
    judge: int
    headroom: int
    draw_situations: int
    draws: int
    fit: int
    tuning: TuningSettings
    warm_up: Schedule
    raft: Schedule
    grpo: GrpoSettings


RECIPES = {
    "demo": ReasonRecipe(
        teach=320,
        explore=0,
        choose=30,
        judge=40,
        headroom=0,
        draw_situations=0,
        draws=4,
        fit=60,
        tuning=TuningSettings(batch=8, rank=16, top_layers=12, seed=0),
        warm_up=Schedule(max_steps=40, learning_rate=1e-3, warmup_steps=5, evaluate_every=40),
        raft=Schedule(max_steps=0, learning_rate=3e-4),
        grpo=GrpoSettings(steps=0, groups=1, rate=1e-4, seed=0),
    ),
    "small": ReasonRecipe(
        teach=96,
        explore=256,
        choose=60,
        judge=160,
        headroom=96,
        draw_situations=24,
        draws=4,
        fit=150,
        tuning=TuningSettings(batch=8, rank=16, top_layers=12, seed=0),
        # Short: it teaches the form of a dialogue, and leaves the choices to reinforcement learning.
        warm_up=Schedule(max_steps=8, learning_rate=1e-3, warmup_steps=2, evaluate_every=8),
        raft=Schedule(max_steps=4, learning_rate=3e-4, warmup_steps=1, evaluate_every=4),
        grpo=GrpoSettings(steps=60, groups=1, rate=3e-4, seed=0),
    ),
    "tiny": ReasonRecipe(
        teach=16,
        explore=8,
        choose=8,
        judge=8,
        headroom=4,
        draw_situations=4,
        draws=4,
        fit=24,
        tuning=TuningSettings(batch=4, rank=4, top_layers=2, seed=0),
        warm_up=Schedule(max_steps=4, learning_rate=1e-3, warmup_steps=1, evaluate_every=2),
        raft=Schedule(max_steps=2, learning_rate=1e-3, warmup_steps=1, evaluate_every=2),
        grpo=GrpoSettings(steps=2, groups=1, rate=1e-3, seed=0),
    ),
}


def reason_recipe(name: str) -> ReasonRecipe:
    """Raises StageError."""
    return chosen(RECIPES, name)
