"""Where selected memory states are placed in the input of the top half."""

import pytest
import torch

from model_store.memory.combine import combine, split_prompt

MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])
MEMORY_MASK = torch.tensor([[0, 1], [1, 1]])
PROMPT = torch.arange(1.0, 7).reshape(2, 3, 1)
MEMORY = torch.arange(10.0, 14).reshape(2, 2, 1)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [("prepend", [[11, 2, 3], [12, 13, 4, 5, 6]]), ("insert", [[2, 11, 3], [4, 5, 12, 13, 6]])],
)
def test_memory_is_placed_as_asked(placement: str, expected: list[list[float]]) -> None:
    states, mask = combine(PROMPT, MASK, MEMORY, MEMORY_MASK, placement)
    assert states.shape == (2, 5, 1) and mask.shape == (2, 5)
    assert [states[row, mask[row] == 1, 0].tolist() for row in range(2)] == expected
    assert mask.dtype == MASK.dtype


@pytest.mark.parametrize("placement", ["prepend", "insert"])
def test_the_query_state_is_always_last(placement: str) -> None:
    states, mask = combine(PROMPT, MASK, MEMORY, MEMORY_MASK, placement)
    assert states[:, -1].equal(PROMPT[:, -1]) and mask[:, -1].all(), "the answer is not predicted from z_t"


@pytest.mark.parametrize("placement", ["prepend", "insert"])
def test_without_memory_the_input_is_the_prompt(placement: str) -> None:
    states, mask = combine(PROMPT, MASK, MEMORY[:, :0], MEMORY_MASK[:, :0], placement)
    assert states.equal(PROMPT) and mask.equal(MASK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("placement", ["prepend", "insert"])
def test_arguments_are_not_changed(placement: str, dtype: torch.dtype) -> None:
    arguments = [PROMPT.to(dtype), MASK.clone(), MEMORY.half(), MEMORY_MASK.clone()]
    before = [argument.clone() for argument in arguments]
    states, _ = combine(arguments[0], arguments[1], arguments[2], arguments[3], placement)
    states.zero_()
    assert states.dtype == dtype, "float16 memory changed the dtype of the result"
    assert all(old.equal(new) for old, new in zip(before, arguments, strict=True)), "combine changed its arguments"


def test_the_two_parts_of_a_prompt_together_are_the_prompt() -> None:
    for placement in ("prepend", "insert"):
        before, after = split_prompt(PROMPT, MASK, placement)
        assert torch.cat([before.states, after.states], dim=1).equal(PROMPT)


def test_the_error_for_an_unknown_placement_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="prepend, insert"):
        combine(PROMPT, MASK, MEMORY, MEMORY_MASK, "append")
