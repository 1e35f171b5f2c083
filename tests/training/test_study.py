"""Each study writes a figure and a table with its lines; finished work is not repeated; invariants of each study."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.training.small import TINY, shop
from training.data.dataset import Dataset, save_dataset
from training.data.splits import Target, leave_one_out, sample_targets, time_split
from training.lm import tuning
from training.memory.annotations import read_annotation_set
from training.rows.memory_choices import no_memory
from training.run import recipes
from training.run.inputs import Inputs, fingerprint
from training.studies import cold, layer, memory, noise, topk, transfer, unit
from training.studies.context import StudyContext, ndcg, num_memories
from training.studies.result import StudyResult, gain_column
from training.study import STUDIES, main

Capture = pytest.CaptureFixture[str]


def other_shop() -> Dataset:
    """Other users and other titles: the first shop's titles are all new to a language model of this shop."""
    dataset = shop(num_users=7, length=28)
    titles = pl.concat_str(pl.lit("The Other "), pl.col("title"))
    return replace(dataset, name="other shop", items=dataset.items.with_columns(title=titles))


DATASET = shop(num_users=8)
SPLIT = time_split(DATASET)
INPUTS = Inputs(DATASET, SPLIT, fingerprint(SPLIT))
OTHER = other_shop()
LINES = {
    "layer": ["1"],
    "memory": ["M = 10", "M = 30", "M = 90", "M = 200", "M = 500", "K = 3", "K = 5", "K = 10"],
    "unit": ["window", "item", "mean of 2", "mean of 5"],
    "topk": ["0", "1", "2", "4", "8", "16", "32"],
    "labels": [
        "probability",
        "log gain, τ = 0.03",
        "log gain, τ = 0.1",
        "log gain, τ = 0.3",
        "log gain, τ = 1",
        "marginal",
    ],
    "noise": ["noise 0%", "noise 10%", "noise 30%", "noise 50%", "kept 100%", "kept 50%", "kept 25%"],
    "cold": ["21–50"],
    "collective": ["0", "0.05", "0.1", "0.2", "0.4"],
    "transfer": [
        "no memory",
        "random",
        "transferred",
        "transferred, no null slot",
        "learned here",
        "learned here, no null slot",
    ],
}
WITHOUT_VOICES = [name for name in STUDIES if name != "voices"]  # see studies/test_voices.py


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(recipes.RECIPES, "tiny", replace(TINY, vocabulary="items", voices_targets=0))
        patched.setitem(
            recipes.RECIPES, "tiny-voices", replace(TINY, vocabulary="items", voices_targets=30, max_past=15)
        )
        patched.setitem(recipes.RECIPES, "tiny-titles", TINY)
        patched.setattr(memory, "LENGTHS", (5, 10))
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def small(work: Path) -> StudyContext:
    split = time_split(OTHER)
    return StudyContext(
        inputs=INPUTS,
        other=Inputs(OTHER, split, fingerprint(split)),
        recipe_name="tiny",
        work=work,
        num_targets=12,
        time_targets=2,
        device="cpu",
    )


@pytest.fixture(scope="module")
def found(small: StudyContext) -> Callable[[str], StudyResult]:
    """Results of studies by name, each computed once."""
    results: dict[str, StudyResult] = {}

    def find(name: str) -> StudyResult:
        if name not in results:
            results[name] = STUDIES[name](small)
        return results[name]

    return find


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of the data set and of the other one."""
    root = tmp_path_factory.mktemp("data")
    for name, dataset in (("shop", DATASET), ("other", OTHER)):
        save_dataset(dataset, root / name)
    return root / "shop", root / "other"


# --- all studies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITHOUT_VOICES)
def test_a_study_has_all_its_lines(name: str, found: Callable[[str], StudyResult]) -> None:
    result = found(name)
    assert list(result.lines) == LINES[name]
    drawn = {column for columns in result.panels.values() for column in columns}
    for part in (set(result.columns), drawn):
        filled = {column for line in result.lines.values() for column, cell in line.items() if cell is not None}
        assert part <= filled, f"{name}: columns without values: {sorted(part - filled)}"


@pytest.mark.parametrize("name", ["unit", "transfer"])
def test_studies_work_with_titles_as_text(name: str, small: StudyContext) -> None:
    text = replace(small, recipe_name="tiny-titles")
    assert list(STUDIES[name](text).lines) == LINES[name]


def test_the_command_writes_figure_table_and_page(
    data: tuple[Path, Path], work: Path, found: Callable[[str], StudyResult], tmp_path: Path, capsys: Capture
) -> None:
    found("topk")  # trains the backbone that the command below finds in the work directory
    assert run("topk", data, work, tmp_path) == 0
    folder = tmp_path / "topk"
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "index.html").read_text()
    assert "data:image/png;base64," in page and "://" not in page, "the page must not need the network"
    *printed, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["lines"]["topk"] == LINES["topk"]
    written = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    assert written == [line for line in printed if line.startswith("|")], "the file must have the table that is printed"
    assert len(written) == 2 + len(LINES["topk"])


def run(name: str, data: tuple[Path, Path], work: Path, out: Path, *more: str) -> int:
    options = ["--data", str(data[0]), "--from", str(data[1]), "--recipe", "tiny", "--max-targets", "12"]
    return main([name, *options, "--time-targets", "2", "--work", str(work), "--out", str(out), *more])


def test_finished_work_is_not_repeated(
    data: tuple[Path, Path],
    work: Path,
    found: Callable[[str], StudyResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = found("noise").lines

    def never(*args: object, **kwargs: object) -> None:
        pytest.fail("a finished backbone or line was computed again")

    monkeypatch.setattr(tuning, "make_model", never)
    monkeypatch.setattr("training.rows.evaluation.recommend", never)
    assert run("noise", data, work, tmp_path) == 0
    again = json.loads((tmp_path / "noise" / "study.json").read_text())["lines"]
    assert again == json.loads(json.dumps(before)), "the second run must give the same values"


def test_a_finished_bundle_is_not_trained_again(
    data: tuple[Path, Path], small: StudyContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small.base.stages
    monkeypatch.setattr(
        tuning, "make_model", lambda *args, **kwargs: pytest.fail("a backbone was trained although there is a bundle")
    )
    given = ["--bundle", str(made / "bundle"), "--bundle-work", str(made)]
    assert run("labels", data, tmp_path / "work", tmp_path, *given) == 0
    assert list(json.loads((tmp_path / "labels" / "study.json").read_text())["lines"]) == LINES["labels"]


def test_user_errors_are_one_line(data: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    assert run("cold", data, tmp_path / "work", tmp_path, "--recipe", "nonesuch") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nonesuch" in line


# --- invariants --------------------------------------------------------------------------------------------------


def test_with_zero_memories_all_choices_equal_the_model_without_memory(
    found: Callable[[str], StudyResult], small: StudyContext
) -> None:
    evaluation = small.evaluation(small.base.bundle, small.targets())
    plain = float(ndcg(evaluation, "none", no_memory).mean())
    line = found("topk").lines["0"]
    for row in ("retrieved", "by score", "random", "newest"):
        assert line[row][0] == pytest.approx(plain), row  # type: ignore[index]
        assert line[gain_column(row)] == (0.0, 0.0, 0.0), row


def test_with_more_memories_than_exist_all_choices_are_equal(found: Callable[[str], StudyResult]) -> None:
    """No user of this world has 32 memories."""
    line = found("topk").lines["32"]
    assert line["by score"] == line["random"] == line["newest"]


def test_bytes_are_proportional_to_the_size(found: Callable[[str], StudyResult], small: StudyContext) -> None:
    lines = found("memory").lines
    each = memory.bytes_per_user(small.base.bundle, 1)
    assert each > 2 * small.base.bundle.lm.hidden_size, "a record also has a header"
    for size in memory.SIZES:
        assert lines[f"M = {size}"]["bytes per user"] == size * each


def test_a_larger_memory_has_no_fewer_elements(found: Callable[[str], StudyResult]) -> None:
    lines = found("memory").lines
    counts = [lines[f"M = {size}"]["elements"] for size in memory.SIZES]
    assert counts == sorted(counts), counts  # type: ignore[type-var]
    assert counts[0] <= 10  # type: ignore[operator]


def test_with_a_noise_of_zero_nothing_changes(found: Callable[[str], StudyResult], small: StudyContext) -> None:
    evaluation = small.evaluation(small.base.bundle, small.targets())
    lines = found("noise").lines
    assert lines["noise 0%"] == lines["kept 100%"]
    assert lines["noise 0%"]["no memory"][0] == pytest.approx(ndcg(evaluation, "none", no_memory).mean())  # type: ignore[index]
    assert lines["noise 0%"]["elements"] == num_memories(evaluation)


def test_noise_has_the_named_share(small: StudyContext) -> None:
    target = SPLIT.valid[0]
    true = SPLIT.histories[target.user].items[: target.position].tolist()
    changed, (moved,) = noise.change_histories(SPLIT, [target], noise.add_noise(0.5, 10_000), seed=0)
    items = changed.histories[moved.user].items.tolist()
    assert moved.position == 2 * len(true)
    assert items[moved.position] == SPLIT.histories[target.user].items[target.position], "the true item must stay"
    left = [item for item in items[:-1] if item < len(SPLIT.item_ids)]
    assert sum(item >= len(SPLIT.item_ids) for item in items) > 0.9 * len(true), "too few random items were added"
    assert is_part_of(true, left), "true events were lost or reordered"


def test_a_kept_share_keeps_the_order_and_the_true_item() -> None:
    target = SPLIT.valid[-1]
    true = SPLIT.histories[target.user].items[: target.position].tolist()
    changed, (moved,) = noise.change_histories(SPLIT, [target], noise.keep_share(0.25), seed=0)
    items = changed.histories[moved.user].items.tolist()
    assert len(items) == moved.position + 1 == round(0.25 * len(true)) + 1
    assert is_part_of(items[:-1], true)
    assert items[-1] == SPLIT.histories[target.user].items[target.position]


def is_part_of(part: list[int], whole: list[int]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


def test_the_unit_window_has_the_states_of_the_bundle(small: StudyContext, tmp_path: Path) -> None:
    evaluation = small.evaluation(small.base.bundle, small.targets())
    windows = unit.BlockWindows(SPLIT, evaluation.bundle.prompt, evaluation.bundle.manifest.memory.max_elements, 1)
    states = unit.states_of_windows(evaluation.bundle.lm, windows, list(evaluation.targets), tmp_path)
    for example in evaluation.examples:
        own = evaluation.states.at(example.user, example.memory_positions)
        np.testing.assert_array_equal(states.at(example.user, example.memory_positions), own)


def test_an_item_has_one_state_for_all_users(small: StudyContext, tmp_path: Path) -> None:
    evaluation = small.evaluation(small.base.bundle, small.targets())
    windows = unit.BlockWindows(SPLIT, evaluation.bundle.prompt, 90, 1)
    states = unit.states_of_items(evaluation.bundle.lm, windows, list(evaluation.targets), tmp_path)
    seen: dict[int, np.ndarray] = {}
    for user, start in states.starts.items():
        for place, state in enumerate(states.arrays[user]):
            item = int(SPLIT.histories[user].items[start + place])
            np.testing.assert_array_equal(seen.setdefault(item, state), state)
    assert len({state.tobytes() for state in seen.values()}) == len(seen), "two items have the same state"


def test_blocks_count_from_the_newest_event_and_hold_means(small: StudyContext, tmp_path: Path) -> None:
    evaluation = small.evaluation(small.base.bundle, small.targets())
    windows = unit.BlockWindows(SPLIT, evaluation.bundle.prompt, 12, 5)
    target = evaluation.targets[0]
    every = unit.BlockWindows(SPLIT, evaluation.bundle.prompt, 12, 1).memory_positions(target)
    ends = windows.memory_positions(target)
    assert ends[-1] == every[-1] and set(np.diff(ends)) <= {5}
    assert len(ends) == -(-len(every) // 5)
    states = unit.states_of_windows(evaluation.bundle.lm, windows, list(evaluation.targets), tmp_path)
    last = states.at(target.user, every[-5:]).astype(np.float32).mean(axis=0)
    np.testing.assert_allclose(unit.mean_states(states, 5).at(target.user, ends[-1:])[0], last, atol=2e-3)
    for user, array in unit.mean_states(states, 1).arrays.items():
        np.testing.assert_array_equal(array, states.arrays[user])


def test_at_most_six_inner_layers_are_tried() -> None:
    assert layer.split_layers(2) == [1]
    assert layer.split_layers(4) == [1, 2, 3]
    many = layer.split_layers(24)
    assert len(many) == 6 and many[0] == 1 and many[-1] == 23


def test_cold_targets_are_of_the_valid_period() -> None:
    valid = {(target.user, target.position) for target in SPLIT.valid}
    test = {(target.user, target.position) for target in SPLIT.test}
    events = {(target.user, target.position) for target in cold.valid_events(SPLIT)}
    assert valid <= events
    assert not events & test, "an event of the test period is a target"
    assert all(position >= SPLIT.histories[user].train_end for user, position in events), (
        "an event of the train period is a target"
    )
    alone = leave_one_out(DATASET)
    assert cold.valid_events(alone) == alone.valid


def test_users_that_taught_or_chose_the_retriever_are_in_no_study(
    small: StudyContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotated = read_annotation_set(small.base.stages / "annotations")
    learned = {each.user for each in [*annotated.teach, *annotated.choose]}
    measured = {target.user for target in small.targets()}
    assert learned and measured and not learned & measured

    def watched(targets: list[Target], limit: int | None, seed: int) -> list[Target]:
        measured.update(target.user for target in targets)
        return sample_targets(targets, limit, seed)

    monkeypatch.setattr(cold, "sample_targets", watched)
    cold.run(small)
    assert not learned & measured


def test_without_memory_nothing_is_gained(small: StudyContext) -> None:
    targets = {target.user: target for target in SPLIT.train if target.position > 10}.values()
    early = replace(SPLIT, valid=[replace(target, position=target.position % 3) for target in targets])
    histories = [replace(history, train_end=0) for history in early.histories]
    world = replace(early, histories=histories)
    tried = replace(small, inputs=Inputs(DATASET, world, fingerprint(world)), finished=None)
    tried.__dict__["base"] = small.base  # the same backbone, other targets
    line = cold.run(tried).lines["0–2"]
    assert line["elements"] == 0
    assert line[gain_column("retrieved")] == (0.0, 0.0, 0.0)


def test_the_transferred_language_model_is_the_other_datas(
    small: StudyContext, found: Callable[[str], StudyResult]
) -> None:
    found("transfer")
    assert small.other is not None
    away = small.train(small.other)
    moved = transfer.transfer_bundle(small, away)
    weights = moved.bundle.lm.model.state_dict()
    for name, tensor in away.bundle.lm.model.state_dict().items():
        np.testing.assert_array_equal(weights[name], tensor, err_msg=name)
    assert moved.bundle.manifest.num_items == len(DATASET.items)


def test_without_a_null_slot_the_retriever_never_abstains(found: Callable[[str], StudyResult]) -> None:
    lines = found("transfer").lines
    for name in ("transferred", "learned here"):
        assert lines[f"{name}, no null slot"]["abstains"] == 0
    topk_lines = found("topk").lines
    assert topk_lines["1"].keys() >= {"retrieved", "by score"} and topk.COUNTS[0] == 0
