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


@pytest.mark.parametrize("many", [0, 10**9], ids=["spliced", "sorted again"])
@settings(deadline=None)
@given(rows=sequences, changes=change, added=sequences)
def test_changed_paths_equal_paths_built_again(
    many: int, rows: list[tuple[int, ...]], changes: dict[int, tuple[int, ...]], added: list[tuple[int, ...]]
) -> None:
    expected = [changes.get(row, sequence) for row, sequence in enumerate(rows)] + added
    new = {
        row: expected[row] for row in [*range(len(rows), len(expected)), *(row for row in changes if row < len(rows))]
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SORT_SHARE", many)
        paths = Paths.of(rows).replaced(np.array(list(new), dtype=np.int64), list(new.values()))
    assert in_order(paths) == sorted(expected)
    assert [paths.sequence(int(paths.places[row])) for row in range(len(expected))] == expected


def test_a_change_leaves_the_old_paths_unchanged() -> None:
    old = Paths.of([(1, 2), (3,)])
    old.replaced(np.array([0, 2]), [(9, 9, 9), (0,)])
    assert in_order(old) == [(1, 2), (3,)] and old.order.tolist() == [0, 1]
