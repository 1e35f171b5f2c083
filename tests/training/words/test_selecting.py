"""Draws follow Plackett–Luce, rewards are those of the ranking, and GRPO finds the choice with the best reward."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_store.words.evidence import CHOSEN_PART, CONTEXT, FEATURES, Evidence, PoolParts
from model_store.words.ranker import Ranker
from model_store.words.selector import MAX_CHOSEN, SELECTOR_FEATURES
from training.words.examples import Example
from training.words.metrics import ndcg_of
from training.words.rewards import RANK_WEIGHT, Rewards
from training.words.selecting import Task, draw, grpo, mean_reward, warm_up
from training.words.split import QueryTarget

NUM_ITEMS, POOL = 150, 4


def ranker() -> Ranker:
    weights = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
    weights[0, FEATURES.index("lexical")] = 1
    weights[0, FEATURES.index("profile")] = 8
    return Ranker(weights, weights, np.ones(len(FEATURES), np.float32), 1.0)


def example(seed: int, useful: int | None = 0) -> Example:
    """A query whose answer only the entry `useful` of the pool points at; the first feature of inputs tells it."""
    rng = np.random.default_rng(seed)
    answer = int(rng.integers(NUM_ITEMS))
    features = np.zeros((len(FEATURES), NUM_ITEMS), np.float32)
    features[FEATURES.index("lexical")] = rng.random(NUM_ITEMS)
    cosine = rng.normal(0, 0.3, (POOL, NUM_ITEMS)).astype(np.float32)
    zeros = np.zeros((POOL, NUM_ITEMS), np.float32)
    inputs = np.zeros((1 + POOL, len(SELECTOR_FEATURES)), np.float32)
    inputs[0, 0] = 1
    inputs[1:, 2:] = rng.normal(0, 0.1, (POOL, len(SELECTOR_FEATURES) - 2))
    if useful is not None:
        cosine[useful, answer] = 3
        inputs[1 + useful, 1] = 1
    evidence = Evidence(
        np.arange(NUM_ITEMS),
        features,
        np.array([1, 0.5, 0, 0], np.float32),
        PoolParts(zeros, zeros, cosine, np.eye(POOL, dtype=np.float32)),
    )
    target = QueryTarget(seed, "q", 0, np.array([answer]))
    is_answer = np.arange(NUM_ITEMS) == answer
    return Example(target, evidence, is_answer, {"chain": list(range(POOL)), "profile": [0]}, inputs, 0.0)


def tasks(seeds: range, useful: int | None = 0) -> list[Task]:
    made = [example(seed, None if useful is None else (useful + seed) % POOL) for seed in seeds]
    return [Task(each.inputs, Rewards(each, ranker(), NUM_ITEMS)) for each in made]


def probability(logits: list[float], choice: tuple[int, ...]) -> float:
    """Of an ordered choice, one after the other without replacement, that ends with 0 or at MAX_CHOSEN."""
    left, total = dict(enumerate(logits)), 1.0
    for column in choice:
        total *= math.exp(left[column]) / sum(map(math.exp, left.values()))
        del left[column]
    return total


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=5))
def test_log_probabilities_are_those_of_plackett_luce(logits: list[float]) -> None:
    drawn, logs = draw(torch.tensor([logits]), 16)
    for choice, log in zip(drawn[0].tolist(), logs[0].tolist(), strict=True):
        end = choice.index(0) + 1 if 0 in choice else len(choice)
        assert log == pytest.approx(math.log(probability(logits, tuple(choice[:end]))), abs=1e-4)


def test_draws_are_as_frequent_as_their_probability() -> None:
    torch.manual_seed(0)
    logits = [0.5, 0.0, 1.0, -1.0]
    drawn, _ = draw(torch.tensor([logits]), 20_000)
    counts = {tuple(choice): 0 for choice in drawn[0].tolist()}
    for choice in drawn[0].tolist():
        counts[tuple(choice)] += 1
    for length, others in ((1, ()), (2, (1,)), (3, (1, 2))):
        choice = (*others, 0)[:length]
        padded = (*choice, *[0] * (MAX_CHOSEN - len(choice)))
        expected = probability(logits, choice)
        assert counts[padded] / 20_000 == pytest.approx(expected, abs=4 * (expected / 20_000) ** 0.5)


def test_rewards_are_those_of_the_ranking_by_the_ranker() -> None:
    for seed in range(5):
        made = example(seed)
        rewards = Rewards(made, ranker(), NUM_ITEMS)
        for places in itertools.chain.from_iterable(itertools.combinations(range(POOL), n) for n in range(3)):
            scores = ranker().scores(made.evidence.with_chosen(places), made.evidence.context)
            rank = int((scores > scores[made.target.answers[0]]).sum())
            expected = ndcg_of(scores, made.target.answers, 100)
            expected += RANK_WEIGHT * (1 - math.log1p(rank) / math.log1p(NUM_ITEMS))
            assert rewards.reward(places) == pytest.approx(expected, abs=1e-6)


def test_warm_up_learns_which_memory_helps_and_grpo_keeps_or_raises_the_reward() -> None:
    teach, choose, judge = tasks(range(96)), tasks(range(100, 130)), tasks(range(200, 260))
    warm = warm_up(teach, choose)
    nothing = np.array([task.rewards.reward([]) for task in judge])
    assert mean_reward(warm.selector, judge).mean() > nothing.mean() + 0.3
    tuned = grpo(warm.selector, teach, choose)
    assert mean_reward(tuned.selector, choose).mean() >= mean_reward(warm.selector, choose).mean()


def test_grpo_alone_finds_the_memory_that_helps() -> None:
    teach, choose = tasks(range(128)), tasks(range(300, 340))
    blind = warm_up(tasks(range(24), None), choose[:1]).selector
    tuned = grpo(blind, teach, choose)
    assert mean_reward(tuned.selector, choose).mean() > mean_reward(blind, choose).mean() + 0.05
    assert 0 <= tuned.facts["tied"] < 1


def test_the_null_choice_is_taken_where_memories_only_harm() -> None:
    warm = warm_up(tasks(range(96), None), tasks(range(100, 130), None))
    judge = tasks(range(200, 260), None)
    nothing = np.array([task.rewards.reward([]) for task in judge])
    assert mean_reward(warm.selector, judge).mean() > nothing.mean() - 0.03


def test_with_few_queries_no_memory_is_chosen() -> None:
    few = tasks(range(5))
    assert all(warm_up(few, few).selector.choose(task.inputs) == [] for task in few)


def test_features_of_no_choice_change_no_ranking() -> None:
    made = example(1)
    first = FEATURES.index(CHOSEN_PART[0])
    assert not made.evidence.with_chosen([])[first : first + len(CHOSEN_PART)].any()
