"""Which targets the language model annotates: of few users, since all targets of a user share one memory."""

from collections.abc import Sequence

import numpy as np

from training.data.splits import Split, Target
from training.recipes import Recipe

_TARGETS_PER_USER = 20


def pick_targets(targets: Sequence[Target], limit: int, rng: np.random.Generator) -> list[Target]:
    """`limit` targets of few users: users in random order, up to twenty random targets of each."""
    of_user: dict[int, list[Target]] = {}
    for target in targets:
        of_user.setdefault(target.user, []).append(target)
    picked: list[Target] = []
    users = sorted(of_user)
    for index in rng.permutation(len(users)):
        if len(picked) >= limit:
            break
        mine = of_user[users[index]]
        picked += [mine[place] for place in sorted(rng.permutation(len(mine))[:_TARGETS_PER_USER])]
    return picked[:limit]


def learning_targets(split: Split, recipe: Recipe, seed: int) -> dict[str, list[Target]]:
    """For the retriever to learn from, and to be chosen by."""
    return {
        "train": pick_targets(split.train, recipe.annotate_targets, np.random.default_rng((seed, 0))),
        "valid": pick_targets(split.valid, recipe.valid_targets, np.random.default_rng((seed, 1))),
    }
