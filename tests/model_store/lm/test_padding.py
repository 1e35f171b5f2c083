"""Ragged rows become one tensor, and the mask tells which columns are real."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_store.lm.padding import Side, pad, pad_values, padding_mask

token_lists = st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=5)


@given(token_lists, st.sampled_from(["left", "right"]), st.integers(-1, 0))
def test_the_mask_gives_back_the_rows(rows: list[list[int]], side: Side, value: int) -> None:
    values, mask = pad(rows, side=side, value=value)
    assert values.shape == mask.shape == (len(rows), max(1, *map(len, rows)))
    assert [values[number][mask[number] == 1].tolist() for number in range(len(rows))] == rows
    assert set(values[mask == 0].tolist()) <= {value}, "padding has another value"


@given(token_lists)
def test_the_last_token_is_at_index_minus_one_when_padded_on_the_left(rows: list[list[int]]) -> None:
    values, mask = pad(rows)
    for row, padded, is_real in zip(rows, values, mask, strict=True):
        assert padded[len(padded) - len(row) :].tolist() == row
        assert is_real.tolist() == sorted(is_real.tolist()), "padding is not on the left"


def test_padding_on_the_right_begins_with_the_first_token() -> None:
    values, mask = pad([[5], [6, 7, 8]], side="right")
    assert values.tolist() == [[5, 0, 0], [6, 7, 8]] and mask.tolist() == [[1, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_of_vectors_keep_their_dtype_and_width(dtype: torch.dtype) -> None:
    rows = [torch.ones(2, 3, dtype=dtype), torch.zeros(0, 3, dtype=dtype)]
    values, mask = pad(rows, side="right")
    assert values.shape == (2, 2, 3) and values.dtype == dtype and mask.tolist() == [[1, 1], [0, 0]]
    assert pad_values(rows[1:]).shape == (1, 1, 3), "a batch of empty rows has an empty dimension"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.sampled_from(["left", "right"]))
def test_the_mask_depends_on_lengths_only(lengths: list[int], side: Side) -> None:
    assert padding_mask(lengths, side=side).equal(pad([[7] * length for length in lengths], side=side).mask)
