"""The verdict of a data set: what it says, that it is made once, and that small or wrong data are told so."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.training.small import shop
from training import diagnose, pipeline
from training.data.dataset import Dataset, clean_dataset, save_dataset
from training.diagnose import MAY_PAY, NOTHING, PAYS, TOO_LITTLE, advice, hints, in_words, main, verdict
from training.items import diagnosis
from training.run.inputs import Inputs, fingerprint, load_inputs
from training.run.recipes import get_recipe

Capture = pytest.CaptureFixture[str]
WEEK = 7 * 86_400


def dataset(sequences: Sequence[Sequence[int]], times: Sequence[int] | None = None) -> Dataset:
    """User n has the items of sequence n, one a week or at `times`. Users begin on different days."""
    events = [
        (f"u{user}", f"i{item}", (WEEK * step + 86_400 * (user % 7)) if times is None else times[step])
        for user, items in enumerate(sequences)
        for step, item in enumerate(items)
    ]
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    titles = [(f"i{item}", f"Thing {item}") for item in range(1 + max(map(max, sequences)))]
    items = pl.DataFrame(titles, schema=["item_id", "title"], orient="row")
    return clean_dataset("worlds", frame, items)[0]


def buying_again(num_users: int = 24, cycle: int = 14, length: int = 50) -> Dataset:
    """Each user buys the same fourteen things every fourteen weeks; the window has ten."""
    rng = np.random.default_rng(0)
    lists = [rng.permutation(60)[:cycle].tolist() for _ in range(num_users)]
    return dataset([[each[week % cycle] for week in range(length)] for each in lists])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diagnose") / "again"
    save_dataset(buying_again(), path)
    return path


def printed(capsys: Capture) -> tuple[dict[str, Any], str]:
    """The line of JSON, and the words."""
    output = capsys.readouterr()
    (line,) = output.out.splitlines()
    return json.loads(line), output.err


def test_memory_pays_where_people_buy_again(data: Path, capsys: Capture) -> None:
    assert main(["--data", str(data)]) == 0
    facts, words = printed(capsys)
    assert facts["verdict"] == PAYS and f"Verdict    {PAYS}" in words
    assert facts["memory"]["all"]["memory_minus_window"][1] > 0
    assert facts["advice"] == {"recipe": "cpu-small", "minutes": 25, "hide_seen": False}
    assert facts["returns"]["median_days"] == 98 and "after 98 days" in words
    assert facts["window"] == 10 and facts["size"]["users"] == 24


def test_the_result_is_kept_and_not_made_again(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--data", str(data), "--out", str(tmp_path / "out"), "--max-targets", "55"]
    assert main(command) == 0
    first, first_words = printed(capsys)
    assert first["targets_tried"] == 55
    monkeypatch.setattr(diagnose, "diagnose", lambda *_, **__: pytest.fail("made again"))
    assert main(command) == 0
    second, second_words = printed(capsys)
    del first["seconds"], second["seconds"]
    assert first == second and second_words.splitlines() == first_words.splitlines()[-len(second_words.splitlines()) :]


def test_the_pipeline_says_it_first_and_once(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: {"sft": {}})  # nothing is trained
    for is_first in (True, False):
        assert pipeline.main(["--data", str(data), "--out", str(tmp_path / "bundle")]) == 0
        facts, words = printed(capsys)
        assert facts["diagnosis"] == {"verdict": PAYS} and ("Verdict" in words) == is_first
    assert (tmp_path / "bundle.work" / "diagnosis" / "stage.json").is_file()
    assert pipeline.main(["--recipe", "demo", "--out", str(tmp_path / "demo")]) == 0
    assert "diagnosis" not in printed(capsys)[0], "the demo's data is known"


def test_less_time_means_fewer_targets(data: Path, capsys: Capture) -> None:
    assert main(["--data", str(data), "--seconds-budget", "0"]) == 0
    assert printed(capsys)[0]["targets_tried"] == diagnosis.FEWEST_TARGETS


def test_too_little_data_is_said(tmp_path: Path, capsys: Capture) -> None:
    save_dataset(shop(), tmp_path / "data")
    assert main(["--data", str(tmp_path / "data")]) == 0
    facts, words = printed(capsys)
    assert facts["verdict"] == TOO_LITTLE and facts["memory"] is None
    assert "Too little data" in words and "Nothing was measured" in words


def test_one_title_and_one_time_are_said(tmp_path: Path, capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    made = dataset([rng.permutation(12)[:8].tolist() for _ in range(60)], [1_000] * 8)
    same = made.items.with_columns(title=pl.lit("Thing"))
    save_dataset(Dataset("same", made.interactions, same), tmp_path / "data")
    assert main(["--data", str(tmp_path / "data"), "--cut", "leave-one-out"]) == 0
    facts, words = printed(capsys)
    assert facts["verdict"] in (TOO_LITTLE, NOTHING)
    assert "All titles are equal" in words and "one timestamp for all events" in words


def test_wrong_data_is_an_error_of_one_line(tmp_path: Path, capsys: Capture) -> None:
    save_dataset(dataset([[0, 1, 2]]), tmp_path / "short")
    for path in (tmp_path / "nothing", tmp_path / "short"):
        assert main(["--data", str(path)]) == 2
        output = capsys.readouterr()
        assert output.out == "" and output.err.startswith("DataError: ") and len(output.err.splitlines()) == 1


# ---- the rules


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ([0.02, 0.01, 0.03], PAYS),
        ([0.02, 0.0, 0.04], MAY_PAY),
        ([0.02, -0.01, 0.05], MAY_PAY),
        ([0.02, -0.03, 0.07], NOTHING),
        ([0.0, 0.0, 0.0], NOTHING),
        ([-0.02, -0.03, -0.01], NOTHING),
    ],
)
def test_the_verdict_follows_the_interval(interval: list[float], expected: str) -> None:
    assert verdict({"all": {"memory_minus_window": interval}}) == expected
    assert verdict(None) == TOO_LITTLE


@pytest.mark.parametrize(
    ("events", "titles", "recipe", "minutes"),
    [
        (500_000, 10_000, "cpu-small", 25),
        (127_000, 300_000, "cpu-small-titles", 20),
        (313_000, 300_000, "cpu-small-titles", 30),
        (5_000_000, 300_000, "gpu", None),
    ],
)
def test_the_recipe_follows_the_size(data: Path, events: int, titles: int, recipe: str, minutes: int | None) -> None:
    facts = {"size": {"events": events, "titles": titles}}
    chosen = advice(facts, load_inputs(data, "time").split)
    assert (chosen["recipe"], chosen["minutes"]) == (recipe, minutes)


def test_hints_name_what_is_unusual(data: Path) -> None:
    split = load_inputs(data, "time").split
    inputs = Inputs(buying_again(), split, fingerprint(split))
    facts = diagnose.diagnose(inputs, recipe=get_recipe("cpu-small"), seed=0, max_targets=60, seconds_budget=100.0)
    (hint,) = facts["hints"]
    assert hint == f"Only {facts['memory']['all']['users']} users have targets: the intervals are wide."
    facts["targets"]["with_older_share"] = 0.1
    facts["histories"]["within_a_day_share"] = 0.9
    facts["baskets"]["window_in_basket_share"] = 0.3
    facts["cold"]["no_event_share"] = 0.4
    facts["size"]["titles"] = 30
    assert len(hints(facts, 10 * facts["size"]["events"])) == 7
    assert all(line for line in in_words(facts))
