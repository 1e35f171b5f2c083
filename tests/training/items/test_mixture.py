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


def test_a_weight_of_one_gives_both_the_same_say() -> None:
    near = sparse.csr_matrix(np.array([[0, 4, 4], [8, 0, 0], [0, 0, 0]], np.float32))
    alike = sparse.csr_matrix(np.array([[0, 0, 0.5], [0, 0, 0], [0.5, 0, 0]], np.float32))
    np.testing.assert_allclose(combined(near, alike, 1.0).toarray(), [[0, 4, 12], [8, 0, 0], [8, 0, 0]])
    assert combined(near, alike, 0.0) is near
    nothing = sparse.csr_matrix((3, 3), dtype=np.float32)
    assert combined(near, nothing, 1.0) is near, "titles that share no word"
    assert combined(nothing, alike, 1.0).nnz == 2, "nothing was read next to anything"


def test_items_of_one_title_share_a_row_and_one_of_them_is_a_neighbour() -> None:
    table = sparse.csr_matrix(np.array([[0, 0.5, 0.25], [0.5, 0, 0], [0.25, 0.75, 0]], np.float32))
    merged = as_neighbors(table, [1, 1, 2], np.array([5, 9, 1]))  # the first two items are one title
    np.testing.assert_allclose(merged.votes([1], 3, 1.0), [0, 0.5 / 0.75, 0.25 / 0.75], rtol=1e-6)
    np.testing.assert_allclose(merged.votes([2], 3, 1.0), [0, 1, 0], err_msg="the less popular one is never shown")


def test_editions_of_a_title_take_one_place_and_the_popular_one_stands_for_it() -> None:
    split = world([[0, 1, 2, 3, 3, 3]], train_ends=[6])
    split = replace(split, titles=["Crown", "Crown Guide", "Crown Atlas", "Crown"], title_class=np.array([0, 1, 2, 0]))
    table = alike_items(split).toarray()
    assert not table[:, 0].any() and table[1, 3] > 0, "the less popular edition is never shown"
    assert table[1, 2] > 0 and table[0, 3] == table[3, 0] == 0
    np.testing.assert_array_equal(table[0], table[3])


def test_what_the_past_is_worth_is_told_beforehand() -> None:
    def reached(ago: int) -> dict[str, Any]:
        split = partners(ago)
        table = sparse.csr_matrix((np.ones(50, np.float32), (np.arange(50), 50 + np.arange(50))), (100, 100))
        return long_against_recent(table, split, split.valid, (2, 12), keep_seen=True)

    old, new = reached(ago=8), reached(ago=1)
    assert old["valid_ndcg@10_recent"] == 0 and old["valid_ndcg@10_long"] > 0.2
    assert old["long_minus_recent"][1] > 0, "the interval of the difference holds zero"
    assert new["valid_ndcg@10_recent"] > 0.9 and new["long_minus_recent"][0] <= 0, "the last two say it all"


def partners(ago: int) -> Split:
    """Item i + 50 comes `ago` events after item i, at the end of a history; the events between say nothing."""
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(60):
        read = rng.permutation(50)[:12].tolist()
        sequences.append([*read, 50 + read[-ago]])
    return world(sequences, train_ends=[12] * 60)
