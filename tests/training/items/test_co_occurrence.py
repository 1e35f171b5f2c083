"""Co-occurrence counts and vectors: from the train period only, reproducible, near for items of one community."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from tests.training.small import diary
from tests.training.worlds import world
from training.data.splits import History, Split
from training.items.co_occurrence import co_occurrence_vectors, co_occurrences, keep_largest

LEFT, RIGHT, ALONE = range(0, 6), range(6, 12), 12


def two_communities(seed: int = 0, *, later: int = 0) -> Split:
    """Twenty users in two communities, and one user who has only the item `ALONE`. After the train period events are
    random and depend on `later`."""
    rng, chaos = np.random.default_rng(seed), np.random.default_rng(100 + later)
    orders = [rng.choice(LEFT if user % 2 else RIGHT, 8) for user in range(20)]
    histories = [history(user, [*order, *chaos.integers(13, size=5)], 8) for user, order in enumerate(orders)]
    return replace(
        diary((13,)),
        titles=[f"Title {row}" for row in range(13)],
        histories=[*histories, history(20, [ALONE], 1)],
        valid=[],
        test=[],
        train=[],
    )


def history(user: int, items: list[int], train_end: int) -> History:
    return History(f"u{user}", np.array(items, dtype=np.int32), np.arange(len(items)), train_end, True)


def likeness(vectors: np.ndarray, some: range, others: range) -> float:
    return float(np.mean([vectors[one] @ vectors[other] for one in some for other in others if one != other]))


@pytest.mark.parametrize("dimension", [4, 8])
def test_items_of_one_community_are_near_each_other(dimension: int) -> None:
    vectors = co_occurrence_vectors(two_communities(), dimension, seed=0)
    assert vectors.shape == (13, dimension) and vectors.dtype == np.float32
    assert min(likeness(vectors, LEFT, LEFT), likeness(vectors, RIGHT, RIGHT)) > 0.3 + likeness(vectors, LEFT, RIGHT)
    np.testing.assert_allclose(np.linalg.norm(vectors[:ALONE], axis=1), 1, rtol=1e-5)
    assert not vectors[ALONE].any(), "an item without co-occurrence has a vector"


def test_only_the_train_period_is_read() -> None:
    first, second = (co_occurrence_vectors(two_communities(later=later), 4, seed=0) for later in (0, 1))
    assert first.tobytes() == second.tobytes(), "events after the train period are used"


def test_equal_seeds_give_equal_bytes() -> None:
    first, second = (co_occurrence_vectors(two_communities(), 4, seed=7) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_dimensions_beyond_the_number_of_items_are_zero() -> None:
    vectors = co_occurrence_vectors(two_communities(), 40, seed=0)
    assert vectors.shape == (13, 40) and not vectors[:, 13:].any() and np.isfinite(vectors).all()


@pytest.mark.parametrize("lengths", [(1, 1, 1), (1,), (2,), (3,), (2, 1)])
def test_very_small_data_give_zeros_or_unit_vectors(lengths: tuple[int, ...]) -> None:
    vectors = co_occurrence_vectors(diary(lengths, train_share=1.0), 8, seed=0)
    norms = np.linalg.norm(vectors, axis=1)
    assert vectors.shape == (sum(lengths), 8) and np.all((norms == 0) | (abs(norms - 1) < 1e-5))


@pytest.mark.parametrize(
    ("span", "expected"),
    [(None, [[0, 2, 1], [2, 0, 1], [1, 1, 0]]), (1, [[0, 2, 0], [2, 0, 1], [0, 1, 0]])],
)
def test_pairs_are_counted_within_the_span_and_the_train_period(span: int | None, expected: list[list[int]]) -> None:
    split = world([[0, 1, 2], [1, 0], [0, 2]], train_ends=[3, 2, 1])
    counts = co_occurrences(split, span).toarray()
    assert counts.tolist() == expected, "the third user's second event is after the train period"


def test_the_largest_values_of_each_row_are_kept() -> None:
    rng = np.random.default_rng(0)
    dense = rng.permutation(200).reshape(10, 20).astype(np.float32) * (rng.random((10, 20)) < 0.6)
    kept = keep_largest(sparse.csr_matrix(dense), 5)
    expected = np.where(dense >= np.sort(dense, axis=1)[:, -5:][:, :1], dense, 0)
    np.testing.assert_array_equal(kept.toarray(), expected)
    assert (np.diff(kept.indptr) <= 5).all(), "a row has more than five stored values"
