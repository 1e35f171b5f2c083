"""AutoMR as published: the generator of BIGRec, unchanged, with a retriever that was trained for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store.bundle import Bundle
from model_store.inference import recommend
from tests.training.evaluations import RECIPE, memory_aware, small_evaluation
from tests.training.small import shop
from training.data.splits import time_split
from training.lm import tuning
from training.memory.annotations import write_annotations
from training.memory.selection import MemoryGains
from training.rows import frozen_automr
from training.rows.evaluation import Evaluation
from training.rows.frozen_automr import Candidate, published_recipe, retriever_directory, train_frozen_automr
from training.rows.generators import bigrec_generator
from training.rows.registry import predict
from training.run.stage import read_certificate

SPLIT = time_split(shop(num_users=16))  # enough users for one part that teaches and one that chooses
TARGETS = SPLIT.test[:6]


@pytest.fixture(scope="module")
def evaluation(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    bundle = memory_aware(Bundle.open(bundle_path))
    return small_evaluation(bundle, tmp_path_factory.mktemp("cache"), split=SPLIT, targets=TARGETS)


def test_the_recipe_is_the_papers() -> None:
    recipe = published_recipe(replace(RECIPE, retriever_losses=("marginal",), top_ks=(4, 16), gain_form="probability"))
    assert (recipe.retriever_losses, recipe.top_ks, recipe.gain_form) == (("kl",), (1,), "log_gain")
    assert recipe.memory_share == 0


def test_the_generator_is_bigrecs_and_does_not_change(evaluation: Evaluation) -> None:
    generator = bigrec_generator(evaluation, 0)
    before = {name: each.clone() for name, each in generator.lm.model.state_dict().items()}
    bundle = train_frozen_automr(replace(evaluation, results=dict(evaluation.results)), 0)
    assert bundle.lm is generator.lm and bundle.manifest.space == generator.manifest.space
    assert all(torch.equal(before[name], each) for name, each in generator.lm.model.state_dict().items())
    assert bundle.manifest.retriever.top_k == 1


def test_it_reads_states_that_its_own_generator_made(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = train_frozen_automr(evaluation, 0)
    read: list[tuple[Bundle, Any]] = []

    def spy(asked: Bundle, queries: list[Any]) -> Any:
        read.extend((asked, query) for query in queries)
        return recommend(asked, queries)

    monkeypatch.setattr("training.rows.evaluation.recommend", spy)
    predict(evaluation, "automr", 0)
    own = evaluation.as_read_by(bundle)
    assert len(read) == len(TARGETS)
    for (asked, query), example in zip(read, own.examples, strict=True):
        assert asked.lm is bundle.lm and query.chosen is None, "the retriever chooses"
        assert query.prompt == example.prompt
        expected = own.states.at(example.user, example.memory_positions)
        np.testing.assert_array_equal(query.memory, bundle.codec.round_trip(expected))
    memories = [example for example in own.examples if len(example.memory_positions)]
    assert any(
        not np.array_equal(
            own.states.at(each.user, each.memory_positions), evaluation.states.at(each.user, each.memory_positions)
        )
        for each in memories
    ), "the bundle's generator has the same states, so the test proves nothing"


def test_it_is_trained_once(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = predict(evaluation, "automr", 0)
    monkeypatch.setattr(tuning, "make_model", None)
    monkeypatch.setattr(frozen_automr, "fit_retriever", None)
    assert predict(replace(evaluation, results={}), "automr", 0) == lists
    assert not list(retriever_directory(evaluation, 0).glob("checkpoints-*")), "annotations are not kept"


def test_a_time_of_one_target_reads_the_same_states(evaluation: Evaluation) -> None:
    """Times come first where lists are cached: the states must not be those of the first timed target only."""
    lists = predict(evaluation, "automr", 0)
    fresh = replace(evaluation, results={})
    for place in (1, 4):
        single = replace(fresh, targets=[TARGETS[place]], examples=[evaluation.examples[place]])
        assert predict(single, "automr", 0) == [lists[place]]


@pytest.mark.parametrize("best", [Candidate(0.1, False), Candidate(0.3, True)])
def test_temperature_and_null_slot_are_chosen_by_the_gain_on_valid_targets(
    best: Candidate, evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where no candidate gains anything, memory is not switched off."""

    def gains(candidates: Any, top_ks: Any, *_: Any, **__: Any) -> dict[Any, MemoryGains]:
        return {(each, 1): MemoryGains(np.full(5, -1.0 - (each != best)), None) for each in candidates}

    monkeypatch.setattr(frozen_automr, "valid_gains", gains)
    other = replace(evaluation, training=replace(evaluation.training, directory=tmp_path), results={})
    other.results["generator", other.recent_length, 0] = bigrec_generator(evaluation, 0)
    bundle = train_frozen_automr(other, 0)
    facts = read_certificate(retriever_directory(other, 0))
    assert facts["settings"] == best._asdict()
    assert facts["at_grid_end"] == {"temperature": best.temperature}, "two temperatures were tried"
    assert bundle.manifest.retriever.has_null == bundle.retriever.has_null == best.may_abstain


def test_a_bundle_that_was_tuned_without_memory_is_read_as_it_is(bundle_path: Path, tmp_path: Path) -> None:
    own = small_evaluation(Bundle.open(bundle_path), tmp_path, split=SPLIT, targets=TARGETS)
    assert predict(own, "automr", 0) == predict(own, "automr_plus", 0)
    assert not (own.training.directory).exists(), "something was trained"


def test_targets_that_judge_are_not_annotated(evaluation: Evaluation, tmp_path: Path, monkeypatch: Any) -> None:
    written: list[str] = []

    def spy(*arguments: Any, directory: Path, **options: Any) -> None:
        written.append(directory.name)
        write_annotations(*arguments, directory=directory, **options)

    monkeypatch.setattr(frozen_automr, "write_annotations", spy)
    other = replace(evaluation, training=replace(evaluation.training, directory=tmp_path), results={})
    other.results["generator", other.recent_length, 0] = bigrec_generator(evaluation, 0)
    train_frozen_automr(other, 0)
    assert written == ["checkpoints-teach", "checkpoints-choose"]
    assert read_certificate(retriever_directory(other, 0))["teach_targets"] > 0
