"""Targets know only what was before their day; answers stay within their period."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.words.events import DAY_S
from training.data.dataset import DataError, Dataset, clean_dataset
from training.words.split import TEST, TRAIN, VALID, sample_query_targets, words_split

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]})
QUERY_SCHEMA = ["user_id", "item_id", "timestamp", "query"]

rows_strategy = st.lists(
    st.tuples(
        st.sampled_from(["u", "v"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 30).map(lambda hours: hours * 7200),
        st.sampled_from(["jazz", "dark jazz", "folk"]),
    ),
    min_size=12,
    max_size=60,
    unique=True,
)


def dataset(rows: list[tuple[str, str, int, str]], plain: list[tuple[str, str, int]] | None = None) -> Dataset:
    queries = pl.DataFrame(rows, schema=QUERY_SCHEMA, orient="row")
    interactions = pl.DataFrame(plain, schema=QUERY_SCHEMA[:3], orient="row") if plain else queries.drop("query")
    return clean_dataset("words", interactions, ITEMS, queries)[0]


@given(rows_strategy)
def test_a_history_ends_before_the_day_of_the_target(rows: list[tuple[str, str, int, str]]) -> None:
    try:
        split = words_split(dataset(rows))
    except DataError:
        return  # a period without queries
    for period in (VALID, TEST):
        for target in split.targets(period):
            history = split.history(target.user, target.timestamp)
            earlier = [row for row in rows if row[0] == split.user_ids[target.user]]
            earlier = [row for row in earlier if row[2] // DAY_S < target.timestamp // DAY_S]
            assert len(history) == len(set(earlier))
            assert all(event.timestamp // DAY_S < target.timestamp // DAY_S for event in history)


@given(rows_strategy)
def test_answers_are_what_the_user_chose_after_the_query_in_the_period(rows: list[tuple[str, str, int, str]]) -> None:
    try:
        split = words_split(dataset(rows))
    except DataError:
        return
    valid, test = split.cuts
    spans = {TRAIN: (0, valid), VALID: (valid, test), TEST: (test, 10**9)}
    for period, (first, end) in spans.items():
        expected: dict[tuple[str, str], set[str]] = {}
        for user, item, time, query in rows:
            if first <= time < end:
                expected.setdefault((user, query), set()).add(item)
        found = {
            (split.user_ids[target.user], target.query): {split.item_ids[row] for row in target.answers}
            for target in split.targets(period)
        }
        assert found == expected


def test_interactions_without_words_are_history_and_no_targets() -> None:
    rows = [("u", "a", day * DAY_S, "jazz") for day in range(0, 40, 2)]
    split = words_split(
        dataset(
            rows,
            plain=[
                (
                    "u",
                    "b",
                    day * DAY_S,
                )
                for day in range(1, 40, 2)
            ],
        )
    )
    target = split.targets(TEST)[0]
    history = split.history(target.user, target.timestamp)
    assert {event.query for event in history} == {"jazz", ""}
    assert target.answers.tolist() == [0]


def test_a_data_set_without_queries_says_so() -> None:
    plain = clean_dataset("plain", dataset([("u", "a", 1, "x")]).interactions, ITEMS)[0]
    with pytest.raises(DataError, match=r"queries\.parquet"):
        words_split(plain)


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    split = words_split(dataset([("u", "a", day * DAY_S, f"query {day}") for day in range(100)]))
    targets = split.targets(TRAIN)
    small, large = sample_query_targets(targets, 10, 0), sample_query_targets(targets, 30, 0)
    assert {target.query for target in small} < {target.query for target in large}
