"""The votes of neighbours are a distribution, mixing is a weighted mean, and a saved table reads back unchanged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import BundleCorrupt
from model_store.neighbors import ItemNeighbors, mix

# 1 → 2 (.5), 3 (.25); 2 → 1 (.5); 0 and 3 have no neighbours
TABLE = ItemNeighbors(np.array([0, 0, 2, 3, 3]), np.array([2, 3, 1], np.int32), np.array([0.5, 0.25, 0.5], np.float32))


def test_the_newest_item_counts_most() -> None:
    votes = TABLE.votes([2, 1], 4, half_life=1.0)
    raw = np.array([0, 0.5 * 0.5, 0.5, 0.25])  # item 2 is one event old: half its vote
    np.testing.assert_allclose(votes, raw / raw.sum())


@given(st.lists(st.integers(0, 9), max_size=12), st.floats(0.1, 50))
def test_votes_are_a_distribution_or_all_zero(tokens: list[int], half_life: float) -> None:
    """Tokens beyond the table are titles added later, which have no neighbours."""
    total = TABLE.votes(tokens, 10, half_life).sum()
    assert total == pytest.approx(1, abs=1e-5) if {1, 2} & set(tokens) else total == 0


@given(st.floats(0, 0.99), st.integers(0, 100))
def test_a_mixture_is_a_distribution_and_without_votes_the_forecast_itself(share: float, seed: int) -> None:
    log_probs = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)).log_softmax(dim=1)
    votes = np.stack([TABLE.votes([1], 4, 1.0), np.zeros(4, np.float32)])
    mixed = mix(log_probs, votes, share)
    torch.testing.assert_close(mixed.exp().sum(dim=1), torch.ones(2))
    torch.testing.assert_close(mixed[0].exp(), (1 - share) * log_probs[0].exp() + share * torch.from_numpy(votes[0]))
    torch.testing.assert_close(mixed[1], log_probs[1], msg="a row without votes was changed")


def test_a_saved_table_reads_back_unchanged(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "n.safetensors")
    for found, expected in zip(ItemNeighbors.load(tmp_path / "n.safetensors"), TABLE, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("content", [None, b"", b"not a table"])
def test_a_missing_or_broken_file_is_a_corrupt_bundle(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "n.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BundleCorrupt):
        ItemNeighbors.load(file)
