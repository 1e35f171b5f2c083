"""Likelihoods of true titles are the same whether memories share the keys and values of the prompt or not."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model_store.lm.split_lm import SplitLM
from tests.conftest import make_model
from tests.training.small import small_lm
from training.lm.likelihood import EncodedBatch, answer_log_probs, encode_answers, log_probs_by_element

# With sliding attention padding counts as distance; a bundle refuses windows that do not fit (see test_bundle.py).
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma", "phi3", "olmo2", "gpt_neox")
PLACEMENTS = ("insert", "prepend")
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]
ANSWERS = [[20, 21], [22, 23, 24, 25], [26]]
SIZES = [3, 0, 5]  # memory elements


@pytest.fixture(scope="module")
def lms() -> dict[str, SplitLM]:
    return {architecture: small_lm(architecture) for architecture in ARCHITECTURES}


@torch.inference_mode()
def encoded(lm: SplitLM, rows: slice = slice(None)) -> EncodedBatch:
    return encode_answers(lm, PROMPTS[rows], ANSWERS[rows])


def memories(lm: SplitLM) -> list[Tensor]:
    """float16, as they are stored."""
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.normal(size=(size, lm.hidden_size)).astype(np.float16)) for size in SIZES]


@torch.inference_mode()
def one_by_one(lm: SplitLM, placement: str) -> list[list[float]]:
    """Each row and each memory in its own batch; first without memory."""
    scores: list[list[float]] = []
    for row, memory in enumerate(memories(lm)):
        batch = encoded(lm, slice(row, row + 1))
        choices = [memory[:0], *memory[:, None]]
        masks = [torch.ones(1, len(choice), dtype=torch.long) for choice in choices]
        pairs = zip(choices, masks, strict=True)
        scores.append([float(answer_log_probs(lm, batch, choice[None], mask, placement)) for choice, mask in pairs])
    return scores


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_all_memories_at_once_equal_memories_one_by_one(
    architecture: str, placement: str, lms: dict[str, SplitLM]
) -> None:
    lm = lms[architecture]
    together = log_probs_by_element(lm, encoded(lm), memories(lm), placement)
    for row, (found, expected) in enumerate(zip(together, one_by_one(lm, placement), strict=True)):
        assert found.tolist() == pytest.approx(expected, abs=1e-3), f"row {row} (element 0 is no memory)"


@pytest.mark.parametrize("max_rows", [1, 2, 7])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_chunk_size_changes_nothing(max_rows: int, placement: str, lms: dict[str, SplitLM]) -> None:
    lm = lms["llama"]
    whole = log_probs_by_element(lm, encoded(lm), memories(lm), placement)
    chunked = log_probs_by_element(lm, encoded(lm), memories(lm), placement, max_rows=max_rows)
    for found, expected in zip(chunked, whole, strict=True):
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_without_memory_it_is_the_likelihood_of_the_unsplit_model(architecture: str, lms: dict[str, SplitLM]) -> None:
    lm, whole = lms[architecture], make_model(architecture)
    scores = log_probs_by_element(lm, encoded(lm), memories(lm), "insert")
    for prompt, answer, found in zip(PROMPTS, ANSWERS, scores, strict=True):
        log_probs = whole(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        expected = log_probs.gather(1, torch.tensor(answer)[:, None]).sum()
        assert found[0].item() == pytest.approx(expected.item(), abs=1e-3)


@torch.inference_mode()
def test_masked_memory_equals_no_memory(lms: dict[str, SplitLM]) -> None:
    lm = lms["qwen2"]
    batch, padding = encoded(lm), torch.randn(3, 2, lm.hidden_size)
    masked = answer_log_probs(lm, batch, padding, torch.zeros(3, 2, dtype=torch.long), "insert")
    nothing = answer_log_probs(lm, batch, padding[:, :0], torch.zeros(3, 0, dtype=torch.long), "insert")
    assert masked.tolist() == pytest.approx(nothing.tolist(), abs=1e-4)


def test_memories_differ_and_all_values_are_probabilities(lms: dict[str, SplitLM]) -> None:
    lm = lms["llama"]
    for scores, memory in zip(log_probs_by_element(lm, encoded(lm), memories(lm), "insert"), SIZES, strict=True):
        assert len(set(scores.tolist())) == 1 + memory, "some memories give the same likelihood"
        assert (scores <= 0).all()
