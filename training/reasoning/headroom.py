"""What better reasoning could win over the deterministic reasoner, measured before a language model is trained.

For each situation the best of all choices of at most two aspects, of at most one memory, and the ideal item that says
what the true item is. These choices know the truth: they bound what a reasoner can win in one step, with the weights of
the ranking as they are.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.reasoning.situations import Reward, Situation
from training.run.metrics import paired_bootstrap
from training.run.stage import progress

_MOST_ASPECTS = 2


def headroom(situations: Sequence[Situation], reward: Reward) -> dict[str, Any]:
    """Means of NDCG@100 + 0.2 · nearness, and differences from the deterministic reasoner with intervals by user."""
    rows = [_row(situation, reward) for situation in progress(situations, desc="head-room", unit="situation")]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    users = np.array([situation.target.user for situation in situations])
    found = paired_bootstrap(columns, users)
    return {
        name: {
            "mean": round(found.means[name], 5),
            "over_deterministic": [round(value, 5) for value in found.difference(name, "deterministic")],
            "differs": round(float((np.abs(columns[name] - columns["deterministic"]) > 1e-9).mean()), 4),
        }
        for name in columns
    }


def _row(situation: Situation, reward: Reward) -> dict[str, float]:
    usual = situation.default
    now = reward.quality(situation, usual, situation.selected(usual), None)
    needs = [
        list(need)
        for n in range(_MOST_ASPECTS + 1)
        for need in itertools.combinations(range(len(situation.offered)), n)
    ]
    memories = [[], *([place] for place in range(len(situation.places(usual))))]
    truths = [situation.words.index.texts[row].sentence for row in situation.target.answers.tolist()]
    return {
        "query_alone": reward.without_memory(situation),
        "deterministic": now,
        "best_aspects": max(now, *(reward.quality(situation, n, situation.selected(n), None) for n in needs)),
        "best_memory": max(now, *(reward.quality(situation, usual, used, None) for used in memories)),
        "true_ideal": max(now, *(reward.quality(situation, usual, situation.selected(usual), t) for t in truths)),
    }
