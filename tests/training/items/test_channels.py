"""Tables of near items know what the train period knows, and the facts of items are its counts."""

from dataclasses import replace

import numpy as np
import pytest

from model_store.voices.tables import normalised
from tests.training.worlds import chain, world
from training.data.splits import History, Split
from training.items.channels import TrainEvents, channel_tables, following_items, item_facts, near_items, over_tokens
from training.items.co_occurrence import keep_largest

DAY = 86_400


def with_times(split: Split, times: list[list[int]]) -> Split:
    """The same histories at these days."""
    histories = [
        History(each.user_id, each.items, np.array(days, dtype=np.int64) * DAY, each.train_end, each.is_long)
        for each, days in zip(split.histories, times, strict=True)
    ]
    return replace(split, histories=histories)


def test_tables_are_distributions_over_tokens_and_the_chain_is_found() -> None:
    split = chain()
    tables = {name: normalised(table) for name, table in channel_tables(split, np.arange(1, 41)).items()}
    for name, table in tables.items():
        sums = np.asarray(table.sum(axis=1)).ravel()
        assert table.shape == (41, 41) and np.isin(sums.round(4), (0, 1)).all(), name
        assert not table.diagonal().any(), f"{name}: an item is near itself"
    assert (tables["follow"][5].toarray().argmax(), tables["follow"][40].toarray().argmax()) == (6, 1)


def test_events_of_the_valid_and_test_period_are_not_read() -> None:
    split = chain()
    changed = [replace_end(each) for each in split.histories]
    tables = (channel_tables(each, np.arange(1, 41)) for each in (split, replace(split, histories=changed)))
    for (name, one), other in zip(next(tables).items(), next(tables).values(), strict=True):
        assert (one != other).nnz == 0, name


def replace_end(history: History) -> History:
    items = history.items.copy()
    items[history.train_end :] = 0
    return History(history.user_id, items, history.timestamps, history.train_end, history.is_long)


def test_a_basket_follows_the_basket_before_as_a_whole() -> None:
    split = with_times(world([[0, 1, 2, 3, 4]], train_ends=[5]), [[1, 1, 2, 2, 2]])
    found = following_items(TrainEvents.of(split), split.popularity).toarray() > 0
    assert found[0].tolist() == found[1].tolist() == [False, False, True, True, True]
    assert not found[2:].any()


def test_the_order_inside_a_basket_changes_no_table() -> None:
    one = with_times(world([[0, 1, 2, 3], [1, 0, 3, 2]], train_ends=[4, 4]), [[1, 1, 2, 2]] * 2)
    other = with_times(world([[1, 0, 3, 2], [0, 1, 2, 3]], train_ends=[4, 4]), [[1, 1, 2, 2]] * 2)
    for make in (near_items, following_items):
        tables = [make(TrainEvents.of(split), split.popularity).toarray() for split in (one, other)]
        np.testing.assert_allclose(tables[0], tables[1], err_msg=make.__name__)


def test_rates_and_intervals_of_return() -> None:
    """Item 0 comes back after ten days, twice; nobody comes back to the others."""
    split = with_times(world([[0, 1, 0, 2, 0]], train_ends=[5]), [[0, 5, 10, 12, 20]])
    facts = item_facts(split, np.array([1, 2, 3]))
    assert facts.popularity.tolist() == [0, 3, 1, 1]
    assert facts.return_rate[1] > facts.return_rate[2] == facts.return_rate[3]
    np.testing.assert_allclose(np.expm1(facts.interval[1]), 10, rtol=1e-5)
    assert facts.return_rate[1] == pytest.approx((2 + 5 * 0.4) / (3 + 5))


def test_items_of_one_title_share_a_row_and_the_popular_one_is_the_neighbour() -> None:
    near = keep_largest(near_items(TrainEvents.of(chain(num_items=4)), np.ones(4, dtype=np.int64)), 4)
    merged = over_tokens(near, np.array([1, 1, 2, 3]), np.array([5, 9, 1, 1]))
    assert merged.shape == (4, 4)
    np.testing.assert_allclose(merged[1, 1], near[0, 1] + near[1, 1])
    np.testing.assert_allclose(merged[2, 1], near[2, 1])
