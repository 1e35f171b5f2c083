"""The retriever is a distribution over the null slot and the memory elements; selected elements are in time order."""

import pytest
import torch
from torch import Tensor

from model_store.memory.retriever import Retriever, Selection, choose, take


def parts(num_memories: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Query state, memory and mask of two rows; the second row has one memory element fewer than the first."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, num_memories, dtype=torch.long)
    mask[1, -1:] = 0
    query = torch.randn(2, 8, generator=generator).to(dtype)
    return query, torch.randn(2, num_memories, 8, generator=generator).to(dtype), mask


def make(has_null: bool = True) -> Retriever:
    torch.manual_seed(0)
    return Retriever(8, width=4, has_null=has_null).requires_grad_(False)


@pytest.mark.parametrize("has_null", [True, False])
def test_scores_are_a_distribution_without_padding(has_null: bool) -> None:
    query, memory, mask = parts()
    log_scores = make(has_null)(query, memory, mask)
    assert log_scores.shape == (2, 5) and log_scores.dtype == torch.float32
    assert torch.allclose(log_scores.exp().sum(dim=1), torch.ones(2)), "probabilities do not add up to one"
    assert log_scores[1, 4] == -torch.inf, "padding has a score"
    assert (log_scores[:, 0] == -torch.inf).all() != has_null, (
        "the null slot is on when it should be off, or the reverse"
    )


def test_padding_and_other_rows_change_no_score() -> None:
    query, memory, mask = parts()
    retriever = make()
    alone = retriever(query[1:], memory[1:, :3], mask[1:, :3])
    assert torch.allclose(retriever(query, memory, mask)[1:, :4], alone, atol=1e-6), "a longer batch changes scores"


def test_numbers_in_padding_have_no_effect() -> None:
    query, memory, mask = parts()
    noisy = memory.clone()
    noisy[1, 3] = 1e4
    assert make()(query, noisy, mask).equal(make()(query, memory, mask))


@pytest.mark.parametrize("has_null", [True, False])
def test_without_memory_nothing_is_chosen(has_null: bool) -> None:
    query, memory, _ = parts(1)
    log_scores = make(has_null)(query, memory, torch.zeros(2, 1, dtype=torch.long))
    assert log_scores[:, 0].tolist() == ([0.0, 0.0] if has_null else [-torch.inf] * 2)
    assert not log_scores.isnan().any(), "a user without memory gets NaN scores"
    assert choose(log_scores, 2).mask.sum() == 0, "a memory element was chosen where there is none"


def chosen(selection: Selection) -> list[list[int]]:
    return [selection.indices[row][selection.mask[row] == 1].tolist() for row in range(len(selection.mask))]


@pytest.mark.parametrize(
    ("top_k", "expected"), [(1, [[3], []]), (2, [[0, 3], []]), (3, [[0, 1, 3], []]), (9, [[0, 1, 3], []])]
)
def test_the_best_above_the_null_slot_are_chosen_in_time_order(top_k: int, expected: list[list[int]]) -> None:
    log_scores = torch.tensor([[0.1, 0.2, 0.15, 0.05, 0.5], [0.9, 0.03, 0.03, 0.02, 0.02]]).log()
    selection = choose(log_scores, top_k)
    assert chosen(selection) == expected
    assert selection.mask.equal(selection.mask.sort(dim=1).values), "unused slots are not padding on the left"


def test_without_a_null_slot_all_elements_may_be_chosen() -> None:
    query, memory, mask = parts()
    counts = [len(row) for row in chosen(choose(make(has_null=False)(query, memory, mask), 4))]
    assert counts == [4, 3], "padding was chosen, or a memory was not"


def test_take_returns_the_chosen_states() -> None:
    _, memory, _ = parts()
    selection = Selection(torch.tensor([[0, 2], [1, 1]]), torch.ones(2, 2, dtype=torch.long))
    assert take(memory, selection).equal(torch.stack([memory[0, [0, 2]], memory[1, [1, 1]]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arguments_are_not_changed(dtype: torch.dtype) -> None:
    query, memory, mask = parts(dtype=dtype)
    before = [tensor.clone() for tensor in (query, memory, mask)]
    log_scores = make()(query, memory, mask)
    kept = log_scores.clone()
    take(memory, choose(log_scores, 2)).zero_()
    assert log_scores.dtype == torch.float32, "scores are not computed in fp32"
    after = (query, memory, mask)
    assert all(old.equal(new) for old, new in zip(before, after, strict=True)), "the retriever changed its arguments"
    assert kept.equal(log_scores), "choose changed the scores"


def test_huge_coordinates_do_not_overflow() -> None:
    query, memory, mask = parts()
    assert not make()(query * 6e4, memory.half() * 100, mask).isnan().any()


def test_a_user_without_memory_gives_finite_gradients() -> None:
    query, memory, mask = parts()
    for has_null in (True, False):
        retriever = make(has_null).requires_grad_(True)
        log_scores = retriever(query, memory, torch.stack([mask[0], torch.zeros(4, dtype=torch.long)]))
        log_scores[0, 1].backward()
        gradients = [parameter.grad for parameter in retriever.parameters() if parameter.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients), f"{has_null=}: NaN in training"
