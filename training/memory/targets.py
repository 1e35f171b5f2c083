"""Which targets the language model annotates: of few users, since all targets of a user share one memory."""

from collections.abc import Sequence

import numpy as np

from training.data.splits import Split, Target
from training.run.recipes import Recipe

_TARGETS_PER_USER = 20
_JUDGE_SHARE = 0.25  # of the users of the valid period


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
    """For the retriever to learn from (`train`), and to be chosen by (`valid`).

    With `held_out_labels` both are of the valid period, of different users: on what it was tuned on, the generator
    remembers the answer, and what helps it there is not what helps it on targets it has never seen.
    """
    rng = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1))
    to_learn, to_choose = split.train, split.valid
    if recipe.held_out_labels:
        judges = _some_users(split.valid, _JUDGE_SHARE, np.random.default_rng((seed, 2)))
        to_learn = [target for target in split.valid if target.user not in judges]
        to_choose = [target for target in split.valid if target.user in judges]
    return {
        "train": pick_targets(to_learn, recipe.annotate_targets, rng[0]),
        "valid": pick_targets(to_choose, recipe.valid_targets, rng[1]),
    }


def _some_users(targets: Sequence[Target], share: float, rng: np.random.Generator) -> set[int]:
    users = sorted({target.user for target in targets})
    return {users[place] for place in rng.permutation(len(users))[: max(1, round(share * len(users)))]}
