"""Neighbours get the say that they earn: nearly all where they know the answer, none where they do not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from model_store.neighbors import ItemNeighbors
from tests.training.small import TINY
from tests.training.worlds import chain, world
from training.data.splits import Split
from training.items.mixture import (
    HALF_LIVES,
    NEIGHBORS_FILE,
    SHARES,
    ChosenMixture,
    alike_items,
    as_neighbors,
    choose_mixture,
    combined,
    long_against_recent,
)
from training.lm import tuning
from training.lm.backbone import Backbone, open_backbone
from training.lm.windows import Windows
from training.mixture import LIKENESS_WEIGHTS, forecast_of, run, stage_key

ITEMS = replace(TINY, vocabulary="items", mixture_targets=30, recent_length=3)


@pytest.fixture(scope="module")
def split() -> Split:
    return chain()


@pytest.fixture(scope="module")
def directory(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft")
    tuning.run(split, out, recipe=ITEMS, inputs="x")
    return out


@pytest.fixture(scope="module")
def backbone(directory: Path) -> Backbone:
    return open_backbone(directory, torch.device("cpu"))


def successors(split: Split, step: int) -> ItemNeighbors:
    """Item i is followed by item i + step, says this table."""
    num_items = len(split.item_ids)
    following = (np.arange(num_items) + step) % num_items
    matrix = sparse.csr_matrix((np.ones(num_items, np.float32), (np.arange(num_items), following)))
    return as_neighbors(matrix, list(range(1, 1 + num_items)), np.ones(num_items, np.int64))


def chosen(split: Split, backbone: Backbone, tables: dict[float, ItemNeighbors]) -> ChosenMixture:
    forecast = forecast_of(backbone, Windows(split, backbone.prompt, ITEMS.max_memory))
    tokens = np.array([backbone.prompt.title_tokens(title)[0] for title in split.titles])
    return choose_mixture(forecast, tables, split, tokens, split.valid[:30], mask_seen=False)


def test_neighbours_that_know_the_answer_are_trusted(split: Split, backbone: Backbone) -> None:
    found = chosen(split, backbone, {0.0: successors(split, 1)})
    assert found.share > 0 and found.valid_ndcg > found.valid_ndcg_alone
    assert found.valid_ndcg > 0.9, "the answer is the first neighbour of the last item"


def test_likeness_counts_as_much_as_it_helps(split: Split, backbone: Backbone) -> None:
    knows, errs = successors(split, 1), successors(split, 7)
    assert chosen(split, backbone, {0.0: errs, 1.0: knows}).likeness_weight == 1.0
    assert chosen(split, backbone, {0.0: knows, 1.0: errs}).likeness_weight == 0.0


def test_a_weight_of_one_gives_both_the_same_say() -> None:
    near = sparse.csr_matrix(np.array([[0, 4, 4], [8, 0, 0], [0, 0, 0]], np.float32))
    alike = sparse.csr_matrix(np.array([[0, 0, 0.5], [0, 0, 0], [0.5, 0, 0]], np.float32))
    np.testing.assert_allclose(combined(near, alike, 1.0).toarray(), [[0, 4, 12], [8, 0, 0], [8, 0, 0]])
    assert combined(near, alike, 0.0) is near
    nothing = sparse.csr_matrix((3, 3), dtype=np.float32)
    assert combined(near, nothing, 1.0) is near, "titles that share no word"
    assert combined(nothing, alike, 1.0).nnz == 2, "nothing was read next to anything"


def test_items_of_one_title_share_a_row_and_one_of_them_is_a_neighbour() -> None:
    table = sparse.csr_matrix(np.array([[0, 0.5, 0.25], [0.5, 0, 0], [0.25, 0.75, 0]], np.float32))
    merged = as_neighbors(table, [1, 1, 2], np.array([5, 9, 1]))  # the first two items are one title
    np.testing.assert_allclose(merged.votes([1], 3, 1.0), [0, 0.5 / 0.75, 0.25 / 0.75], rtol=1e-6)
    np.testing.assert_allclose(merged.votes([2], 3, 1.0), [0, 1, 0], err_msg="the less popular one is never shown")


def test_editions_of_a_title_take_one_place_and_the_popular_one_stands_for_it() -> None:
    split = world([[0, 1, 2, 3, 3, 3]], train_ends=[6])
    split = replace(split, titles=["Crown", "Crown Guide", "Crown Atlas", "Crown"], title_class=np.array([0, 1, 2, 0]))
    table = alike_items(split).toarray()
    assert not table[:, 0].any() and table[1, 3] > 0, "the less popular edition is never shown"
    assert table[1, 2] > 0 and table[0, 3] == table[3, 0] == 0
    np.testing.assert_array_equal(table[0], table[3])


def test_the_stage_writes_what_the_bundle_needs_and_runs_once(split: Split, directory: Path, tmp_path: Path) -> None:
    key = stage_key("data", {"a": 1}, ITEMS, 0)
    facts = run(split, tmp_path, backbone_dir=directory, recipe=ITEMS, inputs=key)
    assert {"valid_ndcg@10_recent", "valid_ndcg@10_long", "long_minus_recent"} <= facts.keys()
    assert facts["likeness_weight"] in LIKENESS_WEIGHTS and facts["neighbor_share"] in SHARES
    assert facts["neighbor_half_life"] in HALF_LIVES
    assert len(ItemNeighbors.load(tmp_path / NEIGHBORS_FILE).starts) == len(split.item_ids) + 2, "a row for each token"
    assert run(split, tmp_path, backbone_dir=tmp_path / "gone", recipe=ITEMS, inputs=key) == facts


def test_what_the_past_is_worth_is_told_beforehand() -> None:
    def reached(ago: int) -> dict[str, Any]:
        split = partners(ago)
        table = sparse.csr_matrix((np.ones(50, np.float32), (np.arange(50), 50 + np.arange(50))), (100, 100))
        return long_against_recent(table, split, split.valid, (2, 12), keep_seen=True)

    old, new = reached(ago=8), reached(ago=1)
    assert old["valid_ndcg@10_recent"] == 0 and old["valid_ndcg@10_long"] > 0.2
    assert old["long_minus_recent"][1] > 0, "the interval of the difference holds zero"
    assert new["valid_ndcg@10_recent"] > 0.9 and new["long_minus_recent"][0] <= 0, "the last two say it all"


def partners(ago: int) -> Split:
    """Item i + 50 comes `ago` events after item i, at the end of a history; the events between say nothing."""
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(60):
        read = rng.permutation(50)[:12].tolist()
        sequences.append([*read, 50 + read[-ago]])
    return world(sequences, train_ends=[12] * 60)


def test_without_targets_neighbours_are_not_asked(split: Split, directory: Path, tmp_path: Path) -> None:
    recipe = replace(ITEMS, mixture_targets=0)
    assert run(split, tmp_path, backbone_dir=directory, recipe=recipe, inputs="x")["neighbor_share"] == 0
    assert stage_key("data", {}, recipe, 0) != stage_key("data", {}, ITEMS, 0)
