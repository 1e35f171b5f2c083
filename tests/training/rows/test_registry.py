"""Rows show what is allowed alone, say the same again, and see the memory they are named after."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store.bundle import Bundle
from model_store.inference import recommend
from model_store.manifest import GenerationSpec, RetrieverSpec
from model_store.text.prompt import ItemPrompt
from tests.conftest import write_bundle
from tests.training.contests import DATASET, LONG, RECIPE, SPLIT, TARGETS, shorten_summariser, small_contest
from training import pipeline
from training.data.splits import Target
from training.rows.baselines import fit_baseline
from training.rows.contest import NUM_RESULTS, Contest, make_contest
from training.rows.registry import ROWS, neighbor_share, predict, rows_of
from training.run import recipes
from training.run.inputs import Inputs, fingerprint
from training.run.stage import StageError

TRAINED = ("trsr", "full_history")
Compete = Callable[..., Contest]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """SASRec has its own tests, and takes a minute on any data: item-kNN stands in."""

    def fit(name: str, *arguments: Any) -> Any:
        return fit_baseline("item_knn", *arguments)

    with pytest.MonkeyPatch.context() as patched:
        shorten_summariser(patched)
        patched.setattr("training.rows.registry.fit_baseline", fit)
        patched.setitem(recipes.RECIPES, "rows", RECIPE)
        patched.setitem(recipes.RECIPES, "rows-items", replace(RECIPE, vocabulary="items"))
        yield


@pytest.fixture(scope="module")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shows one memory at most, as the oracle does, which therefore bounds it."""
    path = tmp_path_factory.mktemp("rows") / "bundle"
    write_bundle(path, retriever=RetrieverSpec(width=16, top_k=1))
    return path


@pytest.fixture(scope="module")
def compete(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Compete:
    cache = tmp_path_factory.mktemp("cache")
    bundle = Bundle.open(bundle_dir)
    torch.nn.init.constant_(bundle.retriever.null.bias, -1e4)  # never abstains, or rows would not differ
    return lambda **options: small_contest(bundle, cache, **options)


def seen(target: Target) -> set[int]:
    return set(SPLIT.histories[target.user].items[: target.position].tolist())


@pytest.mark.parametrize("row", ROWS)
def test_every_list_is_full_and_without_repeats(row: str, compete: Compete) -> None:
    for ranked in predict(compete(), row, 0):
        assert len(ranked) == len(set(ranked)) == NUM_RESULTS
        assert all(0 <= item < len(SPLIT.item_ids) for item in ranked), "an item that the split does not know"


@pytest.mark.parametrize("row", ROWS)
def test_seen_items_are_masked_when_asked(row: str, compete: Compete) -> None:
    for target, ranked in zip(TARGETS, predict(compete(mask_seen=True), row, 0), strict=True):
        assert not set(ranked) & seen(target), f"{row} shows {target} what the user had already"


def test_items_that_the_split_dropped_are_never_shown(compete: Compete) -> None:
    contest = compete()
    kept = sorted(np.random.default_rng(0).permutation(len(SPLIT.item_ids))[:12].tolist())
    split = replace(SPLIT, item_ids=[SPLIT.item_ids[row] for row in kept])
    mask = replace(contest, split=split).allowed(LONG)
    rows = contest.bundle.catalogue.rows
    assert set(np.flatnonzero(mask)) == {rows[item_id] for item_id in split.item_ids}


def test_popularity_is_the_same_list_for_all_and_copy_last_differs_in_the_first_place(compete: Compete) -> None:
    popular, copied = predict(compete(), "popularity", 0), predict(compete(), "copy_last", 0)
    assert all(ranked == popular[0] for ranked in popular)
    counts = SPLIT.popularity[popular[0]]
    assert (counts[:-1] >= counts[1:]).all()
    for target, ranked in zip(TARGETS, copied, strict=True):
        last = int(SPLIT.histories[target.user].items[target.position - 1])
        assert ranked == [last, *(item for item in popular[0] if item != last)][:NUM_RESULTS]


def choices(contest: Contest, row: str, seed: int = 0) -> list[tuple[int, ...]]:
    """Which memories the top half saw, by target."""
    seen: list[tuple[int, ...]] = []

    def spy(bundle: Bundle, queries: list[object]) -> list[object]:
        answers = recommend(bundle, queries)  # type: ignore[arg-type]
        seen.extend(answer.chosen for answer in answers)
        return answers  # type: ignore[return-value]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.rows.contest.recommend", spy)
        predict(contest, row, seed)
    return seen


@pytest.mark.parametrize("row", ["bigrec", "random", "recent_beyond", "automr", "oracle"])
def test_who_has_no_memory_is_shown_none(row: str, compete: Compete) -> None:
    assert choices(compete(), row)[0] == ()


def test_each_row_sees_the_memory_it_is_named_after(compete: Compete) -> None:
    contest = compete()
    sizes = [len(example.memory_positions) for example in contest.examples]
    assert choices(contest, "bigrec") == [()] * len(TARGETS)
    assert [len(chosen) for chosen in choices(contest, "automr")] == [min(1, size) for size in sizes]
    assert choices(contest, "recent_beyond") == [(size - 1,) if size else () for size in sizes]
    best = {(each.user, each.position): each.gains("log_gain") for each in contest.annotate()}
    for target, chosen in zip(TARGETS, choices(contest, "oracle"), strict=True):
        gains = best[target.user, target.position]
        assert chosen == ((int(gains.argmax()),) if len(gains) and gains.max() > 0 else ()), f"oracle at {target}"


def test_bigrec_is_blind_to_memory(compete: Compete) -> None:
    contest = compete()
    other = replace(contest.states, arrays={user: -array for user, array in contest.states.arrays.items()})
    assert predict(replace(contest, states=other), "bigrec", 0) == predict(contest, "bigrec", 0)


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its generator saw memory, and item neighbours have nearly all the say."""
    path = tmp_path_factory.mktemp("heard") / "bundle"
    generation = GenerationSpec(num_beams=5, neighbor_share=0.9)
    write_bundle(path, vocabulary="items", retriever=RetrieverSpec(width=16, top_k=1), generation=generation)
    bundle = Bundle.open(path)
    torch.nn.init.constant_(bundle.retriever.null.bias, -1e4)
    backbone = bundle.manifest.backbone.model_copy(update={"adapter": "memory-aware"})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"backbone": backbone}))


OURS = {"no_memory", "random", "recent_beyond", "automr_plus", "oracle"}


def test_neighbours_are_part_of_ours_and_of_nothing_published(heard: Bundle, tmp_path: Path) -> None:
    assert {row for row in ROWS if neighbor_share(heard, row)} == OURS | {"neighbors"}
    contest = small_contest(heard, tmp_path)
    deaf = replace(contest, bundle=replace(heard, neighbors=None))
    for row in (*sorted(OURS), "bigrec", "rella_replace", "rella_extend", "automr_plus_lm"):
        assert (predict(contest, row, 0) != predict(deaf, row, 0)) == (row in OURS), row


def test_rows_without_memory_or_neighbours_are_what_is_left(heard: Bundle, tmp_path: Path) -> None:
    contest = small_contest(heard, tmp_path)
    deaf = replace(contest, bundle=replace(heard, neighbors=None))
    assert predict(contest, "bigrec", 0) == predict(deaf, "no_memory", 0) != predict(contest, "no_memory", 0)
    assert predict(contest, "automr_plus_lm", 0) == predict(deaf, "automr_plus", 0)
    assert choices(contest, "automr_plus_lm") == choices(contest, "automr_plus"), "neighbours choose no memory"


def test_the_papers_generator_has_no_neighbours_in_any_row(heard: Bundle) -> None:
    backbone = heard.manifest.backbone.model_copy(update={"adapter": None})
    frozen = replace(heard, manifest=heard.manifest.model_copy(update={"backbone": backbone}))
    assert not any(neighbor_share(frozen, row) for row in ROWS)
    assert not {"no_memory", "neighbors", "automr_plus", "automr_plus_lm"} & set(rows_of(frozen))


def test_neighbours_alone_say_what_they_know(heard: Bundle, tmp_path: Path) -> None:
    """Item by item as they vote, whatever the language model says; it orders what they say nothing about."""
    contest, neighbors, prompt = small_contest(heard, tmp_path), heard.neighbors, heard.prompt
    assert neighbors is not None and isinstance(prompt, ItemPrompt)
    half_life = heard.manifest.generation.neighbor_half_life
    for example, target, found in zip(contest.examples, TARGETS, predict(contest, "neighbors", 0), strict=True):
        votes = neighbors.votes(example.prompt[-contest.recent_length :], len(prompt.vocabulary), half_life)
        said = votes[[prompt.title_tokens(title)[0] for title in SPLIT.titles]]
        assert (np.diff(said[found]) <= 1e-6).all(), f"not in the order of votes at {target}"


def test_random_draws_differ_by_seed_and_come_again(compete: Compete) -> None:
    draws = [choices(compete(), "random", seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1], "a draw cannot be repeated"
    assert draws[0] != draws[2], "seeds draw the same"
    sizes = [len(example.memory_positions) for example in compete().examples]
    assert all(len(chosen) == min(1, size) for chosen, size in zip(draws[0], sizes, strict=True))


def test_the_oracle_gains_at_least_what_the_retriever_does(compete: Compete) -> None:
    contest = compete()
    by_target = {(each.user, each.position): each for each in contest.annotate()}
    gains = [by_target[target.user, target.position].gains("log_gain") for target in TARGETS]

    def mean_gain(row: str) -> float:
        picked = zip(gains, choices(contest, row), strict=True)
        return float(np.mean([gain[list(chosen)].sum() for gain, chosen in picked]))

    assert mean_gain("oracle") >= max(mean_gain("automr"), mean_gain("random"), mean_gain("bigrec"))
    assert mean_gain("oracle") > 0, "no memory helps at all: the test tests nothing"


@pytest.mark.parametrize("row", ["rella_replace", "rella_extend", *TRAINED])
def test_rows_of_other_prompts_see_no_memory(row: str, compete: Compete) -> None:
    assert choices(compete(), row) == [()] * len(TARGETS)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "random"])
def test_a_target_alone_gets_the_list_it_gets_among_others(row: str, compete: Compete) -> None:
    contest = compete()
    lists = predict(contest, row, 0)
    for place in (0, 1, 4):
        alone = replace(contest, targets=[TARGETS[place]], examples=[contest.examples[place]])
        assert predict(alone, row, 0) == [lists[place]]


@pytest.mark.parametrize("row", TRAINED)
def test_without_its_recipe_a_bundle_cannot_have_trained_rows(row: str, bundle: Bundle, tmp_path: Path) -> None:
    assert row not in rows_of(bundle)
    contest = make_contest(bundle, Inputs(DATASET, SPLIT, fingerprint(SPLIT)), TARGETS, tmp_path)
    with pytest.raises(StageError, match="does not say by which recipe"):
        predict(contest, row, 0)


@pytest.mark.parametrize("recipe", ["rows", "rows-items"])
def test_a_bundle_of_the_pipeline_has_every_row(recipe: str, tmp_path: Path) -> None:
    inputs = Inputs(DATASET, SPLIT, fingerprint(SPLIT))
    out = tmp_path / "bundle"
    pipeline.run(inputs, out, recipe_name=recipe, work=tmp_path / "work", device="cpu")
    bundle = Bundle.open(out)
    missing = {"automr"}  # its top half was tuned to read memory
    if not bundle.manifest.generation.neighbor_share:
        missing |= {"no_memory", "neighbors", "automr_plus_lm"}
    assert {*ROWS} - {*rows_of(bundle)} == missing
    contest = make_contest(bundle, inputs, TARGETS, tmp_path / "cache", device="cpu")
    for row in rows_of(bundle):
        lists = predict(contest, row, 0)
        assert [len(set(ranked)) for ranked in lists] == [NUM_RESULTS] * len(TARGETS), row
