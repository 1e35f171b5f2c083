"""The bookshop is as described: every far echo has one source, and it is outside the window."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from model_store.text.history import clean_title
from training.data.dataset import Dataset, load_dataset
from training.data.splits import time_split
from training.data.synthetic import FAR_GAP, find_echoes, main, synthetic_dataset, synthetic_items

WINDOW = 10
Life = list[dict[str, Any]]


@pytest.fixture(scope="module")
def world() -> Dataset:
    return synthetic_dataset()


@pytest.fixture(scope="module")
def histories(world: Dataset) -> dict[str, Life]:
    events = world.interactions.join(world.items, on="item_id", how="left", maintain_order="left")
    return {str(user): life.to_dicts() for (user,), life in events.group_by("user_id", maintain_order=True)}


@pytest.fixture(scope="module")
def echoes(world: Dataset) -> pl.DataFrame:
    return find_echoes(world)


def echoes_with_lives(echoes: pl.DataFrame, histories: dict[str, Life]) -> Iterator[tuple[Life, int, int]]:
    return ((histories[user], position, source) for user, position, source in echoes.rows())


def test_titles_are_distinct_short_and_clean() -> None:
    titles = synthetic_items()["title"].to_list()
    assert len(set(titles)) == len(titles) == 180
    assert [t for t in titles if clean_title(t) != t] == []
    assert [t for t in titles if not 3 <= len(t.split()) <= 6] == []
    assert synthetic_items()["item_id"].is_unique().all()


def test_a_cue_is_always_followed_by_an_echo_of_its_theme(echoes: pl.DataFrame, histories: dict[str, Life]) -> None:
    for life, position, _ in echoes_with_lives(echoes, histories):
        assert life[position - 1]["kind"] == "cue"
        assert life[position - 1]["theme"] == life[position]["theme"]
    num_cues = sum(event["kind"] == "cue" for life in histories.values() for event in life)
    assert num_cues == echoes.height, "a cue occurs without an echo"


def test_an_echo_is_the_next_volume_after_its_source(echoes: pl.DataFrame, histories: dict[str, Life]) -> None:
    for life, position, source in echoes_with_lives(echoes, histories):
        assert life[source]["series"] == life[position]["series"]
        assert life[source]["volume"] + 1 == life[position]["volume"]


def test_a_reader_has_one_series_of_a_theme(histories: dict[str, Life]) -> None:
    for user, life in histories.items():
        series_of_theme = {(e["theme"], e["series"]) for e in life if e["kind"] == "series"}
        per_theme = Counter(theme for theme, _ in series_of_theme)
        assert max(per_theme.values(), default=0) <= 1, f"{user} has two series of one theme"


def test_a_series_has_one_echo(echoes: pl.DataFrame, histories: dict[str, Life]) -> None:
    returned = Counter(
        (life[position]["user_id"], life[position]["series"])
        for life, position, _ in echoes_with_lives(echoes, histories)
    )
    assert max(returned.values()) == 1, "the echo has more than one source"


def test_the_window_before_a_far_echo_contains_no_volume_of_its_series(
    echoes: pl.DataFrame, histories: dict[str, Life]
) -> None:
    for life, position, source in echoes_with_lives(echoes, histories):
        window = [event["series"] for event in life[max(0, position - WINDOW) : position]]
        if position - source >= FAR_GAP:
            assert life[position]["series"] not in window
        else:
            assert position - source < WINDOW and life[position]["series"] in window


def test_a_volume_is_a_start_or_in_a_streak_or_an_echo(echoes: pl.DataFrame, histories: dict[str, Life]) -> None:
    is_echo = {(user, position) for user, position, _ in echoes.rows()}
    for user, life in histories.items():
        begun: dict[str, int] = {}
        for position, event in enumerate(life):
            series = event["series"]
            if series and (user, position) not in is_echo:
                assert begun.get(series, position - 1) == position - 1, (
                    f"{user}, {position}: neither a start, nor in a streak, nor an echo"
                )
            if series:
                begun[series] = position


def test_the_cue_alone_does_not_tell_the_answer(world: Dataset, echoes: pl.DataFrame) -> None:
    position = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id").alias("position")
    targets = echoes.join(world.interactions.with_columns(position), on=["user_id", "position"])
    answers = targets.join(world.items, on="item_id").group_by("theme", "item_id").len()
    best_guess = answers.group_by("theme").agg(pl.col("len").max() / pl.col("len").sum())
    assert max(best_guess["len"].to_list()) < 0.2


def test_shares_are_as_documented(echoes: pl.DataFrame, histories: dict[str, Life]) -> None:
    lengths = {user: len(life) for user, life in histories.items()}
    long = {user: n for user, n in lengths.items() if n >= 24}
    assert all(3 <= n <= 15 or 24 <= n <= 44 for n in lengths.values())
    assert 0.12 <= 1 - len(long) / len(lengths) <= 0.18
    assert 0.09 <= echoes.filter(pl.col("user_id").is_in(list(long))).height / sum(long.values()) <= 0.12
    far = (echoes["position"] - echoes["source_position"]) >= FAR_GAP
    assert 0.45 <= far.sum() / echoes.height <= 0.55


def test_times_rise_over_two_years(histories: dict[str, Life]) -> None:
    times = {user: [event["timestamp"] for event in life] for user, life in histories.items()}
    for user, own in times.items():
        assert all(a < b for a, b in pairwise(own)), user
    days = (max(t[-1] for t in times.values()) - min(t[0] for t in times.values())) / 86400
    assert 700 <= days <= 730


def test_no_book_is_read_twice(histories: dict[str, Life]) -> None:
    for user, life in histories.items():
        books = [event["item_id"] for event in life if event["kind"] != "cue"]
        assert len(set(books)) == len(books), user


def test_the_test_period_has_many_far_echoes_of_known_items(world: Dataset, echoes: pl.DataFrame) -> None:
    split = time_split(world)
    gaps = {(user, position): position - source for user, position, source in echoes.rows()}
    assert len(split.item_ids) == 180 and split.popularity.min() >= 20
    for part, minimum in ((split.valid, 200), (split.test, 200)):
        keys = [(split.histories[t.user].user_id, t.position) for t in part]
        assert sum(gaps.get(key, 0) >= FAR_GAP for key in keys) >= minimum


def test_equal_seeds_give_equal_data_and_more_users_are_added_at_the_end() -> None:
    small, again, larger, other = (synthetic_dataset(n, seed) for n, seed in ((20, 1), (20, 1), (30, 1), (20, 2)))
    assert small.interactions.equals(again.interactions)
    first = larger.interactions.filter(pl.col("user_id").is_in(small.interactions["user_id"].implode()))
    assert first.equals(small.interactions)
    assert not small.interactions.equals(other.interactions)


def test_echoes_are_found_after_a_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--users", "20", "--seed", "3"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["users"] == 20
    assert find_echoes(load_dataset(tmp_path)).height == summary["echoes"] > summary["far_echoes"] > 0


def test_a_shop_without_readers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "x"), "--users", "0"]) == 2
    assert "needs at least 1 user" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
