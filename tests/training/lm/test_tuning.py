"""A seed fixes everything that is random in tuning, also after an interrupt; another seed changes all of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model_store.lm.split_lm import SplitLM
from tests.training.small import TINY, diary
from training.lm import tuning
from training.lm.objectives import training_loss
from training.lm.packing import PackedBatches, PackedRow
from training.lm.tuning import make_model, stage_key, trainable
from training.lm.windows import Windows
from training.run.device import seed_everything
from training.run.loop import torch_seed

CPU = torch.device("cpu")
# Dropout, sampled negatives, random and retrieved memories.
RECIPE = replace(
    TINY,
    vocabulary="items",
    dropout=0.3,
    max_softmax_items=10,
    softmax_popular=5,
    softmax_sampled=8,
    memory_retrieved_share=0.5,
    collaborative_start=False,
    sft=replace(TINY.sft, max_steps=6),
)


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "lm" / "model.safetensors")


def tuned(directory: Path, seed: int) -> dict[str, Tensor]:
    tuning.run(diary(), directory, recipe=RECIPE, inputs="x", seed=seed, device="cpu")
    return weights(directory)


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_one_seed_repeats_exactly_and_another_does_not(tmp_path: Path) -> None:
    first = tuned(tmp_path / "a", 5)
    assert are_equal(first, tuned(tmp_path / "b", 5))
    assert not are_equal(first, tuned(tmp_path / "c", 6))


@pytest.mark.parametrize("stop_before", [1, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(
    stop_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*args: Any) -> Callable[[int], Tensor]:
        loss_at = training_loss(*args)

        def loss(number: int) -> Tensor:
            if number == stop_before:
                raise KeyboardInterrupt
            return loss_at(number)

        return loss

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tuning, "training_loss", stopping)
        tuned(tmp_path / "cut", 5)
    assert are_equal(tuned(tmp_path / "cut", 5), tuned(tmp_path / "whole", 5))


# --- each random part alone ---------------------------------------------------------------------------------------


def test_initial_weights_depend_on_the_seed() -> None:
    def start(seed: int) -> dict[str, Tensor]:
        seed_everything(seed)
        return {name: each.detach() for name, each in trainable(make_model(diary(), RECIPE, None, CPU).model).items()}

    assert are_equal(start(0), start(0)) and not are_equal(start(0), start(1))


@pytest.mark.parametrize("part", ["dropout", "negatives"])
def test_what_torch_draws_depends_on_the_seed(part: str) -> None:
    """The same weights and the same batch; only the generator of torch differs, as `fit` seeds it."""
    off = {"dropout": 0.0} if part == "negatives" else {"max_softmax_items": 10_000}
    recipe = replace(RECIPE, **off)
    seed_everything(0)
    made = make_model(diary(), recipe, None, CPU)
    lm = SplitLM(made.model, 1)
    lm.model.train()
    loss_at = training_loss(lm, Windows(diary(), made.prompt, 12), recipe, 0)

    def loss(seed: int) -> float:
        torch.manual_seed(torch_seed(seed, 3))
        return float(loss_at(3).detach())

    assert loss(0) == loss(0) and loss(0) != loss(1)


def test_batches_and_memories_depend_on_the_seed() -> None:
    made = make_model(diary(), RECIPE, None, CPU)
    windows = Windows(diary(), made.prompt, 12)

    def rows(seed: int, **changes: Any) -> list[PackedRow]:
        options: dict[str, Any] = {"num_blocks": 8, "memory_share": 0.7, "retrieved_share": 0.5, **changes}
        return [row for step in range(4) for row in PackedBatches(windows, seed=seed, **options)(step)]

    assert rows(0) == rows(0)
    assert [row.block for row in rows(0)] != [row.block for row in rows(1)], "the batches are the same"
    drawn = [{(tuple(row.block.tokens), tuple(row.memory)) for row in rows(seed, num_blocks=999)} for seed in (0, 1)]
    assert drawn[0] != drawn[1], "the memories are the same"


def test_seeds_of_torch_differ_between_any_two_batches() -> None:
    seeds = {torch_seed(seed, batch) for seed in range(20) for batch in range(200)}
    assert len(seeds) == 20 * 200


def test_the_key_changes_with_what_changes_the_weights() -> None:
    key = stage_key("data", RECIPE, None, 0)
    assert key == stage_key("data", RECIPE, None, 0)
    for changed in ({"memory_retrieved_share": 0.1}, {"top_ks": (2,)}, {"memory_share": 0.1}, {"dropout": 0.1}):
        assert stage_key("data", replace(RECIPE, **changed), None, 0) != key, f"{changed} does not change the key"
    assert stage_key("data", RECIPE, None, 1) != key
    plain = replace(RECIPE, memory_share=0.0)
    unused = replace(plain, memory_retrieved_share=0.1, top_ks=(2,))
    assert stage_key("data", plain, None, 0) == stage_key("data", unused, None, 0), "it would run again without need"
