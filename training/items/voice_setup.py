"""Voices before training, the pasts that they read, and which users teach them.

In: a split, the token of each item, a recipe. Out: `Voices` whose networks are not trained, `Pasts`, parts of targets.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.manifest import VoicesSpec
from model_store.voices.tables import normalised, row_sums
from model_store.voices.voices import Voices
from training.data.splits import Split, Target, sample_targets
from training.items.channels import channel_tables, item_facts
from training.items.pasts import Pasts
from training.run.recipes import Recipe

_JUDGING = 0.25  # share of the users
_MOST_NUMBERS = 600_000_000  # of all forecasts together; above, fewer targets are sampled


def untrained(split: Split, tokens: NDArray[np.int64], recipe: Recipe, seed: int = 0) -> tuple[Voices, Pasts]:
    """Voices of the train period whose networks are not trained, and the pasts that they read."""
    tables = channel_tables(split, tokens)
    spec = VoicesSpec(
        tables=tuple(tables),
        recent_length=recipe.recent_length,
        past_length=max(recipe.max_past, recipe.recent_length),
        has_returns=split.has_repeats,
    )
    torch.manual_seed(seed)  # of the first weights
    voices = Voices(
        spec,
        item_facts(split, tokens),
        {name: normalised(table) for name, table in tables.items()},
        near_sums=row_sums(tables["near"]),
    )
    return voices, Pasts(split, tokens, length=spec.past_length)


def learning_targets(split: Split, recipe: Recipe, num_tokens: int, seed: int) -> tuple[list[Target], list[Target]]:
    """The sampled valid targets that teach, and those that judge. `num_tokens` is V."""
    count = min(recipe.voices_targets, _MOST_NUMBERS // max(1, num_tokens))
    return split_by_user(sample_targets(split.valid, count, seed), seed)


def split_by_user(targets: Sequence[Target], seed: int) -> tuple[list[Target], list[Target]]:
    """Targets of the users who teach, and of those who judge. Each part has a user where there are two."""
    users = np.unique([target.user for target in targets])
    count = min(max(1, round(_JUDGING * len(users))), len(users) - 1)
    judging = set(np.random.default_rng(seed).permutation(users)[:count].tolist())
    return (
        [target for target in targets if target.user not in judging],
        [target for target in targets if target.user in judging],
    )
