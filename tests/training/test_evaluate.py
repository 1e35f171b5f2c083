"""The program `training.evaluate`: the schema of metrics.json, the cache, the commands, the errors."""

import json
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from model_store.bundle import Bundle
from model_store.files import read_manifest
from model_store.manifest import space_id
from tests.conftest import TITLES, small_voices
from tests.training.evaluations import memory_aware
from tests.training.small import METRICS, shop
from training import evaluate
from training.data.dataset import save_dataset
from training.evaluate import announcement, main, num_draws, rows_to_run
from training.rows import evaluation, latency
from training.rows.registry import ROWS, predict
from training.rows.scorers import SCORERS

TUNED = "lora-8 merged, memory-aware"
NEED_RECIPE = ("rella_extend", "trsr", "full_history")  # which the bundle of the tests does not have
OF_TUNED = ("generator_alone", "automr_plus", "no_memory", "automr_plus_lm", "state_memory", "voice_memory")
OF_VOICES = ("voice_near", "voice_follow", "voice_linear", "voice_alike", "voice_return", "mixture", "boosted")
EVERY = [row for row in ROWS if row not in (*OF_TUNED, *NEED_RECIPE, *OF_VOICES, "zero_shot")]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """SASRec takes a minute on any data, so item-kNN replaces it."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("sasrec_bce", "sasrec", "sasrec_titles"):
            patched.setitem(SCORERS, name, SCORERS["item_knn"])
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "shop"
    save_dataset(shop(), path, source={"format": "csv", "path": "raw data"})
    return path


FEW = ("--max-targets", "12", "--seeds", "2", "--draws", "3", "--time-targets", "2")


def arguments(bundle: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["--bundle", str(bundle), "--data", str(data), "--out", str(out), *FEW, *more]


def tuned(bundle: Path) -> Path:
    """Changes the manifest: the generator counts as tuned to read memory."""
    manifest = read_manifest(bundle)
    backbone = manifest.backbone.model_copy(update={"adapter": TUNED})
    space = space_id(backbone, manifest.prompt, manifest.memory)
    changed = manifest.model_copy(update={"backbone": backbone, "space": space})
    (bundle / "manifest.json").write_text(changed.model_dump_json())
    return bundle


def metrics_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return report


@pytest.fixture
def right(bundle_path: Path, data: Path, tmp_path: Path) -> list[str]:
    return arguments(bundle_path, data, tmp_path)


@pytest.fixture(scope="module")
def finished(bundle_path: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    assert main(arguments(bundle_path, data, out, "--models", "all")) == 0
    return out


def test_metrics_json_has_its_schema(finished: Path) -> None:
    report = metrics_of(finished)
    assert (report["data"], report["split"], report["targets"], report["seeds"]) == ("shop", "test", 12, 2)
    names = {"all", "memory", "warm", "memory_warm", "cold", "returning", "new"}
    assert {"all", "memory", "returning"} <= report["slices"].keys() <= names
    rows = set(EVERY)
    assert report["own"] == "automr"
    assert report["about_rows"].keys() == rows
    for name, part in report["slices"].items():
        assert part["rows"].keys() == rows, name
        assert part["minus_bigrec"].keys() == part["minus_bigrec_relative"].keys() == rows - {"bigrec"}, name
        assert part["own_minus"].keys() == part["own_minus_relative"].keys() == rows - {"automr"}, name
        for row in [*part["rows"].values(), *part["minus_bigrec"].values(), *part["own_minus"].values()]:
            assert list(row) == METRICS
            for mean, low, high in row.values():
                assert low - 1e-12 <= mean <= high + 1e-12


def test_metrics_json_is_strict_json(finished: Path) -> None:
    """An undefined value is null. NaN is not JSON, and parsers of other languages refuse it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in metrics.json")

    json.loads((finished / "metrics.json").read_text(), parse_constant=refuse)


def test_differences_are_differences(finished: Path) -> None:
    part = metrics_of(finished)["slices"]["all"]
    for row, metrics in part["minus_bigrec"].items():
        for name, (mean, _, _) in metrics.items():
            expected = part["rows"][row][name][0] - part["rows"]["bigrec"][name][0]
            assert mean == pytest.approx(expected), f"{row}, {name}"
    own = part["own_minus"]["bigrec"]["ndcg@5"]
    assert own == pytest.approx(part["minus_bigrec"]["automr"]["ndcg@5"]), "both are the same difference"


def test_each_row_has_its_draws_coverage_and_time(finished: Path) -> None:
    report = metrics_of(finished)
    about = report["about_rows"]
    assert about["random"]["draws"] == 3
    assert about["bigrec"]["draws"] == 1
    assert all(0 < facts["coverage"] <= 1 for facts in about.values())
    assert about["popularity"]["coverage"] == pytest.approx(10 / report["items"], abs=1e-6), (
        "all users get the same list of ten"
    )
    assert about["automr"]["latency"]["targets"] == 2
    assert about["popularity"]["latency"] is about["oracle"]["latency"] is None
    (chosen,) = about["item_knn"]["trained"]
    assert {"settings", "at_grid_end", "valid_ndcg@10"} <= chosen.keys()
    assert about["bigrec"]["trained"] == [], "the bundle's own generator"


def test_the_retriever_is_measured_if_the_oracle_is_evaluated(
    finished: Path, bundle_path: Path, data: Path, tmp_path: Path
) -> None:
    quality = metrics_of(finished)["retriever"]
    assert quality["targets"] == metrics_of(finished)["slices"]["memory"]["targets"]
    assert {"precision@1", "rank_correlation", "captured", "abstains", "distance", "gain_nats"} <= quality.keys()
    assert main(arguments(bundle_path, data, tmp_path, "--models", "bigrec,automr")) == 0
    assert metrics_of(tmp_path)["retriever"] is None, "without the oracle, no target needs expensive annotations"
    assert not (tmp_path / "retrieval_gain.png").exists()


def test_all_files_of_the_report_are_written(finished: Path) -> None:
    figures = {"ndcg.png", "differences.png", "retrieval_gain.png", "retrieval_distance.png"}
    assert {"index.html", "report.md", "metrics.json", *figures} <= {path.name for path in finished.iterdir()}


def test_finished_results_are_not_computed_again(
    finished: Path, bundle_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = metrics_of(finished)
    for module, name in ((evaluate, "predict"), (evaluation, "write_annotations"), (evaluate, "measure_targets")):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(latency, "predict", None)
    assert main(arguments(bundle_path, data, finished, "--models", "all")) == 0
    assert metrics_of(finished) == before


def test_only_new_rows_and_seeds_are_computed(
    finished: Path, bundle_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []

    def counted(evaluation: Any, row: str, seed: int) -> Any:
        calls.append((row, seed))
        return predict(evaluation, row, seed)

    monkeypatch.setattr(evaluate, "predict", counted)
    options = arguments(bundle_path, data, finished, "--draws", "4", "--models", "bigrec,random")
    assert main(options) == 0
    assert calls == [("random", 3)]
    calls.clear()
    assert main([*options, "--mask-seen"]) == 0
    assert calls == [("bigrec", 0), *(("random", seed) for seed in range(4))], "masked lists must be computed anew"


def test_the_random_row_has_draws_and_trained_rows_have_seeds() -> None:
    options = Namespace(draws=10, seeds=3)
    assert num_draws("random", options) == 10
    assert num_draws("bigrec", options) == 1
    assert all(num_draws(row, options) == 3 for row in ("sasrec_bce", "sasrec", "sasrec_titles"))


def test_the_commands_of_the_report_reproduce_it(
    finished: Path, bundle_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last command finds all results in the cache of the first run."""
    before = metrics_of(finished)
    prepare, pipeline, again = before["run"]["commands"]
    assert prepare == f"python -m training.prepare --format csv --source 'raw data' --out {data}"
    assert pipeline == f"python -m training.pipeline --data {data} --out {bundle_path} --cut time"
    program, *options = shlex.split(again.removeprefix("python -m "))
    assert program == "training.evaluate"
    monkeypatch.setattr(evaluate, "predict", None)
    assert main(options) == 0
    assert metrics_of(finished) == before


def test_the_last_line_is_json(
    bundle_path: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(bundle_path, data, tmp_path, "--models", "popularity, bigrec", "--split", "valid")) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["ndcg@10"].keys() == {"popularity", "bigrec"}
    assert metrics_of(tmp_path)["split"] == "valid"


def test_the_data_is_cut_as_for_training(make_bundle: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    """With another cut, targets would be data that the bundle was trained on."""
    assert main(arguments(make_bundle(cut="leave-one-out"), data, tmp_path, "--models", "popularity,automr")) == 0
    report = metrics_of(tmp_path)
    assert (report["cut"], report["targets"]) == ("leave-one-out", 6), "one target per user"
    assert report["slices"]["all"]["minus_bigrec"] == {}, "without the baseline there are no differences to it"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--models", "bigrec,gpt9"], "unknown models gpt9: choose among popularity, "),
        (["--bundle", "nowhere"], "nowhere: no manifest.json"),
        (["--data", "nowhere"], "nowhere: no such directory"),
        (["--device", "quantum"], "--device quantum"),
    ],
)
def test_user_errors_are_one_line(
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


def test_a_tuned_generator_has_another_row(bundle: Bundle) -> None:
    assert "automr" in rows_to_run("all", bundle)
    assert "automr_plus" not in rows_to_run("all", bundle)
    backbone = bundle.manifest.backbone.model_copy(update={"adapter": TUNED})
    bundle.manifest = bundle.manifest.model_copy(update={"backbone": backbone})
    assert "automr_plus" in rows_to_run("all", bundle)
    assert "automr" not in rows_to_run("all", bundle), "it trains a generator, and the bundle names no recipe"
    assert rows_to_run("automr,bigrec,automr_plus", bundle) == ["automr", "bigrec", "automr_plus"]


def test_rows_that_take_hours_are_computed_on_request_only(bundle: Bundle) -> None:
    rows, default = rows_to_run("all", bundle), rows_to_run("default", bundle)
    assert default == [row for row in rows if row not in ("sasrec_bce", "sasrec_titles")]
    assert rows_to_run("sasrec_bce", bundle) == ["sasrec_bce"]


def test_rows_that_tune_a_language_model_are_announced(bundle: Bundle) -> None:
    rows = ["item_knn", "bigrec", "rella_extend"]
    assert [line for line in announcement(rows, bundle) if "bigrec" in line] == []
    lines = announcement(rows, memory_aware(bundle))
    assert lines[1:] == ["  bigrec: windows of K titles", "  rella_extend: windows of 2K titles"]
    assert announcement(["item_knn"], bundle) == []


def test_without_voices_rows_that_differ_in_them_are_the_same_row(make_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(tuned(make_bundle()))
    assert rows_to_run("no_memory,voice_memory,generator_alone", bundle) == ["generator_alone"]
    assert rows_to_run("state_memory,automr_plus_lm,automr_plus", bundle) == ["automr_plus"]
    assert not {"no_memory", "automr_plus_lm", *OF_VOICES} & set(rows_to_run("all", bundle))


CERTIFICATE = {
    "spec": {},
    "memory_use": {"scale": 0.75, "discount": 0.25},
    "targets": {"teach": 30, "judge": 10},
    "valid_ndcg@10_window": 0.25,
    "valid_ndcg@10_memory": 0.375,
    "memory_minus_window": [0.125, 0.0625, 0.1875],
    "shares": {
        "overall": {"language_model": 0.5, "popularity": 0.1},
        "window": {"near": 0.1, "return": 0.05},
        "older": {"near": 0.05, "return": 0.2},
    },
}


def with_certificate(bundle: Path) -> Path:
    manifest = read_manifest(bundle)
    changed = manifest.model_copy(update={"provenance": {**manifest.provenance, "voices": CERTIFICATE}})
    (bundle / "manifest.json").write_text(changed.model_dump_json())
    return bundle


def test_a_bundle_with_voices_has_their_rows_and_facts_in_the_report(
    make_bundle: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    bundle = with_certificate(tuned(make_bundle(vocabulary="items", voices=small_voices(len(TITLES)))))
    memories = {"state_memory", "voice_memory", "random", "recent_beyond", "automr_plus", "oracle"}
    others = {"generator_alone", "automr_plus_lm", "no_memory", "voice_near", "voice_return", "mixture"}
    assert memories | others <= set(rows_to_run("all", Bundle.open(bundle)))
    assert main(arguments(bundle, data, tmp_path, "--models", ",".join([*memories, *others]))) == 0
    report = metrics_of(tmp_path)
    assert report["slices"]["all"]["minus_no_memory"].keys() == memories
    assert report["own"] == "automr_plus" and report["run"]["past_length"] == 12
    assert report["voices"] == {name: value for name, value in CERTIFICATE.items() if name != "spec"}
    assert "The voices" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "memory_worth.png").exists()


def test_a_bundle_without_voices_has_no_section_of_them(finished: Path) -> None:
    assert metrics_of(finished)["voices"] is None
    assert "## The voices" not in (finished / "report.md").read_text()
