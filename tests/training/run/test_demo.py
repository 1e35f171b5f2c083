"""The events of each demo reader stop where the next title follows from an old interaction only."""

import json
from collections import defaultdict
from typing import Any

import polars as pl
import pytest

from service.http.schemas.interactions import Interaction
from training.data.dataset import Dataset
from training.data.questions import right_memories
from training.data.synthetic import FAR_GAP
from training.run.demo import INTERACTIONS, QUESTION, demo_inputs, demo_questions, write_demo_interactions
from training.run.inputs import Inputs

WINDOW = 10


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return demo_inputs(200, seed=0)


@pytest.fixture(scope="module")
def questions() -> Dataset:
    return demo_questions(100, seed=0)


@pytest.fixture(scope="module")
def written(inputs: Inputs, questions: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("bundle")
    write_demo_interactions(inputs, questions, out)
    assert [path.name for path in out.iterdir()] == [INTERACTIONS], "a draft was left behind"
    return [json.loads(line) for line in (out / INTERACTIONS).read_text().splitlines()]


@pytest.fixture(scope="module")
def events(written: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the readers."""
    return [event for event in written if event["user_id"].startswith("reader")]


def test_the_askers_stop_right_before_a_question_that_one_present_answers(
    written: list[dict[str, Any]], questions: Dataset
) -> None:
    askers = defaultdict(list)
    for event in written:
        if event["user_id"].startswith("asker"):
            askers[event["user_id"]].append(event)
    assert list(askers) == ["asker-1", "asker-2", "asker-3"]
    sources = set(right_memories(questions).filter(pl.col("query") == QUESTION)["source_id"])
    for asker, told in askers.items():
        presents = [event["item_id"] for event in told if "sister" in (event["query"] or "")]
        assert len(presents) == 1 and presents[0] in sources, asker


def test_the_service_accepts_every_event(written: list[dict[str, Any]]) -> None:
    for event in written:
        Interaction.model_validate(event)


def test_there_are_at_most_twenty_readers_numbered_from_one(events: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(event["user_id"] for event in events))
    assert names == [f"reader-{number}" for number in range(1, len(names) + 1)]
    assert 10 <= len(names) <= 20, f"{len(names)} readers"


def test_each_reader_stops_right_before_a_far_echo(events: list[dict[str, Any]], inputs: Inputs) -> None:
    facts = {row["item_id"]: row for row in inputs.dataset.items.to_dicts()}
    histories: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        histories[event["user_id"]].append(facts[event["item_id"]])
    for reader, items in histories.items():
        assert items[-1]["kind"] == "cue", f"{reader} does not end with a cue"
        theme = items[-1]["theme"]
        of_series = [at for at, item in enumerate(items) if item["kind"] == "series" and item["theme"] == theme]
        assert of_series, f"{reader} has no series of {theme}"
        assert len({items[at]["series"] for at in of_series}) == 1
        assert len(items) - of_series[-1] >= FAR_GAP > WINDOW, f"{reader} has the source of the echo in the window"


def test_times_rise(events: list[dict[str, Any]]) -> None:
    histories: dict[str, list[int]] = defaultdict(list)
    for event in events:
        histories[event["user_id"]].append(event["timestamp"])
    for times in histories.values():
        assert times == sorted(set(times))


def test_equal_seeds_give_equal_files(inputs: Inputs) -> None:
    assert demo_inputs(200, seed=0).fingerprint == inputs.fingerprint
    assert demo_inputs(200, seed=1).fingerprint != inputs.fingerprint
