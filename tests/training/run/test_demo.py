"""The demo's readers stop where only an old interaction tells what comes next."""

import json
from collections import defaultdict
from typing import Any

import pytest

from service.http.schemas import Interaction
from training.data.synthetic import FAR_GAP
from training.run.demo import INTERACTIONS, demo_inputs, write_demo_interactions
from training.run.inputs import Inputs

WINDOW = 10


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return demo_inputs(200, seed=0)


@pytest.fixture(scope="module")
def events(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("bundle")
    write_demo_interactions(inputs, out)
    assert [path.name for path in out.iterdir()] == [INTERACTIONS], "a draft was left behind"
    return [json.loads(line) for line in (out / INTERACTIONS).read_text().splitlines()]


def test_the_service_takes_every_event(events: list[dict[str, Any]]) -> None:
    for event in events:
        Interaction.model_validate(event)


def test_readers_are_few_and_numbered_from_one(events: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(event["user_id"] for event in events))
    assert names == [f"reader-{number}" for number in range(1, len(names) + 1)]
    assert 10 <= len(names) <= 20, f"{len(names)} readers"


def test_each_reader_stops_right_before_a_far_echo(events: list[dict[str, Any]], inputs: Inputs) -> None:
    facts = {row["item_id"]: row for row in inputs.dataset.items.to_dicts()}
    lives: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        lives[event["user_id"]].append(facts[event["item_id"]])
    for reader, life in lives.items():
        assert life[-1]["kind"] == "cue", f"{reader} does not end with a cue"
        theme = life[-1]["theme"]
        of_series = [at for at, item in enumerate(life) if item["kind"] == "series" and item["theme"] == theme]
        assert of_series, f"{reader} never read a series of {theme}"
        assert len({life[at]["series"] for at in of_series}) == 1
        assert len(life) - of_series[-1] >= FAR_GAP > WINDOW, f"{reader} has the answer in the window"


def test_times_rise(events: list[dict[str, Any]]) -> None:
    lives: dict[str, list[int]] = defaultdict(list)
    for event in events:
        lives[event["user_id"]].append(event["timestamp"])
    for times in lives.values():
        assert times == sorted(set(times))


def test_equal_seeds_make_equal_demos(inputs: Inputs) -> None:
    assert demo_inputs(200, seed=0).fingerprint == inputs.fingerprint
    assert demo_inputs(200, seed=1).fingerprint != inputs.fingerprint
