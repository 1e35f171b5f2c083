"""The table of item neighbours, and what neighbours alone gain from a longer history."""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from tests.training.worlds import world
from training.data.splits import Split
from training.items.mixture import (
    alike_items,
    as_neighbors,
    combined,
    long_against_recent,
)


def test_with_weight_one_both_parts_have_the_same_median_sum() -> None:
    near = sparse.csr_matrix(np.array([[0, 4, 4], [8, 0, 0], [0, 0, 0]], np.float32))
    alike = sparse.csr_matrix(np.array([[0, 0, 0.5], [0, 0, 0], [0.5, 0, 0]], np.float32))
    np.testing.assert_allclose(combined(near, alike, 1.0).toarray(), [[0, 4, 12], [8, 0, 0], [8, 0, 0]])
    assert combined(near, alike, 0.0) is near
    nothing = sparse.csr_matrix((3, 3), dtype=np.float32)
    assert combined(near, nothing, 1.0) is near, "no titles share a word"
    assert combined(nothing, alike, 1.0).nnz == 2, "there is no co-occurrence"


def test_items_of_one_title_share_a_row_and_the_popular_one_is_the_neighbour() -> None:
    table = sparse.csr_matrix(np.array([[0, 0.5, 0.25], [0.5, 0, 0], [0.25, 0.75, 0]], np.float32))
    merged = as_neighbors(table, [1, 1, 2], np.array([5, 9, 1]))  # the first two items have one title
    np.testing.assert_allclose(merged.votes([1], 3, 1.0), [0, 0.5 / 0.75, 0.25 / 0.75], rtol=1e-6)
    np.testing.assert_allclose(
        merged.votes([2], 3, 1.0), [0, 1, 0], err_msg="the less popular item is never a neighbour"
    )


def test_of_items_with_one_title_the_popular_one_is_the_neighbour() -> None:
    split = world([[0, 1, 2, 3, 3, 3]], train_ends=[6])
    split = replace(split, titles=["Crown", "Crown Guide", "Crown Atlas", "Crown"], title_class=np.array([0, 1, 2, 0]))
    table = alike_items(split).toarray()
    assert not table[:, 0].any() and table[1, 3] > 0, "the less popular item is never a neighbour"
    assert table[1, 2] > 0 and table[0, 3] == table[3, 0] == 0
    np.testing.assert_array_equal(table[0], table[3])


def test_the_gain_of_a_longer_history_is_measured() -> None:
    def reached(ago: int) -> dict[str, Any]:
        split = partners(ago)
        table = sparse.csr_matrix((np.ones(50, np.float32), (np.arange(50), 50 + np.arange(50))), (100, 100))
        return long_against_recent(table, split, split.valid, (2, 12), keep_seen=True)

    old, new = reached(ago=8), reached(ago=1)
    assert old["valid_ndcg@10_recent"] == 0 and old["valid_ndcg@10_long"] > 0.2
    assert old["long_minus_recent"][1] > 0, "the interval of the difference contains zero"
    assert new["valid_ndcg@10_recent"] > 0.9 and new["long_minus_recent"][0] <= 0, "the last two events are enough"


def partners(ago: int) -> Split:
    """Each history ends with item i + 50, `ago` events after item i; the events between are random."""
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(60):
        read = rng.permutation(50)[:12].tolist()
        sequences.append([*read, 50 + read[-ago]])
    return world(sequences, train_ends=[12] * 60)
