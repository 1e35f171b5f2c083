"""Learns all weights of the words of a bundle, and those of the rows of its evaluation, on valid targets.

Users of valid targets have three roles, by a hash of their id: most teach; some choose (early ends, how far memory is
used); some judge what GRPO added. The order:

    weights with the memories nearest to the query → gains of single memories → selector, warm-up by KL
    → weights with its choice → selector, GRPO → weights of every row, and how far each uses memory
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from model_store.words.evidence import CONTEXT, FEATURES
from model_store.words.index import Values
from model_store.words.ranker import Ranker
from model_store.words.selector import Selector
from training.run.metrics import paired_bootstrap
from training.run.stage import progress
from training.words.examples import Example
from training.words.learning import choose_scale, fit_weights, spread_of
from training.words.rewards import Rewards
from training.words.rows import EVERYTHING, HYBRID, OWN, ROWS, WordsRow, chosen_features, nearest_by_query
from training.words.selecting import Task, Trained, grpo, mean_reward, warm_up

TEACH, CHOOSE, JUDGE = "teach", "choose", "judge"
_SHARES = ((TEACH, 60), (CHOOSE, 80), (JUDGE, 100))  # upper ends, in percent of the users
_TIE = 1e-3  # weight of popularity where a row ranks by one other feature

Roles = dict[str, list[Example]]


class Learned(NamedTuple):
    """`rankers`: row → its weights. `facts` for the certificate."""

    selectors: dict[str, Selector]
    rankers: dict[str, Ranker]
    facts: dict[str, Any]


def learn(examples: Sequence[Example], user_ids: Sequence[str], num_items: int, seed: int = 0) -> Learned:
    """`examples` of valid targets."""
    roles = by_role(examples, user_ids)
    base = _Base(spread_of(roles[TEACH]), roles)
    start = base.ranker(WordsRow("", "", EVERYTHING, nearest_by_query, True), {})
    warm = warm_up(*_tasks(roles, start, num_items), seed=seed)
    selectors = {"warm-up": warm.selector, "grpo": warm.selector}
    ranker = base.ranker(ROWS["no_rl"], selectors)
    teach, choose = _tasks(roles, ranker, num_items)
    tuned = grpo(warm.selector, teach, choose, seed=seed)
    selectors["grpo"] = tuned.selector
    rankers = {name: base.chosen(row, selectors) for name, row in progress(ROWS.items(), desc="weights", unit="row")}
    facts = {
        "targets": {role: len(found) for role, found in roles.items()},
        "warm_up": warm.facts,
        "grpo": tuned.facts | _judged(warm, tuned, _tasks_of(roles[JUDGE], ranker, num_items)),
        "memory_scale": rankers[OWN].memory_scale,
        "weights": {name: round(float(value), 3) for name, value in zip(FEATURES, rankers[OWN].joint[0], strict=True)},
    }
    return Learned(selectors, rankers, facts)


def by_role(examples: Sequence[Example], user_ids: Sequence[str]) -> Roles:
    roles: Roles = {role: [] for role, _ in _SHARES}
    for example in examples:
        roles[role_of(user_ids[example.target.user])].append(example)
    return roles


def role_of(user_id: str) -> str:
    """What the valid targets of a user are for: to teach, to choose or to judge."""
    place = int(hashlib.sha256(user_id.encode()).hexdigest(), 16) % 100
    return next(role for role, end in _SHARES if place < end)


class _Base:
    """Fits the rankers of rows; the weights without memory are those of the hybrid row."""

    def __init__(self, spread: Values, roles: Roles) -> None:
        self.spread, self.roles = spread, roles
        self.alone = self._fit(ROWS[HYBRID], {})

    def ranker(self, row: WordsRow, selectors: dict[str, Selector]) -> Ranker:
        """The weights of a row, with all of its memory."""
        if len(row.features) == 1:
            return Ranker(_single(row.features[0]), _single(row.features[0]), self.spread, 1.0)
        if row.features == ROWS[HYBRID].features:
            return Ranker(self.alone, self.alone, self.spread, 1.0)
        joint = self._fit(row, selectors)
        return Ranker(self.alone if row.uses_memory else joint, joint, self.spread, 1.0)

    def _fit(self, row: WordsRow, selectors: dict[str, Selector]) -> Values:
        features_of = chosen_features(row, selectors)
        return fit_weights(self.roles[TEACH], features_of, row.features, self.spread)

    def chosen(self, row: WordsRow, selectors: dict[str, Selector]) -> Ranker:
        """The weights of a row, with as much memory as helps on the users that choose."""
        ranker = self.ranker(row, selectors)
        return choose_scale(ranker, self.roles[CHOOSE], chosen_features(row, selectors)) if row.uses_memory else ranker


def _single(name: str) -> Values:
    """Weights that rank by one feature, then by popularity."""
    weights = np.zeros((len(CONTEXT), len(FEATURES)), dtype=np.float32)
    weights[0, FEATURES.index("popularity")] = _TIE
    weights[0, FEATURES.index(name)] = 1
    return weights


def _tasks(roles: Roles, ranker: Ranker, num_items: int) -> tuple[list[Task], list[Task]]:
    teach, choose = (_tasks_of(roles[role], ranker, num_items) for role in (TEACH, CHOOSE))
    return teach, choose


def _tasks_of(examples: Sequence[Example], ranker: Ranker, num_items: int) -> list[Task]:
    """Queries with something to choose and an answer among the candidates."""
    useful = [example for example in examples if example.pools["chain"] and example.is_answer.any()]
    return [Task(example.selector_inputs("chain"), Rewards(example, ranker, num_items)) for example in useful]


def _judged(warm: Trained, tuned: Trained, tasks: Sequence[Task]) -> dict[str, Any]:
    """What GRPO adds to the reward of users that neither taught nor chose: mean and 95 % interval by user."""
    if not tasks:
        return {"judge": None}
    columns = {"before": mean_reward(warm.selector, tasks), "after": mean_reward(tuned.selector, tasks)}
    users = np.array([task.rewards.example.target.user for task in tasks])
    found = paired_bootstrap(columns, users)
    return {
        "judge_reward": [round(value, 5) for value in found.means.values()],
        "judge_gain": [round(value, 5) for value in found.difference("after", "before")],
    }
