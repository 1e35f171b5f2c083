"""Item-kNN on data with known answers: communities without common items, chains, counts and baskets done by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.worlds import chain, communities, top_of_test, world
from training.data.splits import Split, Target
from training.items import item_knn
from training.items.co_occurrence import co_occurrences
from training.items.item_knn import (
    CHOICES,
    KnnSettings,
    at_grid_end,
    basket_ages,
    basket_co_occurrences,
    fit_item_knn,
    knn_scores,
    similarities,
)
from training.items.scoring import true_items
from training.run.stage import read_certificate


def test_item_knn_stays_inside_the_community(tmp_path: Path) -> None:
    split = communities()
    lists = top_of_test(fit_item_knn(split, seed=0, directory=tmp_path), split, num=4)
    half = len(split.item_ids) // 2
    for target, ranked in zip(split.test, lists, strict=True):
        side = split.histories[target.user].items[0] < half
        assert all((item < half) == side for item in ranked), (
            f"{target}: {ranked} contains an item of the other community"
        )


def test_item_knn_finds_neighbours_in_a_chain_better_than_popularity(tmp_path: Path) -> None:
    split = chain()
    lists = top_of_test(fit_item_knn(split, seed=0, directory=tmp_path), split, num=2)
    hits = np.mean([truth in ranked for truth, ranked in zip(true_items(split, split.test), lists, strict=True)])
    assert hits > 0.95, f"the successor is one of the two nearest in only {hits:.0%} of the targets"


def test_cosine_of_user_sets_is_a_special_case() -> None:
    split = world([[0, 1, 2], [1, 0], [0, 2]], train_ends=[3, 2, 1])
    settings = KnnSettings(span=None, balance=0.5, shrinkage=0.0, num_neighbours=10)
    near = similarities(co_occurrences(split, None), split.popularity, settings).toarray()
    users = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=float)
    norms = np.linalg.norm(users, axis=0)
    cosine = users.T @ users / np.outer(norms, norms) - np.eye(3)
    np.testing.assert_allclose(near, cosine, atol=1e-6, err_msg="not the cosine of the sets of users")


def test_only_the_nearest_are_kept_and_the_counts_are_not_changed() -> None:
    split = world([[0, 1, 2], [1, 0], [0, 2]], train_ends=[3, 2, 1])
    counts = co_occurrences(split, None)
    before = counts.toarray()
    near = similarities(counts, split.popularity, KnnSettings(span=None, num_neighbours=1))
    assert (np.diff(near.indptr) == 1).all(), "every item should keep one neighbour"
    np.testing.assert_array_equal(counts.toarray(), before, err_msg="the counts are needed for other settings")


def test_recent_events_count_more_and_seen_items_come_last_unless_kept() -> None:
    split = world([[0, 1, 2], [3, 4, 5], [1, 4, 0]], train_ends=[3, 3, 0])
    near = similarities(co_occurrences(split, None), split.popularity, KnnSettings(span=None))
    target = Target(2, 2)  # item 1 has age 1, item 4 has age 0
    kept = knn_scores(near, split, [target], 1.0, keep_seen=True)[0]
    np.testing.assert_allclose(kept, [0.5, 0, 0.5, 1, 0, 1], atol=1e-6, err_msg="weights halve with each event")
    dropped = knn_scores(near, split, [target], 1.0, keep_seen=False)[0]
    assert dropped[[1, 4]].max() < dropped[[0, 2, 3, 5]].min(), "a seen item ranks before an unseen one"


def test_a_second_call_loads_and_scores_the_same(tmp_path: Path) -> None:
    split = communities()
    first = fit_item_knn(split, seed=0, directory=tmp_path)(split.test)
    written = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again = fit_item_knn(split, seed=0, directory=tmp_path)(split.test)
    np.testing.assert_array_equal(first, again, err_msg="the saved model gives other scores than the fitted one")
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == written, "fitted twice"
    other = fit_item_knn(communities(seed=1), seed=0, directory=tmp_path)
    assert not np.array_equal(other(split.test), first), "the model of other data was used"


# --- baskets ------------------------------------------------------------------------------------------------------


def with_times(split: Split, times: Sequence[Sequence[int]]) -> Split:
    pairs = zip(split.histories, times, strict=True)
    return replace(split, histories=[replace(each, timestamps=np.array(own)) for each, own in pairs])


def test_the_age_of_an_event_counts_events_of_later_baskets() -> None:
    assert basket_ages(np.array([1, 1, 5, 7, 7, 7])).tolist() == [4, 4, 3, 0, 0, 0]
    assert basket_ages(np.array([1, 2, 3])).tolist() == [2, 1, 0]
    assert basket_ages(np.array([], dtype=np.int64)).tolist() == []


@pytest.mark.parametrize("span", [1, 2, 3, 5])
@pytest.mark.parametrize("at_once", [2, 200_000])
def test_pairs_are_counted_by_the_distance_of_their_baskets(
    span: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with all pairs, one by one: within a basket the distance is 0, otherwise 1 + the events between."""
    monkeypatch.setattr(item_knn, "_EVENTS_AT_ONCE", at_once)
    rng = np.random.default_rng(span)
    sequences = [rng.permutation(9)[: rng.integers(1, 9)].tolist() for _ in range(12)]
    ends = [int(rng.integers(0, len(items) + 1)) for items in sequences]
    times = [np.sort(rng.integers(4, size=len(items))).tolist() for items in sequences]
    expected = np.zeros((9, 9))
    for items, own, end in zip(sequences, times, ends, strict=True):
        for one in range(end):
            for other in range(one + 1, end):
                between = sum(own[one] < own[place] < own[other] for place in range(end))
                if own[one] == own[other] or 1 + between <= span:
                    expected[items[one], items[other]] += 1
                    expected[items[other], items[one]] += 1
    split = with_times(world([*sequences, [8]], train_ends=[*ends, 1]), [*times, [0]])
    np.testing.assert_array_equal(basket_co_occurrences(split, span).toarray(), expected)


def test_without_baskets_distances_are_those_of_positions() -> None:
    split = communities()
    for span in (1, 3, None):
        expected = co_occurrences(split, span).toarray()
        np.testing.assert_array_equal(basket_co_occurrences(split, span).toarray(), expected)


def test_scores_do_not_depend_on_the_order_within_a_basket() -> None:
    times = [[0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 5]]
    lists = [[[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]], [[2, 0, 1, 4, 3, 5], [0, 3, 1, 4, 2, 5]]]
    found = []
    for sequences in lists:
        split = with_times(world(sequences, train_ends=[5, 6]), times)
        near = similarities(basket_co_occurrences(split, 2), split.popularity, KnnSettings())
        found.append(knn_scores(near, split, [Target(0, 5)], 1.0, keep_seen=True))
    np.testing.assert_allclose(found[0], found[1])


def test_items_of_the_basket_of_the_target_are_never_recommended() -> None:
    split = with_times(world([[0, 1, 2, 3], [0, 1, 2, 3]], train_ends=[4, 4]), [[0, 5, 5, 5], [0, 1, 2, 3]])
    near = similarities(basket_co_occurrences(split, None), split.popularity, KnnSettings(span=None))
    scores = knn_scores(near, split, [Target(0, 3), Target(1, 3)], 1.0, keep_seen=True)
    assert np.isneginf(scores[0]).tolist() == [False, True, True, False]
    assert np.isfinite(scores[1]).all(), "items of earlier times may come back"


# --- the choice of settings ---------------------------------------------------------------------------------------


def test_choices_at_the_end_of_a_grid_are_named(tmp_path: Path) -> None:
    choices = {"a": (1, 2, 3), "b": (1, 2, None), "c": (True, False), "d": (5,)}
    assert at_grid_end({"a": 2, "b": None, "c": True, "d": 5}, choices) == {"b": None}
    assert at_grid_end({"a": 1, "b": 2, "c": True, "d": 5}, choices) == {"a": 1}
    fit_item_knn(chain(), seed=0, directory=tmp_path)
    facts = read_certificate(tmp_path)
    assert facts["at_grid_end"] == at_grid_end(facts["settings"], CHOICES)
    assert facts["at_grid_end"]["half_life"] == 1.0, "in a chain only the last event tells the next"
