"""Paths are sorted, and splicing in a change gives the same result as sorting again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.beams import paths as module
from model_store.beams.paths import Paths

sequences = st.lists(st.lists(st.integers(0, 3), max_size=4).map(tuple), max_size=20)
change = st.dictionaries(st.integers(0, 19), st.lists(st.integers(0, 3), max_size=6).map(tuple), max_size=6)


def in_order(paths: Paths) -> list[tuple[int, ...]]:
    return [paths.sequence(place) for place in range(len(paths))]


@given(sequences)
def test_sequences_are_sorted_and_know_their_rows(rows: list[tuple[int, ...]]) -> None:
    paths = Paths.of(rows)
    assert in_order(paths) == sorted(rows)
    assert [paths.sequence(int(paths.places[row])) for row in range(len(rows))] == rows
    assert paths.order.tolist() == sorted(range(len(rows)), key=lambda row: (rows[row], row)), (
        "equal sequences are not in order of row"
    )


def in_columns(paths: Paths) -> list[list[int]]:
    """The sequences in order, read a token of all of them at a time."""
    columns = [paths.column(depth, 0, len(paths)).tolist() for depth in range(8)]
    return [[token for token in tokens if token >= 0] for tokens in zip(*columns, strict=True)]


@pytest.mark.parametrize("block", [2, 2048], ids=["blocks of two", "one block"])
@pytest.mark.parametrize("many", [0, 10**9], ids=["spliced", "sorted again"])
@settings(deadline=None)
@given(rows=sequences, changes=change, added=sequences)
def test_changed_paths_equal_paths_built_again(
    many: int,
    block: int,
    rows: list[tuple[int, ...]],
    changes: dict[int, tuple[int, ...]],
    added: list[tuple[int, ...]],
) -> None:
    expected = [changes.get(row, sequence) for row, sequence in enumerate(rows)] + added
    new = {
        row: expected[row] for row in [*range(len(rows), len(expected)), *(row for row in changes if row < len(rows))]
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SORT_SHARE", many)
        patch.setattr(module, "_BLOCK", block)
        paths = Paths.of(rows).replaced(np.array(list(new), dtype=np.int64), list(new.values()))
    assert in_order(paths) == sorted(expected)
    assert [paths.sequence(int(paths.places[row])) for row in range(len(expected))] == expected
    assert in_columns(paths) == list(map(list, in_order(paths))), "the columns hold other tokens than the sequences"
    assert paths.tokens.T.tolist() == [[*each, *[-1] * (len(paths.tokens) - len(each))] for each in in_order(paths)]


def test_a_change_copies_only_the_blocks_that_it_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 100)
    old = Paths.of([(row, 7) for row in range(10_000)])
    new = old.replaced(np.array([10_000, 50]), [(5_000, 1), (9_950, 8)])
    shared = {id(block) for block in old._blocks} & {id(block) for block in new._blocks}
    assert len(shared) == 97, "not all blocks are shared but those of row 50 and of the two new places"


def test_a_change_leaves_the_old_paths_unchanged() -> None:
    old = Paths.of([(1, 2), (3,)])
    old.replaced(np.array([0, 2]), [(9, 9, 9), (0,)])
    assert in_order(old) == [(1, 2), (3,)] and old.order.tolist() == [0, 1]
