"""Titles help where histories do not: item-kNN with titles finds items that nobody had, and vectors tell likeness."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.training.worlds import communities, top_of_test, world
from training.data.splits import Split
from training.items.item_knn import load_or_fit
from training.items.scoring import true_items
from training.items.title_features import fit_title_knn, title_vectors
from training.run.stage import read_certificate

NAMES = ("amber", "birch", "cedar", "dahlia", "elm", "fern", "ginger", "hazel", "iris", "juniper")


def series(num_users: int = 40) -> Split:
    """Each user reads the old volumes of two series, then a new volume of the second, which no user had in training."""
    rng = np.random.default_rng(0)
    titles = [f"{name} volume {part}" for name in NAMES for part in ("one", "two", "three")]
    pairs = [rng.permutation(len(NAMES))[:2] for _ in range(num_users)]
    sequences = [[3 * a, 3 * a + 1, 3 * b, 3 * b + 1, 3 * b + 2] for a, b in np.array(pairs).tolist()]
    split = world([*sequences, list(range(30))], train_ends=[4] * num_users + [0])
    late = [target for target in split.valid + split.test if target.user < num_users]
    return replace(split, titles=titles, histories=split.histories[:num_users], valid=late[::2], test=late[1::2])


def test_item_knn_with_titles_finds_items_that_nobody_had(tmp_path: Path) -> None:
    split = series()
    plain = load_or_fit(split, seed=0, directory=tmp_path / "plain")
    scorer = fit_title_knn(split, plain, seed=0, directory=tmp_path / "titles")
    firsts = [ranked[0] for ranked in top_of_test(scorer, split, num=1, mask_seen=True)]
    assert (np.array(firsts) == true_items(split, split.test)).mean() > 0.9
    assert read_certificate(tmp_path / "titles")["settings"]["likeness_weight"] > 0


def test_a_second_call_loads_and_scores_the_same(tmp_path: Path) -> None:
    split = series()
    plain = load_or_fit(split, seed=0, directory=tmp_path / "plain")
    first = fit_title_knn(split, plain, seed=0, directory=tmp_path / "titles")(split.test)
    written = (tmp_path / "titles" / "stage.json").stat().st_mtime_ns
    again = fit_title_knn(split, plain, seed=0, directory=tmp_path / "titles")(split.test)
    np.testing.assert_array_equal(first, again)
    assert (tmp_path / "titles" / "stage.json").stat().st_mtime_ns == written, "chosen twice"


def test_titles_that_tell_nothing_leave_item_knn_as_it_is(tmp_path: Path) -> None:
    """The titles of this world are numbers that no two titles share."""
    split = communities()
    plain = load_or_fit(split, seed=0, directory=tmp_path / "plain")
    scorer = fit_title_knn(split, plain, seed=0, directory=tmp_path / "titles")
    chosen, knn = (read_certificate(tmp_path / name) for name in ("titles", "plain"))
    assert chosen["valid_ndcg@10"] >= knn["valid_ndcg@10"]
    assert scorer(split.test).shape == (len(split.test), len(split.item_ids))


def test_vectors_of_similar_titles_are_near_and_equal_titles_share_one() -> None:
    split = series()
    vectors = title_vectors(split, 8, seed=0)
    assert vectors.shape == (30, 8) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    same = [float(vectors[3 * number] @ vectors[3 * number + 2]) for number in range(8)]
    other = [float(vectors[3 * number] @ vectors[3 * number + 5]) for number in range(8)]
    assert np.mean(same) > np.mean(other) + 0.2
    twins = replace(split, titles=["amber volume one", *split.titles[:-1]], title_class=np.array([0, *range(29)]))
    found = title_vectors(twins, 8, seed=0)
    np.testing.assert_array_equal(found[0], found[1])


def test_without_common_terms_vectors_are_zeros() -> None:
    assert not title_vectors(communities(), 8, seed=0).any()
