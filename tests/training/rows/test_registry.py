"""Every row: full lists of allowed items, the same lists each time, and the memory that its name promises."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.bundle import Bundle
from model_store.inference import recommend
from model_store.manifest import RetrieverSpec
from tests.conftest import write_bundle
from tests.training.evaluations import (
    DATASET,
    LONG,
    RECIPE,
    SPLIT,
    TARGETS,
    bundle_with_voices,
    memory_aware,
    shorten_summariser,
    small_evaluation,
)
from training import pipeline
from training.data.splits import Target
from training.rows.evaluation import NUM_RESULTS, Evaluation, make_evaluation, without_voices
from training.rows.registry import (
    ROWS,
    available_rows,
    canonical_row,
    certificate,
    default_rows,
    memory_reference,
    own_row,
    predict,
    trained_by,
)
from training.rows.scorers import SCORERS
from training.run import recipes
from training.run.inputs import Inputs, fingerprint
from training.run.stage import StageError

OF_VOICES = {f"voice_{name}" for name in ("near", "follow", "linear", "alike", "return")} | {"mixture", "boosted"}
WITHOUT_VOICES = [row for row in ROWS if row not in {*OF_VOICES, "zero_shot"}]  # the model has no checkpoint
TRAINED = ("rella_extend", "trsr", "full_history")  # a language model for any bundle
WITH_BIGREC = ("bigrec", "rella_replace", "automr")  # one where the bundle's generator was tuned to read memory
MakeEvaluation = Callable[..., Evaluation]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """SASRec has its own tests and takes a minute on any data, so item-kNN replaces it."""

    with pytest.MonkeyPatch.context() as patched:
        shorten_summariser(patched)
        for name in ("sasrec_bce", "sasrec", "sasrec_titles"):
            patched.setitem(SCORERS, name, SCORERS["item_knn"])
        patched.setitem(recipes.RECIPES, "rows", RECIPE)
        patched.setitem(recipes.RECIPES, "rows-items", replace(RECIPE, vocabulary="items"))
        yield


@pytest.fixture(scope="module")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads one memory at most, as the oracle does, so that the oracle is an upper bound."""
    path = tmp_path_factory.mktemp("rows") / "bundle"
    write_bundle(path, retriever=RetrieverSpec(width=16, top_k=1))
    return path


@pytest.fixture(scope="module")
def make(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeEvaluation:
    cache = tmp_path_factory.mktemp("cache")
    bundle = Bundle.open(bundle_dir)
    torch.nn.init.constant_(bundle.retriever.null.bias, -1e4)  # never abstains, so that rows differ
    return lambda **options: small_evaluation(bundle, cache, **options)


def past_of(target: Target) -> set[int]:
    return set(SPLIT.histories[target.user].items[: target.position].tolist())


@pytest.mark.parametrize("row", WITHOUT_VOICES)
def test_every_list_is_full_and_without_repeats(row: str, make: MakeEvaluation) -> None:
    for ranked in predict(make(), row, 0):
        assert len(ranked) == len(set(ranked)) == NUM_RESULTS
        assert all(0 <= item < len(SPLIT.item_ids) for item in ranked), "an item that the split does not know"


@pytest.mark.parametrize("row", WITHOUT_VOICES)
def test_with_mask_seen_no_row_shows_items_that_the_user_had(row: str, make: MakeEvaluation) -> None:
    for target, ranked in zip(TARGETS, predict(make(mask_seen=True), row, 0), strict=True):
        assert not set(ranked) & past_of(target), f"{row} shows an item that the user of {target} had"


def test_items_that_are_not_in_the_split_are_not_allowed(make: MakeEvaluation) -> None:
    evaluation = make()
    kept = sorted(np.random.default_rng(0).permutation(len(SPLIT.item_ids))[:12].tolist())
    split = replace(SPLIT, item_ids=[SPLIT.item_ids[row] for row in kept])
    mask = replace(evaluation, split=split).allowed(LONG)
    rows = evaluation.bundle.catalogue.rows
    assert set(np.flatnonzero(mask)) == {rows[item_id] for item_id in split.item_ids}


def test_popularity_is_one_list_for_all_and_copy_last_puts_the_last_item_before_it(make: MakeEvaluation) -> None:
    popular, copied = predict(make(), "popularity", 0), predict(make(), "copy_last", 0)
    assert all(ranked == popular[0] for ranked in popular)
    counts = SPLIT.popularity[popular[0]]
    assert (counts[:-1] >= counts[1:]).all()
    for target, ranked in zip(TARGETS, copied, strict=True):
        last = int(SPLIT.histories[target.user].items[target.position - 1])
        assert ranked == [last, *(item for item in popular[0] if item != last)][:NUM_RESULTS]


def choices(evaluation: Evaluation, row: str, seed: int = 0) -> list[tuple[int, ...]]:
    """The memories that the top half read, by target."""
    read: list[tuple[int, ...]] = []

    def spy(bundle: Bundle, queries: list[object]) -> list[object]:
        answers = recommend(bundle, queries)  # type: ignore[arg-type]
        read.extend(answer.chosen for answer in answers)
        return answers  # type: ignore[return-value]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.rows.evaluation.recommend", spy)
        predict(evaluation, row, seed)
    return read


@pytest.mark.parametrize("row", ["bigrec", "random", "recent_beyond", "automr", "oracle"])
def test_a_target_without_memory_gets_none(row: str, make: MakeEvaluation) -> None:
    assert choices(make(), row)[0] == ()


def test_each_row_chooses_the_memory_of_its_name(make: MakeEvaluation) -> None:
    evaluation = make()
    sizes = [len(example.memory_positions) for example in evaluation.examples]
    assert choices(evaluation, "bigrec") == [()] * len(TARGETS)
    assert [len(chosen) for chosen in choices(evaluation, "automr")] == [min(1, size) for size in sizes]
    assert choices(evaluation, "recent_beyond") == [(size - 1,) if size else () for size in sizes]
    best = {(each.user, each.position): each.gains("log_gain") for each in evaluation.annotate()}
    for target, chosen in zip(TARGETS, choices(evaluation, "oracle"), strict=True):
        gains = best[target.user, target.position]
        assert chosen == ((int(gains.argmax()),) if len(gains) and gains.max() > 0 else ()), f"oracle at {target}"


def test_bigrec_does_not_depend_on_memory(make: MakeEvaluation) -> None:
    evaluation = make()
    other = replace(evaluation.states, arrays={user: -array for user, array in evaluation.states.arrays.items()})
    assert predict(replace(evaluation, states=other), "bigrec", 0) == predict(evaluation, "bigrec", 0)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The generator counts as tuned to read memory, and there are voices."""
    return bundle_with_voices(tmp_path_factory.mktemp("tuned") / "bundle")


def untuned(bundle: Bundle) -> Bundle:
    backbone = bundle.manifest.backbone.model_copy(update={"adapter": None})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"backbone": backbone}))


def test_an_untuned_generator_is_bigrecs_and_with_the_retriever_automr(tuned: Bundle) -> None:
    frozen = untuned(tuned)
    assert (own_row(frozen), memory_reference(frozen)) == ("automr_plus", "no_memory"), "it has voices"
    assert canonical_row("generator_alone", frozen) == "bigrec"
    assert canonical_row("automr_plus_lm", frozen) == "automr"
    alone = without_voices(frozen)
    assert (own_row(alone), memory_reference(alone)) == ("automr", "bigrec")
    lacking = {"no_memory", "generator_alone", "automr_plus", "automr_plus_lm", "state_memory", "voice_memory"}
    assert not (lacking | OF_VOICES) & set(available_rows(alone))
    assert not any(trained_by(row, frozen) for row in WITH_BIGREC)


def test_other_methods_have_a_generator_of_their_own_where_the_bundles_reads_memory(tuned: Bundle) -> None:
    assert (own_row(tuned), memory_reference(tuned)) == ("automr_plus", "no_memory")
    assert canonical_row("automr", tuned) == "automr", "the paper's row is not the bundle's"
    assert all(trained_by(row, tuned) for row in (*WITH_BIGREC, *TRAINED))
    assert memory_reference(without_voices(tuned)) == "generator_alone", "BIGRec's generator is another one"


def test_rows_of_a_tuned_bundle_whose_generator_is_trained_read_no_voices(tuned: Bundle, tmp_path: Path) -> None:
    evaluation = small_evaluation(tuned, tmp_path)
    without = evaluation.with_voices(None)
    for row in WITH_BIGREC:
        lists = predict(evaluation, row, 0)
        assert [len(set(ranked)) for ranked in lists] == [NUM_RESULTS] * len(TARGETS)
        assert lists == predict(without, row, 0), row
        assert certificate(evaluation, row, 0) or row == "rella_replace", f"{row} does not tell how it was trained"


@pytest.mark.parametrize("row", sorted(OF_VOICES))
def test_a_bundle_without_voices_has_no_rows_of_voices(row: str, make: MakeEvaluation) -> None:
    with pytest.raises(StageError, match="no such voice"):
        predict(make(), row, 0)


def test_the_oracle_gains_at_least_as_much_as_the_other_choices(make: MakeEvaluation) -> None:
    evaluation = make()
    by_target = {(each.user, each.position): each for each in evaluation.annotate()}
    gains = [by_target[target.user, target.position].gains("log_gain") for target in TARGETS]

    def mean_gain(row: str) -> float:
        picked = zip(gains, choices(evaluation, row), strict=True)
        return float(np.mean([gain[list(chosen)].sum() for gain, chosen in picked]))

    assert mean_gain("oracle") >= max(mean_gain("automr"), mean_gain("recent_beyond"), mean_gain("bigrec"))
    assert mean_gain("oracle") > 0, "no memory helps, so the test proves nothing"


@pytest.mark.parametrize("row", ["rella_replace", "rella_extend", *TRAINED])
def test_rows_with_other_prompts_read_no_memory(row: str, make: MakeEvaluation) -> None:
    assert choices(make(), row) == [()] * len(TARGETS)


@pytest.mark.parametrize("row", WITHOUT_VOICES)
def test_a_list_does_not_depend_on_the_other_targets(row: str, make: MakeEvaluation) -> None:
    evaluation = make()
    lists = predict(evaluation, row, 0)
    for place in (0, 1, 4):
        alone = replace(evaluation, targets=[TARGETS[place]], examples=[evaluation.examples[place]])
        assert predict(alone, row, 0) == [lists[place]]


@pytest.mark.parametrize("row", [*TRAINED, *WITH_BIGREC])
def test_a_bundle_without_a_recipe_has_no_rows_that_train(row: str, bundle: Bundle, tmp_path: Path) -> None:
    if row in WITH_BIGREC:
        assert row in available_rows(bundle), "its generator was tuned without memory"
        bundle = memory_aware(bundle)
    assert row not in available_rows(bundle)
    evaluation = make_evaluation(bundle, Inputs(DATASET, SPLIT, fingerprint(SPLIT)), TARGETS, tmp_path)
    with pytest.raises(StageError, match="does not name the recipe"):
        predict(evaluation, row, 0)


@pytest.mark.parametrize("recipe", ["rows", "rows-items"])
def test_a_bundle_of_the_pipeline_has_all_rows(recipe: str, tmp_path: Path) -> None:
    inputs = Inputs(DATASET, SPLIT, fingerprint(SPLIT))
    out = tmp_path / "bundle"
    pipeline.run(inputs, out, recipe_name=recipe, work=tmp_path / "work", device="cpu")
    bundle = Bundle.open(out)
    lacking = {row for row in OF_VOICES if bundle.voices is None or not ROWS[row].fits(bundle)}
    if bundle.voices is None:
        lacking |= {"no_memory", "state_memory", "voice_memory", "automr_plus_lm"}
    lacking |= {"zero_shot"}  # the model was made from scratch
    assert {*ROWS} - {*available_rows(bundle)} == lacking
    costly = {"sasrec_bce", "sasrec_titles", "rella_extend", "trsr", "full_history"}
    assert {*available_rows(bundle)} - {*default_rows(bundle)} == costly
    evaluation = make_evaluation(bundle, inputs, TARGETS, tmp_path / "cache", device="cpu")
    for row in available_rows(bundle):
        lists = predict(evaluation, row, 0)
        assert [len(set(ranked)) for ranked in lists] == [NUM_RESULTS] * len(TARGETS), row
