"""The study of voices: shares that sum to one, of users from whom nothing was learned, by data set."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.small import TINY, shop
from training.data.dataset import save_dataset
from training.data.splits import time_split
from training.items.voice_setup import learning_targets
from training.rows.memory_choices import no_memory
from training.run import recipes
from training.run.inputs import Inputs, fingerprint
from training.run.stage import StageError
from training.studies import cold, voices
from training.studies.context import StudyContext, ndcg
from training.study import main

DATASET = shop(num_users=8)
SPLIT = time_split(DATASET)
LINES = ["language model", "popularity", "near", "follow", "linear", "alike", "return"]


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    recipe = replace(TINY, vocabulary="items", voices_targets=30, max_past=15)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(recipes.RECIPES, "tiny-voices", recipe)
        yield


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    """A bundle with voices."""
    return StudyContext(
        inputs=Inputs(DATASET, SPLIT, fingerprint(SPLIT)),
        recipe_name="tiny-voices",
        work=tmp_path_factory.mktemp("work"),
        num_targets=12,
        device="cpu",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "shop"
    save_dataset(DATASET, path)
    return path


def test_the_shares_of_all_voices_sum_to_one(speaking: StudyContext) -> None:
    result = voices.run(speaking)
    assert list(result.lines) == LINES and result.has_bars
    assert list(result.columns) == ["shop: window", "shop: older"]
    shares = [cell[0] for line in result.lines.values() for cell in line.values() if isinstance(cell, tuple)]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert result.lines["language model"].keys() == {"shop: window"}
    assert result.lines["near"]["shop: older"][0] > 0  # type: ignore[index, operator]


def test_the_shares_are_those_of_the_mixture(speaking: StudyContext) -> None:
    """As the certificate of the stage has them, on the same targets."""
    bundle = speaking.base.bundle
    voiced = voices.VoicedData("shop", bundle, SPLIT, recipes.get_recipe("tiny-voices"), 0)
    assert bundle.voices is not None
    _, judge = learning_targets(SPLIT, voiced.recipe, len(bundle.voices), 0)
    found = voices.shares_by_voice(voiced, judge)
    expected = bundle.manifest.provenance["voices"]["shares"]
    for part in voices.PARTS:
        means = {name: shares[part].mean() for name, shares in found.items() if name in expected[part]}
        assert means == pytest.approx(expected[part], abs=1e-4)
    language_model = found["language model"]["window"].mean()
    assert language_model == pytest.approx(expected["overall"]["language_model"], abs=1e-4)


def test_nobody_whose_targets_taught_the_voices_is_asked(speaking: StudyContext) -> None:
    recipe = recipes.get_recipe("tiny-voices")
    voiced = voices.VoicedData("shop", speaking.base.bundle, SPLIT, recipe, 0)
    teach, judge = learning_targets(SPLIT, recipe, len(voices.voices_of(voiced)), 0)
    taught, ended = ({target.user for target in part} for part in (teach, judge))
    found, whose = voices.judging_targets(voiced)
    assert found and not {target.user for target in found} & taught
    fresh = {target.user for target in SPLIT.valid} - taught - ended
    assert whose.startswith("users who did not" if fresh else "users who ended")


def test_several_bundles_have_columns_of_their_own(speaking: StudyContext, data: Path, tmp_path: Path) -> None:
    made = speaking.base.stages
    given = ["--bundle", str(made / "bundle"), "--bundle-work", str(made), "--data", str(data)]
    more = ["--more", str(made / "bundle"), str(data)]
    assert main(["voices", *given, *more, "--max-targets", "8", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "voices" / "table.md").read_text()
    assert all(f"shop {place}: {part}" in table for place in (1, 2) for part in voices.PARTS)
    assert (tmp_path / "voices" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_bundle_without_voices_cannot_be_asked(speaking: StudyContext) -> None:
    without = replace(speaking.base.bundle, voices=None)
    with pytest.raises(StageError, match="has no voices"):
        voices.voices_of(voices.VoicedData("shop", without, SPLIT, recipes.get_recipe("tiny-voices"), 0))


def test_without_memory_is_without_older_events_too(speaking: StudyContext) -> None:
    """`cold` and `noise` ask what memory adds, and voices have one."""
    evaluation = speaking.evaluation(speaking.base.bundle, speaking.targets())
    assert evaluation.bundle.voices is not None
    line = cold.run(speaking).lines["21–50"]
    assert line.keys() >= {"no memory", "retrieved"}
    window = ndcg(evaluation, "window", no_memory, voters="window")
    shortened = replace(evaluation, past_length=evaluation.recent_length)
    assert ndcg(shortened, "cut", no_memory).tolist() == window.tolist()
