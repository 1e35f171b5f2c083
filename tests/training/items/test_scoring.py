"""Lists from scores: the rule for equal scores, the mask, agreement with a plain sort."""

import numpy as np

from tests.training.worlds import world
from training.data.splits import Target
from training.items.scoring import ndcg_at_10, past_items, top_items, unseen
from training.run.metrics import popularity_tie_order


def test_equal_scores_go_to_the_more_popular_then_to_the_smaller_id() -> None:
    ties = popularity_tie_order(np.array([1, 5, 5, 9]), ["d", "c", "b", "a"])
    lists = top_items(np.array([[0, 0, 0, 0], [1, 0, 0, np.nan]], dtype=np.float32), ties, 4)
    assert lists == [[3, 2, 1, 0], [0, 2, 1, 3]], "ties by popularity, then id; NaN last"


def test_lists_agree_with_a_plain_sort() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(200, 30)).astype(np.float32)  # many ties
    ties = rng.permutation(30)
    for row, ranked in zip(scores, top_items(scores, ties, 10), strict=True):
        assert ranked == [item for _, _, item in sorted(zip(-row, ties, range(30), strict=True))][:10]


def test_a_masked_item_is_not_in_the_list() -> None:
    split = world([[0, 1, 2, 3, 4]], train_ends=[5])
    targets = [Target(0, 3), Target(0, 1)]
    mask = unseen(split, targets)
    assert mask.sum(axis=1).tolist() == [2, 4], "exactly the items before the target should be masked"
    lists = top_items(np.ones((2, 5), np.float32), np.arange(5), 3, mask)
    assert [sorted(ranked) for ranked in lists] == [[3, 4], [1, 2, 3]], "lists are shorter if fewer items are allowed"


def test_the_past_is_the_last_hundred_before_the_target() -> None:
    split = world([list(range(150))], train_ends=[150])
    assert past_items(split, Target(0, 120)).tolist() == list(range(20, 120))
    assert past_items(split, Target(0, 2)).tolist() == [0, 1]


def test_equal_scores_for_all_items_give_no_ndcg() -> None:
    alike = ndcg_at_10(np.zeros((5, 1000), np.float32), np.arange(5))
    assert alike.tolist() == [0] * 5, "settings with constant scores would be chosen"
    best = np.zeros((1, 30), np.float32)
    best[0, 7] = 1
    assert ndcg_at_10(best, np.array([7])).tolist() == [1]
