"""Splits agree with their description, written here as plain loops."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from model_store.text.history import tie_key
from tests.training.worlds import communities
from training.data.dataset import DataError, Dataset, clean_dataset
from training.data.splits import Split, Target, leave_one_out, sample_targets, time_split

SMALL = {"min_item_count": 2, "long_user_length": 6, "min_earlier": 3}
Event = tuple[str, str, int]
Named = tuple[str, int, str]  # user id, position, item id


@st.composite
def worlds(draw: st.DrawFn) -> list[Event]:
    """Small data sets in which equal times, repeats, rare items and short histories are frequent."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_users, num_items, num_times = (draw(st.integers(low, high)) for low, high in ((1, 5), (3, 40), (12, 60)))
    return [
        (f"u{rng.integers(num_users) ** 2}", f"i{rng.integers(num_items)}", int(rng.integers(num_times)))
        for _ in range(draw(st.integers(40, 90)))
    ]


def dataset_of(events: list[Event]) -> Dataset:
    ids = sorted({item for _, item, _ in events})
    items = pl.DataFrame({"item_id": ids, "title": [f"Title {item}" for item in ids], "shelf": range(len(ids))})
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    return clean_dataset("small", frame, items)[0]


def histories_of(events: list[Event], min_item_count: int) -> dict[str, list[tuple[int, str]]]:
    distinct = set(events)
    counts = Counter(item for _, item, _ in distinct)
    histories = defaultdict(list)
    for user, item, time in sorted(distinct, key=lambda e: (e[0], e[2], tie_key(e[0], e[1]))):
        if counts[item] >= min_item_count:
            histories[user].append((time, item))
    return dict(sorted(histories.items()))


def named(split: Split, targets: list[Target]) -> list[Named]:
    def name(target: Target) -> Named:
        history = split.histories[target.user]
        return history.user_id, target.position, split.item_ids[history.items[target.position]]

    return [name(target) for target in targets]


def split_or_reject(dataset: Dataset) -> Split:
    try:
        return time_split(dataset, **SMALL)
    except DataError:
        assume(False)
        raise


@given(worlds())
def test_the_time_split_agrees_with_plain_loops(events: list[Event]) -> None:
    split = split_or_reject(dataset_of(events))
    histories = histories_of(events, 2)
    long = {user for user, history in histories.items() if len(history) >= 6}
    times = sorted(time for user in long for time, _ in histories[user])
    valid_from, test_from = times[int(0.8 * len(times))], times[int(0.9 * len(times))]

    def expected(low: float, high: float) -> Iterator[Named]:
        for user, history in histories.items():
            for position, (time, item) in enumerate(history):
                if user in long and position >= 3 and low <= time < high:
                    yield user, position, item

    assert named(split, split.train) == list(expected(-np.inf, valid_from))
    assert named(split, split.valid) == list(expected(valid_from, test_from))
    assert named(split, split.test) == list(expected(test_from, np.inf))
    assert [h.user_id for h in split.histories] == list(histories)
    for history in split.histories:
        own = histories[history.user_id]
        assert [(t, split.item_ids[i]) for t, i in zip(history.timestamps, history.items, strict=True)] == own
        assert history.train_end == sum(time < valid_from for time, _ in own)
        assert history.is_long == (history.user_id in long)
    in_train = Counter(item for h in histories.values() for time, item in h if time < valid_from)
    assert split.popularity.tolist() == [in_train[item] for item in split.item_ids]


@given(worlds())
def test_the_three_periods_share_no_target_and_no_time(events: list[Event]) -> None:
    split = split_or_reject(dataset_of(events))
    parts = [split.train, split.valid, split.test]
    assert len({t for part in parts for t in part}) == sum(map(len, parts))
    times = [{int(split.histories[t.user].timestamps[t.position]) for t in part} for part in parts]
    assert max(times[0], default=-1) < min(times[1]) <= max(times[1]) < min(times[2])


@given(worlds())
def test_item_columns_are_aligned(events: list[Event]) -> None:
    dataset = dataset_of(events)
    split = split_or_reject(dataset)
    facts = {row["item_id"]: row for row in dataset.items.to_dicts()}
    assert split.item_ids == sorted(split.item_ids)
    for row, item in enumerate(split.item_ids):
        assert split.titles[row] == facts[item]["title"]
        assert split.attributes[row] == {"shelf": facts[item]["shelf"]}


@given(worlds())
def test_leave_one_out_takes_the_last_two(events: list[Event]) -> None:
    try:
        split = leave_one_out(dataset_of(events), min_item_count=2, min_user_length=4, min_earlier=1)
    except DataError:
        assume(False)
        raise
    histories = histories_of(events, 2)
    long = {user: len(history) for user, history in histories.items() if len(history) >= 4}
    assert [t[:2] for t in named(split, split.test)] == [(user, n - 1) for user, n in long.items()]
    assert [t[:2] for t in named(split, split.valid)] == [(user, n - 2) for user, n in long.items()]
    assert [t[:2] for t in named(split, split.train)] == [(u, p) for u, n in long.items() for p in range(1, n - 2)]
    for history in split.histories:
        length = len(history.items)
        assert history.train_end == (length - 2 if history.user_id in long else length)


def steady_users(num_users: int, length: int) -> Dataset:
    return dataset_of([(f"u{u}", f"i{(u + t) % 5}", t) for u in range(num_users) for t in range(length)])


def test_defaults_are_those_of_the_method() -> None:
    split = time_split(steady_users(10, 40))
    assert {t.position for t in split.train} == set(range(10, 32))
    assert {t.position for t in split.valid} == set(range(32, 36))
    assert {t.position for t in split.test} == set(range(36, 40))
    assert (split.name, len(split.test), len(split.histories)) == ("time", 40, 10)


def test_rare_items_are_removed_once() -> None:
    """Without i-rare a user is too short; the user's other items then have fewer than 5 events, but are kept."""
    events = [(f"u{u}", f"i{t % 5}", t) for u in range(4) for t in range(40)]
    events += [("short", "rare", 100 + t) for t in range(4)] + [("short", "i0", 99)]
    split = time_split(dataset_of(events))
    assert "rare" not in split.item_ids
    assert [len(h.items) for h in split.histories if h.user_id == "short"] == [1]


def test_equal_titles_share_a_class() -> None:
    dataset = steady_users(10, 40)
    renamed = dataset.items.with_columns(
        title=pl.when(pl.col("item_id").is_in(["i1", "i3"])).then(pl.lit("Same")).otherwise("title")
    )
    split = time_split(Dataset("x", dataset.interactions, renamed))
    classes = dict(zip(split.item_ids, split.title_class.tolist(), strict=True))
    assert classes["i1"] == classes["i3"]
    assert len(set(classes.values())) == 4


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (dataset_of([("u", "i", 1)]), "no item has 5 interactions"),
        (steady_users(3, 10), "no user has 20 interactions.*the longest history has 10"),
        (dataset_of([("u", f"i{n % 4}", 7) for n in range(30)] * 9), "no item has 5"),
        (dataset_of([(f"u{u}", f"i{n}", 7) for u in range(9) for n in range(30)]), "leaves nothing to train"),
        (dataset_of([(f"u{u}", f"i{n}", n // 29) for u in range(9) for n in range(30)]), "leaves nothing to"),
    ],
    ids=["one event", "short users", "one time, repeated", "one time", "two times"],
)
def test_too_little_data_says_what_is_missing(dataset: Dataset, message: str) -> None:
    with pytest.raises(DataError, match=message):
        time_split(dataset)


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 5))
def test_samples_are_ordered_nested_and_reproducible(count: int, limit: int, seed: int) -> None:
    targets = [Target(0, position) for position in range(count)]
    sample = sample_targets(targets, limit, seed)
    assert len(sample) == min(count, limit)
    assert sample == sorted(sample, key=lambda t: t.position) == sample_targets(targets, limit, seed)
    assert set(sample) <= set(sample_targets(targets, limit + 3, seed))


def test_without_a_limit_all_targets_are_taken() -> None:
    targets = [Target(0, 1), Target(0, 2)]
    assert sample_targets(targets, None, 0) == targets


def test_repeats_are_counted_in_the_train_period_only() -> None:
    split = communities()
    assert not split.has_repeats
    late = [replace(each, items=np.append(each.items, each.items[0])) for each in split.histories]
    assert not replace(split, histories=late).has_repeats, "repeats after the train period were counted"
    early = [replace(each, items=np.append(each.items[0], each.items), train_end=9) for each in split.histories]
    assert replace(split, histories=early).has_repeats
