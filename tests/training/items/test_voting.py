"""The voices find what is true of a world: items that come back every few weeks, and no weight where none does."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_store.voices.candidates import return_column
from model_store.voices.voices import Voices
from tests.training.worlds import communities, world
from training.data.splits import History, Split, Target
from training.items.pasts import Pasts
from training.items.voice_ranks import (
    ALL_MEMORY,
    NO_MEMORY,
    MemoryUse,
    best_use,
    memory_facts,
    ranks,
    voice_shares,
)
from training.items.voice_setup import split_by_user, untrained
from training.items.voting import gate_loss, make_examples, train_voices
from training.run.metrics import ndcg
from training.run.recipes import Recipe

DAY, WEEK = 86_400, 7
RECIPE = Recipe(recent_length=3, max_past=40)


def weekly(num_users: int = 60, num_items: int = 60, num_weeks: int = 18, seed: int = 0) -> Split:
    """Every user buys two own items again every third week, and something random on the other days."""
    rng = np.random.default_rng(seed)
    histories, targets = [], []
    for user in range(num_users):
        staples = rng.choice(num_items, 2, replace=False)
        items, days = [], []
        for week in range(num_weeks):
            new = staples if week % 3 == 0 else rng.choice(num_items, 2, replace=False)
            items += new.tolist()
            days += [week * WEEK, week * WEEK + 1]
        end = 2 * (num_weeks - 4)
        histories.append(History(f"u{user}", np.array(items, np.int32), np.array(days) * DAY, end, True))
        targets += [Target(user, at) for at in range(end, len(items))]
    base = world([history.items.tolist() for history in histories], train_ends=[each.train_end for each in histories])
    return replace(base, histories=histories, valid=targets[::2], test=targets[1::2])


def forecast(targets: Sequence[Target]) -> NDArray[np.float32]:
    """A language model that knows nothing of 60 items at most."""
    return np.full((len(targets), 61), 1 / 61, dtype=np.float32)


def trained(split: Split, seed: int = 0, recipe: Recipe = RECIPE) -> tuple[Voices, Pasts, list[Target]]:
    """Also the targets of the users that did not teach."""
    voices, pasts = untrained(split, np.arange(1, len(split.item_ids) + 1), recipe, seed)
    teach, judge = split_by_user(split.valid, seed)
    train_voices(voices, pasts, teach, judge, forecast, seed=seed)
    return voices, pasts, judge


def test_what_comes_back_every_few_weeks_is_found() -> None:
    split = weekly()
    voices, pasts, judge = trained(split)
    window, memory = ndcg(ranks(voices, pasts, split.test, forecast, (NO_MEMORY, ALL_MEMORY))).mean(axis=1)
    assert memory > 1.5 * window, f"memory was not found: {window:.3f} → {memory:.3f}"
    shares = voice_shares(voices, pasts, judge, forecast)
    assert shares["older"]["return"] > 0.1, shares
    assert memory_facts(voices, pasts, judge, forecast)["memory_minus_window"][1] > 0
    total = sum(shares["overall"].values()) + sum(shares["window"].values()) + sum(shares["older"].values())
    assert total == pytest.approx(1, abs=0.01)


NONE, GREEDY, GENTLE, FAIR = [0, 0, 0, 0], [0.5, 0.5, -0.2, -0.2], [0.3, 0.3, -0.1, 0.1], [0.3, 0.3, 0.05, 0.07]


@pytest.mark.parametrize(
    ("plain", "discounted", "chosen"),
    [
        ([NONE, GREEDY], [GENTLE, FAIR], 3),  # the best of those with which new items gain
        ([NONE, GREEDY], [GENTLE], 1),  # there is none
        ([NONE, GREEDY], [[0.1, 0.1, 0.1, 0.1]], 1),  # it would cost a third of the gain
        ([NONE, FAIR], [GREEDY, [1, 1, 1, 1]], 1),  # new items do not lose, so nothing is discounted
        ([NONE, [-0.1, -0.1, 0, 0]], [], 0),
    ],
)
def test_new_items_are_ranked_no_worse_where_that_costs_little(
    plain: list[list[float]], discounted: list[list[float]], chosen: int
) -> None:
    is_new = np.array([False, False, True, True])
    assert best_use(np.array([*plain, *discounted]), len(plain), is_new, range(4)) == chosen


def test_the_chosen_use_is_part_of_the_networks() -> None:
    split = weekly(num_users=30)
    voices, pasts, judge = trained(split)
    use = MemoryUse(0.5, 0.75)
    expected = ranks(voices, pasts, judge, forecast, [use])
    voices.combiner.use_memory(*use, column=return_column(len(voices.spec.tables)))
    assert np.array_equal(expected, ranks(voices, pasts, judge, forecast, [ALL_MEMORY]))


def test_where_nothing_comes_back_the_voice_of_return_has_no_weight() -> None:
    split = communities(num_users=80)
    voices, pasts, judge = trained(split)
    assert not voices.spec.has_returns
    shares = voice_shares(voices, pasts, judge, forecast)
    assert shares["older"]["return"] == shares["window"]["return"] == 0


def test_older_events_do_not_change_the_gate_of_the_window() -> None:
    """It is trained first, from the window alone."""
    split = weekly(num_users=20)
    gates = [trained(split, recipe=replace(RECIPE, max_past=length))[0].gates[False] for length in (3, 40)]
    states = [gate.state_dict() for gate in gates]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])


def test_one_seed_repeats_and_two_seeds_differ() -> None:
    split = weekly(num_users=20)
    states = [trained(split, seed)[0].combiner.state_dict() for seed in (0, 0, 1)]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert any(not states[0][name].equal(states[2][name]) for name in states[0])


def test_the_loss_is_the_likelihood_among_the_items_that_may_be_shown() -> None:
    """Compared with the mixture of all items, computed densely."""
    split = weekly(num_users=12)
    voices, pasts = untrained(split, np.arange(1, len(split.item_ids) + 1), RECIPE, 0)
    torch.manual_seed(0)
    for parameter in voices.gates[False].parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    targets = split.valid[:20]
    rows = np.random.default_rng(0).dirichlet(np.ones(len(split.item_ids) + 1), len(targets)).astype(np.float32)
    examples = make_examples(voices, pasts, targets, lambda wanted: rows[: len(wanted)], is_older=False)
    found = gate_loss(voices.gates[False], examples).detach().numpy()
    mixture = voices.mix(rows, [pasts.past(target) for target in targets]).window
    for row, target in enumerate(targets):
        allowed = 1 - mixture[row, pasts.hidden(target)].sum()
        wanted = mixture[row, pasts.truth(target)]
        expected = np.log(allowed + 1e-3) - np.log(wanted + 1e-3 / len(voices))
        assert found[row] == pytest.approx(expected, abs=2e-3), f"target {row}"


def test_what_may_be_shown() -> None:
    """Where users come back, only the current basket is hidden; elsewhere all that was seen. The truth never is."""
    back = weekly(num_users=6)
    position = len(back.histories[0].items) - 1
    same_day = replace(back.histories[0], timestamps=back.histories[0].timestamps // (3 * DAY) * (3 * DAY))
    split = replace(back, histories=[same_day, *back.histories[1:]])
    pasts = Pasts(split, np.arange(1, len(split.item_ids) + 1), length=40)
    target = Target(0, position)
    basket = set(
        (same_day.items[:position][same_day.timestamps[:position] == same_day.timestamps[position]] + 1).tolist()
    )
    assert set(pasts.hidden(target).tolist()) == basket - {pasts.truth(target)}
    never = communities()
    seen = Pasts(never, np.arange(1, len(never.item_ids) + 1), length=40)
    assert set(seen.hidden(Target(0, 10)).tolist()) == set((never.histories[0].items[:10] + 1).tolist())
    assert seen.truth(Target(0, 10)) in seen.allowed(Target(0, 10))
