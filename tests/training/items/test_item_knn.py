"""Item-kNN on data with known answers: communities without common items, chains, counts done by hand."""

from pathlib import Path

import numpy as np

from tests.training.worlds import chain, communities, world
from training.data.splits import Target
from training.items.co_occurrence import co_occurrences
from training.items.item_knn import KnnSettings, fit_item_knn, knn_scores, similarities
from training.items.scoring import ranked_lists, true_items


def test_item_knn_stays_inside_the_community(tmp_path: Path) -> None:
    split = communities()
    lists = ranked_lists(fit_item_knn(split, seed=0, directory=tmp_path), split, split.test, num=4)
    half = len(split.item_ids) // 2
    for target, ranked in zip(split.test, lists, strict=True):
        side = split.histories[target.user].items[0] < half
        assert all((item < half) == side for item in ranked), (
            f"{target}: {ranked} contains an item of the other community"
        )


def test_item_knn_finds_neighbours_in_a_chain_better_than_popularity(tmp_path: Path) -> None:
    split = chain()
    lists = ranked_lists(fit_item_knn(split, seed=0, directory=tmp_path), split, split.test, num=2)
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
