"""Memory helps where people buy again and nowhere else; counts of baskets, returns and new items are right."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.voices.voices import Voices
from tests.training.small import RECENT, TINY
from tests.training.worlds import chain, world
from training.data.splits import Split, Target
from training.items.diagnosis import (
    FEWEST_TARGETS,
    FEWEST_USERS,
    gain_facts,
    halves_of,
    measure,
    num_affordable,
    own_items,
    rank_of,
    voted_ranks,
)
from training.items.history_facts import SECONDS_PER_DAY, history_facts, like_titles
from training.items.pasts import Pasts
from training.items.voice_setup import untrained
from training.run.metrics import ndcg

WEEK = 7 * SECONDS_PER_DAY


def at_times(split: Split, times: Sequence[int]) -> Split:
    """The split whose event number n is at time `times[n]`, for all users."""
    histories = [replace(each, timestamps=np.array(times[: len(each.items)])) for each in split.histories]
    return replace(split, histories=histories)


def titles_as_tokens(split: Split) -> NDArray[np.int64]:
    return split.title_class.astype(np.int64)


def opened(split: Split) -> tuple[Voices, Pasts]:
    return untrained(split, titles_as_tokens(split), TINY)


def buying_again(num_users: int = 24, num_items: int = 40, cycle: int = 8, length: int = 34) -> Split:
    """Each user buys the same eight things every eight weeks, in an order of their own. The window has three weeks."""
    rng = np.random.default_rng(0)
    lists = [rng.permutation(num_items)[:cycle].tolist() for _ in range(num_users)]
    sequences = [[each[week % cycle] for week in range(length)] for each in lists]
    split = world(sequences, train_ends=[length - 10] * num_users)
    return at_times(split, range(0, length * WEEK, WEEK))


def at_random(num_users: int = 24, num_items: int = 120, length: int = 34) -> Split:
    """Nobody comes back to an item, and no event tells anything about another one."""
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(num_items)[:length].tolist() for _ in range(num_users)]
    return world(sequences, train_ends=[length - 10] * num_users)


def test_memory_helps_where_people_buy_again() -> None:
    measured = measure(*opened(split := buying_again()), split.valid, seed=0)
    assert measured is not None and measured.had.all()
    assert measured.memory.mean() > 0.95 > 0.8 > measured.window.mean(), "the item of eight weeks ago comes next"
    assert measured.own.mean() == pytest.approx(ndcg(np.array(7))), (
        "all eight things were bought equally often, this one first"
    )
    gain = gain_facts(measured, seed=0)
    assert gain["new"] is None and gain["all"] == gain["returning"]
    assert gain["all"]["memory_minus_window"][1] > 0.1 and gain["all"]["memory_by_window"][1] > 1.1


@pytest.mark.parametrize("split", [at_random(), chain(num_users=30)], ids=["noise", "the last event tells all"])
def test_memory_helps_nowhere_else(split: Split) -> None:
    measured = measure(*opened(split), split.valid, seed=0)
    assert measured is not None and not measured.had.any() and not measured.own.any()
    _, low, high = gain_facts(measured, seed=0)["all"]["memory_minus_window"]
    assert low <= 0 <= high


def test_every_target_is_measured_once_by_voices_of_other_users() -> None:
    split = chain(num_users=26)
    measured = measure(*opened(split), split.valid, seed=0)
    assert measured is not None
    assert sorted(measured.user.tolist()) == sorted(target.user for target in split.valid)
    first, second = halves_of(split.valid, 0)
    assert not {target.user for target in first} & {target.user for target in second}
    assert measured.user.tolist() == [target.user for target in [*second, *first]]


def test_untrained_voices_are_not_changed() -> None:
    voices, pasts = opened(split := chain(num_users=26))
    before = [parameter.clone() for parameter in voices.combiner.parameters()]
    assert measure(voices, pasts, split.valid, seed=0) is not None
    assert all((old == new).all() for old, new in zip(before, voices.combiner.parameters(), strict=True))


def test_too_few_targets_or_users_are_not_measured() -> None:
    voices, pasts = opened(split := buying_again())
    assert measure(voices, pasts, split.valid[: FEWEST_TARGETS - 1], seed=0) is None
    few = [target for target in split.valid if target.user < FEWEST_USERS - 1]
    assert measure(voices, pasts, few * 2, seed=0) is None


def test_fewer_targets_fit_into_less_time() -> None:
    voices, pasts = opened(split := buying_again())
    counts = [num_affordable(voices, pasts, split.valid, seconds) for seconds in (-1.0, 0.0, 1e3, 1e9)]
    assert counts[:2] == [FEWEST_TARGETS] * 2 and all(few <= many for few, many in pairwise(counts))
    assert counts[-1] > 1e6


def test_own_items_begin_with_the_most_frequent_then_the_latest() -> None:
    split = at_times(world([[0, 1, 2, 1, 3, 4, 5]], train_ends=[4]), [0, 1, 2, 3, 4, 5, 5])
    pasts = Pasts(split, titles_as_tokens(split), length=10)
    assert split.has_repeats
    assert own_items(pasts, Target(0, 5)).tolist() == [1, 3, 2, 0]
    assert own_items(pasts, Target(0, 6)).tolist() == [1, 3, 2, 0], "item 4 lies in the current basket"


@pytest.mark.parametrize(("place", "expected"), [(0, 0.0), (1, 1.0), (2, 2.5), (3, 2.5), (4, 4.0)])
def test_equal_scores_are_ranked_by_the_second_number_and_full_ties_count_half(place: int, expected: float) -> None:
    scores, second = np.array([[3, 2, 2, 2, 1], [0, 9, 5, 5, 9]], dtype=np.float32)
    assert rank_of(scores, second, place) == expected


def test_voices_before_training_rank_by_their_mixture() -> None:
    voices, pasts = opened(split := buying_again())
    target = split.valid[0]
    mixtures = voices.mix(voices.popularity[None], [pasts.past(target)])
    allowed, truth = pasts.allowed(target), pasts.truth(target)
    for rank, mixture in zip(
        voted_ranks(voices, mixtures, 0, pasts, target), (mixtures.window[0], mixtures.whole[0]), strict=True
    ):
        assert (mixture[allowed] > mixture[truth]).sum() <= rank <= (mixture[allowed] >= mixture[truth]).sum() - 1


# ---- counts


def test_returns_are_counted_in_and_before_the_window() -> None:
    split = at_times(
        world([[0, 1, 0, 2, 3, 1, 4, 3, 0, 5]], train_ends=[6]), [day * SECONDS_PER_DAY for day in range(10)]
    )
    found = history_facts(split, titles_as_tokens(split), window=RECENT)["returns"]
    assert found["train_share"] == pytest.approx(2 / 6, abs=1e-4)  # the second 0, the second 1
    assert found["median_days"] == 3.0  # after 2 and 4 days
    assert [split.histories[0].items[target.position] for target in split.valid] == [4, 0]
    assert (found["targets_share"], found["in_window_share"], found["older_share"]) == (0.5, 0.0, 0.5)


def test_the_returns_of_buying_again_are_found() -> None:
    found = history_facts(split := buying_again(), titles_as_tokens(split), window=RECENT)["returns"]
    assert found["median_days"] == 8 * 7 and found["older_share"] == found["targets_share"] == 1.0


def test_baskets_are_found() -> None:
    split = at_times(at_random(), np.repeat(np.arange(7), 5).tolist())  # five events at a time, then four
    found = history_facts(split, titles_as_tokens(split), window=RECENT)
    assert found["baskets"]["mean_size"] == pytest.approx(34 / 7, abs=0.01)
    assert found["baskets"]["shared_time_share"] == pytest.approx(27 / 34, abs=1e-4)
    assert found["baskets"]["window_in_basket_share"] == pytest.approx(2 / 5)  # of places 24, 26, 28, 30 and 32
    alone = history_facts(split := at_random(), titles_as_tokens(split), window=RECENT)["baskets"]
    assert alone == {"shared_time_share": 0.0, "mean_size": 1.0, "window_in_basket_share": 0.0}


def test_new_items_and_those_with_a_similar_title_are_counted() -> None:
    split = world([[0] * 6 + [1, 2, 3, 4], [0] * 6 + [3, 4, 0, 0]], train_ends=[7, 7])
    titles = ["Red Tea", "Blue Tea", "Clay Pot", "Green Tea", "Oak"]
    split = replace(split, titles=titles, popularity=np.array([12, 1, 0, 1, 0]))
    assert [split.histories[target.user].items[target.position] for target in split.valid] == [2, 4, 0]
    tokens = titles_as_tokens(split)
    facts = history_facts(split, tokens, window=RECENT)["cold"]
    assert facts["no_event_share"] == facts["few_events_share"] == pytest.approx(2 / 3, abs=1e-4)
    has_like_title = np.array([True, True, False, True, True])
    assert like_titles(split, tokens, has_like_title, facts)["like_title_share"] == 0.5


def test_lengths_spans_and_days_are_described() -> None:
    split = at_times(at_random(num_users=10), [0] * 34)
    found = history_facts(split, titles_as_tokens(split), window=RECENT)
    assert found["histories"]["one_time_share"] == found["histories"]["within_a_day_share"] == 1.0
    assert found["histories"]["median_length"] == found["histories"]["p90_length"] == 34
    assert found["size"]["whole_days"] and found["size"]["first_day"] == "1970-01-01"
    assert found["targets"]["with_older_share"] == 1.0 and found["targets"]["users"] == 10
