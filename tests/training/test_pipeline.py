"""All stages: from data to a bundle; finished stages do not run again, changed ones do; user errors are one line."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from model_store.answers import Query
from model_store.bundle import Bundle
from model_store.inference import recommend
from tests.conftest import TITLES, make_model, make_tokenizer
from tests.training.small import RECENT, TINY, shop
from training import annotate, build_index, train_retriever
from training.data.dataset import save_dataset
from training.data.synthetic import synthetic_dataset
from training.lm import tuning
from training.pipeline import main
from training.run import recipes
from training.run.demo import INTERACTIONS

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def tiny_recipes() -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(recipes.RECIPES, "tiny", TINY)
        patched.setitem(recipes.RECIPES, "more-beams", replace(TINY, num_beams=3))
        patched.setitem(recipes.RECIPES, "tiny-items", replace(TINY, vocabulary="items", dropout=0.1))
        patched.setitem(recipes.RECIPES, "tiny-demo", replace(TINY, synthetic_users=40))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "bookshop"
    save_dataset(synthetic_dataset(num_users=40), path)
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and its work directory. Tests that change something must copy it."""
    out = tmp_path_factory.mktemp("finished") / "bundle"
    assert run(data, out) == 0
    return out.parent


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "bundle"


def run(data: Path, out: Path, *more: str) -> int:
    recipe = [] if "--recipe" in more else ["--recipe", "tiny"]
    return main(["--data", str(data), "--out", str(out), "--device", "cpu", *recipe, *more])


def stages_that_ran(monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, *more: str) -> list[str]:
    """The stages that did their work, found by a function that a stage calls only if it is not done."""
    ran: list[str] = []

    def watch(stage: str, module: Any, function: str) -> None:
        original = getattr(module, function)

        def watched(*args: Any, **kwargs: Any) -> Any:
            ran.append(stage)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, function, watched)

    watch("sft", tuning, "make_model")
    watch("annotate", annotate, "learning_targets")
    watch("train_retriever", train_retriever, "read_annotation_set")
    watch("build_index", build_index, "catalogue_items")
    assert run(data, out, *more) == 0
    return ran


def test_the_bundle_gives_recommendations(finished: Path) -> None:
    bundle = Bundle.open(finished / "bundle")
    assert bundle.manifest.prompt.recent_length == RECENT
    assert bundle.manifest.memory.max_elements == TINY.max_memory
    assert bundle.manifest.provenance["recipe"] == "tiny"
    titles = [item.title for item in bundle.catalogue.items]
    memory = bundle.lm.hidden_size
    query = Query(
        prompt=bundle.prompt.tokens(titles[:5]),
        memory=_states(4, memory),
        allowed=bundle.catalogue.available(0),
        num_results=10,
    )
    (answer,) = recommend(bundle, [query])
    assert len({item.row for item in answer.items}) == 10


def _states(count: int, hidden_size: int) -> Any:
    return pl.Series(range(count * hidden_size)).cast(pl.Float64).to_numpy().reshape(count, -1).astype("float16")


def test_the_last_line_is_json(data: Path, out: Path, capsys: Capture) -> None:
    assert run(data, out) == 0
    (line,) = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert {"sft", "annotate", "retriever", "bundle", "seconds"} <= facts.keys()
    assert facts["bundle"]["bundle"] == str(out)


def test_running_again_does_nothing(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = (out / "manifest.json").read_bytes()
    assert stages_that_ran(monkeypatch, data, out) == []
    assert (out / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    ("stage", "again"),
    [
        ("sft", ["sft"]),
        ("annotations", ["annotate"]),
        ("retriever", ["train_retriever"]),
    ],
)
def test_an_unfinished_stage_runs_again(
    stage: str, again: list[str], data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out.with_name("bundle.work") / stage / "stage.json").unlink()
    assert stages_that_ran(monkeypatch, data, out) == again


def test_a_deleted_bundle_is_written_again_from_finished_stages(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(out)
    assert stages_that_ran(monkeypatch, data, out) == ["build_index"]
    Bundle.open(out)


def test_another_seed_runs_everything_again(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Bundle.open(out).manifest.space
    everything = ["sft", "annotate", "train_retriever", "build_index"]
    assert stages_that_ran(monkeypatch, data, out, "--seed", "1") == everything
    assert Bundle.open(out).manifest.space != space, "other weights must give another space"


def test_another_recipe_runs_what_depends_on_it(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Bundle.open(out).manifest.space
    assert stages_that_ran(monkeypatch, data, out, "--recipe", "more-beams") == ["build_index"]
    assert Bundle.open(out).manifest.space == space, "stored memory must stay valid"
    assert Bundle.open(out).manifest.generation.num_beams == 3


def test_leave_one_out(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "bundle", "--cut", "leave-one-out") == 0
    assert Bundle.open(tmp_path / "bundle").manifest.provenance["cut"] == "leave-one-out"


def test_the_item_vocabulary_works_from_data_to_recommendations(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    assert run(data, out, "--recipe", "tiny-items") == 0
    bundle = Bundle.open(out)
    assert bundle.manifest.vocabulary == "items" and bundle.manifest.prompt.head == ""
    titles = [item.title for item in bundle.catalogue.items]
    num_items = len(titles)
    assert bundle.prompt.tokens(titles[:RECENT])[1:] == [
        bundle.prompt.title_tokens(each)[0] for each in titles[:RECENT]
    ]
    query = Query(
        bundle.prompt.tokens(titles[:5]), _states(4, bundle.lm.hidden_size), np.ones(num_items, bool), num_items
    )
    (answer,) = recommend(bundle, [query])
    assert {item.row for item in answer.items} == set(range(num_items))
    assert sum(item.source == "generated" for item in answer.items) == len(set(titles)), "not every title was generated"
    assert stages_that_ran(monkeypatch, data, out, "--recipe", "tiny-items") == []


@pytest.mark.parametrize("recipe", ["tiny", "tiny-items"])
def test_a_checkpoint_is_tuned_and_its_adapters_are_merged(recipe: str, tmp_path: Path) -> None:
    checkpoint, data = tmp_path / "qwen", tmp_path / "shop"
    make_model("qwen2").save_pretrained(checkpoint)
    make_tokenizer(TITLES).save_pretrained(checkpoint)
    save_dataset(shop(), data)
    assert run(data, tmp_path / "bundle", "--recipe", recipe, "--model", str(checkpoint)) == 0
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.vocabulary == recipes.RECIPES[recipe].vocabulary
    assert type(bundle.lm.model).__name__ == "Qwen2ForCausalLM"
    assert not [name for name, _ in bundle.lm.model.named_parameters() if "lora" in name]
    assert not [file.name for file in (tmp_path / "bundle" / "lm").iterdir() if "adapter" in file.name]
    assert "peft" not in (tmp_path / "bundle" / "lm" / "config.json").read_text()
    assert bundle.manifest.backbone.adapter is not None, "the manifest must name the adapters"


def test_an_invalid_checkpoint_is_named(data: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    assert run(data, tmp_path / "bundle", "--model", str(tmp_path / "empty")) == 2
    assert f"--model {tmp_path / 'empty'}" in capsys.readouterr().err


def write_data(path: Path, events: Sequence[tuple[str, str, int]], titles: dict[str, str]) -> Path:
    path.mkdir()
    pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        path / "interactions.parquet"
    )
    pl.DataFrame(list(titles.items()), schema=["item_id", "title"], orient="row").write_parquet(path / "items.parquet")
    return path


@pytest.mark.parametrize(
    ("events", "titles"),
    [
        ([("u", f"i{n % 4}", n) for n in range(12)], {f"i{n}": f"Title {n}" for n in range(4)}),
        ([("u", f"i{n % 4}", n) for n in range(12)], {f"i{n}": "" for n in range(4)}),
        ([("u", "i0", 1)], {"i0": "Title"}),
    ],
    ids=["one-short-user", "no-titles", "one-event"],
)
def test_too_little_data_is_an_error_of_one_line(
    events: list[tuple[str, str, int]], titles: dict[str, str], tmp_path: Path, capsys: Capture
) -> None:
    assert run(write_data(tmp_path / "data", events, titles), tmp_path / "bundle") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith("DataError: ")


def test_a_directory_that_is_not_a_bundle_is_not_overwritten(data: Path, out: Path, capsys: Capture) -> None:
    shutil.rmtree(out)
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    assert run(data, out) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert (out / "thesis.tex").read_text() == "years of work"


def test_an_interrupt_is_resumed(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    (out.with_name("bundle.work") / "retriever" / "stage.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(train_retriever, "fit_retriever", interrupt)
        assert run(data, out) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert stages_that_ran(monkeypatch, data, out) == ["train_retriever"]


def test_the_demo_makes_its_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--recipe", "tiny-demo", "--out", str(tmp_path / "demo"), "--device", "cpu"]) == 0
    bundle = Bundle.open(tmp_path / "demo")
    lines = (tmp_path / "demo" / INTERACTIONS).read_text().splitlines()
    assert {json.loads(line)["item_id"] for line in lines} <= bundle.catalogue.rows.keys()


def test_only_the_demo_needs_no_data(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--recipe", "tiny", "--out", str(tmp_path / "bundle")])
    assert stopped.value.code == 2
    assert "--data is required" in capsys.readouterr().err
