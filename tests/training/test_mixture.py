"""The share of item neighbours is large if they know the answer, and 0 if they do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from model_store.neighbors import ItemNeighbors
from tests.training.small import TINY
from tests.training.worlds import chain
from training.data.splits import Split
from training.items.mixture import (
    HALF_LIVES,
    NEIGHBORS_FILE,
    SHARES,
    ChosenMixture,
    as_neighbors,
    choose_mixture,
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
    """A table in which the only neighbour of item i is item i + step."""
    num_items = len(split.item_ids)
    following = (np.arange(num_items) + step) % num_items
    matrix = sparse.csr_matrix((np.ones(num_items, np.float32), (np.arange(num_items), following)))
    return as_neighbors(matrix, list(range(1, 1 + num_items)), np.ones(num_items, np.int64))


def chosen(split: Split, backbone: Backbone, tables: dict[float, ItemNeighbors]) -> ChosenMixture:
    forecast = forecast_of(backbone, Windows(split, backbone.prompt, ITEMS.max_memory))
    tokens = np.array([backbone.prompt.title_tokens(title)[0] for title in split.titles])
    return choose_mixture(forecast, tables, split, tokens, split.valid[:30], mask_seen=False)


def test_neighbours_that_know_the_answer_get_a_share(split: Split, backbone: Backbone) -> None:
    found = chosen(split, backbone, {0.0: successors(split, 1)})
    assert found.share > 0 and found.valid_ndcg > found.valid_ndcg_alone
    assert found.valid_ndcg > 0.9, "the answer is the first neighbour of the last item"


def test_likeness_is_used_if_it_helps(split: Split, backbone: Backbone) -> None:
    knows, errs = successors(split, 1), successors(split, 7)
    assert chosen(split, backbone, {0.0: errs, 1.0: knows}).likeness_weight == 1.0
    assert chosen(split, backbone, {0.0: knows, 1.0: errs}).likeness_weight == 0.0


def test_the_stage_writes_the_neighbour_table_and_runs_once(split: Split, directory: Path, tmp_path: Path) -> None:
    key = stage_key("data", {"a": 1}, ITEMS, 0)
    facts = run(split, tmp_path, backbone_dir=directory, recipe=ITEMS, inputs=key)
    assert {"valid_ndcg@10_recent", "valid_ndcg@10_long", "long_minus_recent"} <= facts.keys()
    assert facts["likeness_weight"] in LIKENESS_WEIGHTS and facts["neighbor_share"] in SHARES
    assert facts["neighbor_half_life"] in HALF_LIVES
    assert len(ItemNeighbors.load(tmp_path / NEIGHBORS_FILE).starts) == len(split.item_ids) + 2, (
        "there should be a row for each token"
    )
    assert run(split, tmp_path, backbone_dir=tmp_path / "gone", recipe=ITEMS, inputs=key) == facts


def test_without_targets_there_are_no_neighbours(split: Split, directory: Path, tmp_path: Path) -> None:
    recipe = replace(ITEMS, mixture_targets=0)
    assert run(split, tmp_path, backbone_dir=directory, recipe=recipe, inputs="x")["neighbor_share"] == 0
    assert stage_key("data", {}, recipe, 0) != stage_key("data", {}, ITEMS, 0)
