"""The losses of tuning and of its validation, on known cases and against a slow computation."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from model_store.memory.combine import combine
from tests.training.small import TINY, diary, small_lm, small_windows
from training.data.splits import Split, Target
from training.lm.likelihood import answer_log_probs, encode_answers
from training.lm.objectives import first_step_with_retrieved, ndcg_loss, token_popularity, training_loss, validation
from training.lm.packing import HeadInputs, PackedBatches, PackedRow, head_inputs
from training.lm.tuning import make_model
from training.lm.windows import Windows
from training.run.recipes import Recipe

ITEMS = replace(TINY, vocabulary="items", sft_valid_targets=1000, memory_share=0.5, memory_sizes=(1, 4))
CPU = torch.device("cpu")


def item_world(recipe: Recipe = ITEMS, split: Split | None = None) -> tuple[SplitLM, Windows]:
    split = split or diary()
    made = make_model(split, recipe, None, CPU)
    lm = SplitLM(made.model, 1)
    with torch.no_grad():  # a new model gives nearly uniform forecasts
        for name, parameter in lm.model.named_parameters():
            if "norm" not in name:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return lm, Windows(split, made.prompt, 12)


@pytest.mark.parametrize(("rank", "gain"), [(1, 1.0), (2, 1 / math.log2(3)), (10, 1 / math.log2(11)), (11, 0.0)])
def test_the_loss_of_a_target_depends_on_its_rank(rank: int, gain: float) -> None:
    logits = -torch.arange(20.0)[None]
    assert ndcg_loss(logits, torch.tensor([rank - 1])) == pytest.approx(1 - gain)


def test_losses_of_targets_are_added() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert ndcg_loss(logits, torch.tensor([0, 1])) == pytest.approx(0 + 1 - 1 / math.log2(3))


def by_hand(lm: SplitLM, windows: Windows, target: Target, memory_size: int) -> float:
    """1 − NDCG@10 of one target; its prompt and each memory are read separately.

    As when serving, a memory is the state of the window of K titles that ends with it.
    """
    history = windows.titles(windows.split.histories[target.user].items)
    tokens, mask = pad([windows.prompt_ending_at(target.user, target.position - 1)])
    places = windows.memory_positions(target).tolist()
    memory = [lm.bottom(*pad([windows.prompt_ending_at(target.user, at)]))[0, -1] for at in places]
    shown = memory[-memory_size:] if memory_size else []
    stacked = torch.stack(shown)[None] if shown else torch.zeros(1, 0, lm.hidden_size)
    combined = combine(
        lm.bottom(tokens, mask), mask, stacked, torch.ones(stacked.shape[:2], dtype=torch.long), "insert"
    )
    logits = lm.top(combined.states, combined.mask, num_logits=1)[0, 0]
    truth = windows.prompt.title_tokens(history[target.position])[0]
    rank = int((logits > logits[truth]).sum())
    return 1 - (1 / math.log2(rank + 2) if rank < 10 else 0.0)


@pytest.mark.parametrize("memory_share", [0.0, 0.5])
@torch.inference_mode()
def test_items_are_validated_by_the_ranks_of_valid_targets(memory_share: float) -> None:
    """A recipe with memory: the mean of the loss without memory and with the newest `max(memory_sizes)`."""
    recipe = replace(ITEMS, memory_share=memory_share)
    lm, windows = item_world(recipe)
    lm.model.eval()
    targets = [target for target in windows.split.valid if target.position > 0]
    assert len(targets) == len(windows.split.valid), "a target of this test has no history"
    sizes = (0, 4) if memory_share else (0,)
    expected = sum(by_hand(lm, windows, target, size) for target in targets for size in sizes)
    expected /= len(targets) * len(sizes)
    assert validation(lm, windows, recipe, seed=0)() == pytest.approx(expected, abs=1e-4)
    assert 0 < expected < 1, "the two cases do not differ, so the test proves nothing"


@torch.inference_mode()
def test_titles_are_validated_by_their_likelihood() -> None:
    lm, windows = small_lm(), small_windows()
    recipe = replace(TINY, sft_valid_targets=1000, memory_share=0.0)
    examples = [windows.example(target) for target in windows.split.valid]
    nothing = torch.zeros(len(examples), 0, lm.hidden_size), torch.zeros(len(examples), 0, dtype=torch.long)
    batch = encode_answers(lm, [each.prompt for each in examples], [each.answer for each in examples])
    expected = -answer_log_probs(lm, batch, *nothing, "insert").mean()
    assert validation(lm, windows, recipe, seed=0)() == pytest.approx(float(expected), rel=1e-3)


def test_retrieved_memory_begins_after_two_thirds_of_the_steps_with_memory() -> None:
    sft = replace(ITEMS.sft, max_steps=700)
    assert first_step_with_retrieved(replace(ITEMS, sft=sft, memory_from=100)) == 500
    assert first_step_with_retrieved(replace(ITEMS, sft=sft, memory_from=900)) >= 700, "a step has retrieved memory"


def test_validation_leaves_the_model_in_training_mode() -> None:
    lm, windows = item_world(replace(ITEMS, dropout=0.5))
    lm.model.train()
    validate = validation(lm, windows, ITEMS, seed=0)
    assert validate() == validate(), "dropout is active in validation"
    assert lm.model.training


def test_items_of_one_title_are_one_answer() -> None:
    split = replace(diary((5,)), titles=["a", "b", "a", "c", "b"], popularity=torch.tensor([1, 2, 4, 8, 16]).numpy())
    made = make_model(split, replace(ITEMS, collaborative_start=False), None, CPU)
    assert token_popularity(Windows(split, made.prompt, 4), 6).tolist() == [0, 5, 18, 8, 0, 0]


@torch.inference_mode()
def test_the_softmax_is_over_a_small_catalogue_or_a_sample_of_a_large_one() -> None:
    lm, windows = item_world()
    lm.model.eval()
    batches = PackedBatches(windows, num_blocks=8, memory_share=0.5, seed=0, memory_sizes=(1, 4))
    packed = head_inputs(lm, batches(0))
    exact = float(F.cross_entropy(lm.head(packed.hidden).float(), packed.labels))
    assert float(training_loss(lm, windows, ITEMS, seed=0)(0)) == pytest.approx(exact, rel=1e-4)
    part = replace(ITEMS, max_softmax_items=10, softmax_popular=5, softmax_sampled=3)
    losses = [float(training_loss(lm, windows, part, seed=0)(0)) for _ in range(2)]
    assert losses[0] != losses[1], "the loss uses the whole catalogue"
    whole = replace(part, softmax_popular=10_000)
    assert float(training_loss(lm, windows, whole, seed=0)(0)) == pytest.approx(exact, rel=1e-4)


def test_the_batches_of_one_step_share_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, windows = item_world(split=diary((14,) * 12))
    sizes: list[int] = []

    def watched(lm: SplitLM, rows: Sequence[PackedRow]) -> HeadInputs:
        sizes.append(len(rows))
        return head_inputs(lm, rows)

    monkeypatch.setattr("training.lm.objectives.head_inputs", watched)
    for accumulate in (1, 2, 4):
        training_loss(lm, windows, replace(ITEMS, sft=replace(ITEMS.sft, accumulate=accumulate)), seed=0)(0)
    assert sizes[0] > sizes[1] > sizes[2], "each batch has as many blocks as a whole step"
