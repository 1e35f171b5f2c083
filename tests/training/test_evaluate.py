"""The evaluation as a program: the schema of metrics.json, its cache, its errors."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.bundle import Bundle
from tests.training.small import shop
from training import evaluate
from training.data.dataset import save_dataset
from training.data.splits import time_split
from training.evaluate import main, rows_to_run, score, slices
from training.metrics import metric_names
from training.rows import ROWS, predict

TUNED = "lora-8 merged, memory-aware"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "shop"
    save_dataset(shop(), path)
    return path


def arguments(bundle: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["--bundle", str(bundle), "--data", str(data), "--out", str(out), "--max-targets", "12", *more]


def metrics_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return report


@pytest.fixture
def right(bundle_path: Path, data: Path, tmp_path: Path) -> list[str]:
    return arguments(bundle_path, data, tmp_path)


@pytest.fixture(scope="module")
def finished(bundle_path: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    assert main(arguments(bundle_path, data, out, "--seeds", "2")) == 0
    return out


def test_metrics_json_has_its_schema(finished: Path) -> None:
    report = metrics_of(finished)
    assert (report["data"], report["split"], report["targets"], report["seeds"]) == ("shop", "test", 12, 2)
    assert {"all", "memory"} <= report["slices"].keys() <= {"all", "memory", "warm"}
    rows = {row for row in ROWS if row != "automr_plus"}
    for name, part in report["slices"].items():
        assert part["rows"].keys() == rows, name
        assert part["minus_bigrec"].keys() == rows - {"bigrec"}, name
        for row in [*part["rows"].values(), *part["minus_bigrec"].values()]:
            assert list(row) == metric_names()
            for mean, low, high in row.values():
                assert low <= mean <= high


def test_differences_are_differences(finished: Path) -> None:
    part = metrics_of(finished)["slices"]["all"]
    for row, metrics in part["minus_bigrec"].items():
        for name, (mean, _, _) in metrics.items():
            expected = part["rows"][row][name][0] - part["rows"]["bigrec"][name][0]
            assert mean == pytest.approx(expected), f"{row}, {name}"


def test_what_was_predicted_is_not_predicted_again(
    finished: Path, bundle_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = metrics_of(finished)
    monkeypatch.setattr(evaluate, "predict", None)
    monkeypatch.setattr(evaluate, "write_shards", None)
    assert main(arguments(bundle_path, data, finished, "--seeds", "2")) == 0
    assert metrics_of(finished) == before


def test_another_row_or_seed_computes_itself_alone(
    finished: Path, bundle_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def counted(contest: Any, row: str, seed: int) -> Any:
        asked.append((row, seed))
        return predict(contest, row, seed)

    monkeypatch.setattr(evaluate, "predict", counted)
    options = arguments(bundle_path, data, finished, "--seeds", "3", "--models", "bigrec,random")
    assert main(options) == 0
    assert asked == [("random", 2)]
    asked.clear()
    assert main([*options, "--mask-seen"]) == 0
    assert asked == [("bigrec", 0), ("random", 0), ("random", 1), ("random", 2)], "masked lists are other lists"


def test_the_last_line_is_json(
    bundle_path: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(bundle_path, data, tmp_path, "--models", "popularity, bigrec", "--split", "valid")) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["ndcg@10"].keys() == {"popularity", "bigrec"}
    assert metrics_of(tmp_path)["split"] == "valid"


def test_the_data_is_cut_as_it_was_for_training(make_bundle: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    """Another cut would put what the bundle was trained on among the targets."""
    assert main(arguments(make_bundle(cut="leave-one-out"), data, tmp_path, "--models", "popularity,automr")) == 0
    report = metrics_of(tmp_path)
    assert (report["cut"], report["targets"]) == ("leave-one-out", 6), "one target per user"
    assert report["slices"]["all"]["minus_bigrec"] == {}, "no baseline, no differences"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--models", "bigrec,gpt9"], "unknown models gpt9: choose among popularity, "),
        (["--bundle", "nowhere"], "nowhere: no manifest.json"),
        (["--data", "nowhere"], "nowhere: no such directory"),
        (["--device", "quantum"], "--device quantum"),
    ],
)
def test_mistakes_are_one_line(
    more: Sequence[str],
    message: str,
    right: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*right, *more]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = [line for line in output.err.splitlines() if "Error" in line or "NotFound" in line]
    assert message in line


def test_a_tuned_generator_is_another_row(bundle: Bundle) -> None:
    assert "automr" in rows_to_run("all", bundle)
    assert "automr_plus" not in rows_to_run("all", bundle)
    backbone = bundle.manifest.backbone.model_copy(update={"adapter": TUNED})
    bundle.manifest = bundle.manifest.model_copy(update={"backbone": backbone})
    assert "automr_plus" in rows_to_run("all", bundle)
    assert "automr" not in rows_to_run("all", bundle)
    assert rows_to_run("automr,bigrec,automr_plus", bundle) == ["automr_plus", "bigrec"]


def test_scores_by_item_and_by_title() -> None:
    split = time_split(shop())
    target = split.test[0]
    truth = int(split.histories[target.user].items[target.position])
    twin = (truth + 1) % len(split.titles)
    split.title_class[twin] = split.title_class[truth]
    metrics = score([[twin, truth]], [target], split)
    assert metrics["recall@1"].tolist() == [0]
    assert metrics["recall@5"].tolist() == [1]
    assert metrics["recall@1/title"].tolist() == [1], "an item of the same title is right by title"


def test_slices_say_who_has_memory_and_whose_truth_was_trained_on() -> None:
    split = time_split(shop())
    truths = [int(split.histories[target.user].items[target.position]) for target in split.test]
    split.popularity[truths[0]] = 0
    examples = [Namespace(memory_positions=np.arange(number % 2)) for number in range(len(truths))]
    found = slices(Namespace(split=split, targets=split.test, examples=examples))  # type: ignore[arg-type]
    assert found["all"].all()
    assert found["memory"].tolist() == [number % 2 == 1 for number in range(len(truths))]
    assert found["warm"].tolist() == [truth != truths[0] for truth in truths]
