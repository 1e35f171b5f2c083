"""Every row: full lists of allowed items, the same lists each time, and the memory that its name promises."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.bundle import Bundle
from model_store.inference import recommend
from model_store.manifest import GenerationSpec, RetrieverSpec
from model_store.text.prompt import ItemPrompt
from tests.conftest import write_bundle
from tests.training.evaluations import (
    DATASET,
    LONG,
    RECIPE,
    SPLIT,
    TARGETS,
    memory_aware,
    shorten_summariser,
    small_evaluation,
)
from training import pipeline
from training.data.splits import Target
from training.rows.evaluation import NUM_RESULTS, Evaluation, make_evaluation
from training.rows.registry import (
    ROWS,
    available_rows,
    canonical_row,
    certificate,
    default_rows,
    memory_reference,
    neighbor_share,
    own_row,
    predict,
    trained_by,
)
from training.rows.scorers import SCORERS
from training.run import recipes
from training.run.inputs import Inputs, fingerprint
from training.run.stage import StageError

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


@pytest.mark.parametrize("row", ROWS)
def test_every_list_is_full_and_without_repeats(row: str, make: MakeEvaluation) -> None:
    for ranked in predict(make(), row, 0):
        assert len(ranked) == len(set(ranked)) == NUM_RESULTS
        assert all(0 <= item < len(SPLIT.item_ids) for item in ranked), "an item that the split does not know"


@pytest.mark.parametrize("row", ROWS)
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
    """The generator counts as tuned to read memory, and item neighbours have a large share."""
    path = tmp_path_factory.mktemp("tuned") / "bundle"
    generation = GenerationSpec(num_beams=5, neighbor_share=0.9)
    write_bundle(path, vocabulary="items", retriever=RetrieverSpec(width=16, top_k=1), generation=generation)
    bundle = Bundle.open(path)
    torch.nn.init.constant_(bundle.retriever.null.bias, -1e4)
    return memory_aware(bundle)


TUNED_ROWS = {"no_memory", "random", "recent_beyond", "automr_plus", "oracle"}


def test_only_rows_of_the_tuned_generator_use_item_neighbours(tuned: Bundle, tmp_path: Path) -> None:
    assert {row for row in ROWS if neighbor_share(tuned, row)} == TUNED_ROWS | {"neighbors"}
    evaluation = small_evaluation(tuned, tmp_path)
    without = replace(evaluation, bundle=replace(tuned, neighbors=None))
    for row in (*sorted(TUNED_ROWS), "generator_alone", "automr_plus_lm"):
        assert (predict(evaluation, row, 0) != predict(without, row, 0)) == (row in TUNED_ROWS), row


def test_rows_without_memory_or_neighbours_equal_a_bundle_without_them(tuned: Bundle, tmp_path: Path) -> None:
    evaluation = small_evaluation(tuned, tmp_path)
    without = replace(evaluation, bundle=replace(tuned, neighbors=None))
    alone = predict(evaluation, "generator_alone", 0)
    assert alone == predict(without, "no_memory", 0) != predict(evaluation, "no_memory", 0)
    assert predict(evaluation, "automr_plus_lm", 0) == predict(without, "automr_plus", 0)
    assert choices(evaluation, "automr_plus_lm") == choices(evaluation, "automr_plus"), (
        "item neighbours must not change the choice of memories"
    )


def test_an_untuned_generator_has_no_neighbours_in_any_row(tuned: Bundle) -> None:
    backbone = tuned.manifest.backbone.model_copy(update={"adapter": None})
    frozen = replace(tuned, manifest=tuned.manifest.model_copy(update={"backbone": backbone}))
    assert not any(neighbor_share(frozen, row) for row in ROWS)
    lacking = {"no_memory", "neighbors", "generator_alone", "automr_plus", "automr_plus_lm"}
    assert not lacking & set(available_rows(frozen))
    assert (own_row(frozen), memory_reference(frozen)) == ("automr", "bigrec")
    assert not any(trained_by(row, frozen) for row in WITH_BIGREC)


def test_other_methods_have_a_generator_of_their_own_where_the_bundles_reads_memory(tuned: Bundle) -> None:
    assert (own_row(tuned), memory_reference(tuned)) == ("automr_plus", "no_memory")
    assert canonical_row("automr", tuned) == "automr", "the paper's row is not the bundle's"
    assert all(trained_by(row, tuned) for row in (*WITH_BIGREC, *TRAINED))
    plain = tuned.manifest.generation.model_copy(update={"neighbor_share": 0.0})
    without = replace(tuned, manifest=tuned.manifest.model_copy(update={"generation": plain}))
    assert memory_reference(without) == "generator_alone", "BIGRec's generator is another one"


def test_rows_of_a_tuned_bundle_whose_generator_is_trained_read_no_neighbours(tuned: Bundle, tmp_path: Path) -> None:
    evaluation = small_evaluation(tuned, tmp_path)
    without = replace(evaluation, bundle=replace(tuned, neighbors=None))
    for row in WITH_BIGREC:
        lists = predict(evaluation, row, 0)
        assert [len(set(ranked)) for ranked in lists] == [NUM_RESULTS] * len(TARGETS)
        assert lists == predict(without, row, 0), row
        assert certificate(evaluation, row, 0) or row == "rella_replace", f"{row} does not tell how it was trained"


def test_the_row_of_neighbours_ranks_by_their_votes(tuned: Bundle, tmp_path: Path) -> None:
    """The language model only orders items with equal votes."""
    evaluation, neighbors, prompt = small_evaluation(tuned, tmp_path), tuned.neighbors, tuned.prompt
    assert neighbors is not None and isinstance(prompt, ItemPrompt)
    half_life = tuned.manifest.generation.neighbor_half_life
    for example, target, found in zip(evaluation.examples, TARGETS, predict(evaluation, "neighbors", 0), strict=True):
        votes = neighbors.votes(example.prompt[-evaluation.recent_length :], len(prompt.vocabulary), half_life)
        item_votes = votes[[prompt.title_tokens(title)[0] for title in SPLIT.titles]]
        assert (np.diff(item_votes[found]) <= 1e-6).all(), f"the list of {target} is not in the order of the votes"


def test_random_draws_differ_by_seed_and_can_be_repeated(make: MakeEvaluation) -> None:
    draws = [choices(make(), "random", seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1], "the same seed must give the same draw"
    assert draws[0] != draws[2], "another seed must give another draw"
    sizes = [len(example.memory_positions) for example in make().examples]
    assert all(len(chosen) == min(1, size) for chosen, size in zip(draws[0], sizes, strict=True))


def test_the_oracle_gains_at_least_as_much_as_the_other_choices(make: MakeEvaluation) -> None:
    evaluation = make()
    by_target = {(each.user, each.position): each for each in evaluation.annotate()}
    gains = [by_target[target.user, target.position].gains("log_gain") for target in TARGETS]

    def mean_gain(row: str) -> float:
        picked = zip(gains, choices(evaluation, row), strict=True)
        return float(np.mean([gain[list(chosen)].sum() for gain, chosen in picked]))

    assert mean_gain("oracle") >= max(mean_gain("automr"), mean_gain("random"), mean_gain("bigrec"))
    assert mean_gain("oracle") > 0, "no memory helps, so the test proves nothing"


@pytest.mark.parametrize("row", ["rella_replace", "rella_extend", *TRAINED])
def test_rows_with_other_prompts_read_no_memory(row: str, make: MakeEvaluation) -> None:
    assert choices(make(), row) == [()] * len(TARGETS)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "random"])
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
    missing = set() if bundle.manifest.generation.neighbor_share else {"no_memory", "neighbors", "automr_plus_lm"}
    assert {*ROWS} - {*available_rows(bundle)} == missing
    costly = {"sasrec_bce", "sasrec_titles", "rella_extend", "trsr", "full_history"}
    assert {*available_rows(bundle)} - {*default_rows(bundle)} == costly
    evaluation = make_evaluation(bundle, inputs, TARGETS, tmp_path / "cache", device="cpu")
    for row in available_rows(bundle):
        lists = predict(evaluation, row, 0)
        assert [len(set(ranked)) for ranked in lists] == [NUM_RESULTS] * len(TARGETS), row
