"""The index finds the nearest items, exactly up to a size and nearly above it, and is the same after saving."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from model_store import grounding
from model_store.errors import BundleCorrupt
from model_store.grounding import ItemIndex

VECTORS = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
QUERIES = VECTORS[:5] + 0.01


@pytest.fixture(params=["flat", "ivf"])
def index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ItemIndex:
    if request.param == "ivf":
        monkeypatch.setattr(grounding, "MAX_FLAT_ITEMS", 100)
        monkeypatch.setattr(grounding, "_NUM_COMPARED", 400)  # all candidates: then this index is exact too
    return ItemIndex.build(VECTORS)


def exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return np.linalg.norm(queries[:, None] - vectors[None], axis=-1)


def test_search_is_by_l2_nearest_first(index: ItemIndex) -> None:
    rows, distances = index.search(QUERIES, 7)
    expected = exact(VECTORS, QUERIES)
    assert rows.tolist() == expected.argsort(axis=1)[:, :7].tolist()
    assert np.allclose(distances, np.sort(expected, axis=1)[:, :7], atol=1e-3), (
        "distances are not L2 (squared, perhaps)"
    )


def test_a_loaded_index_is_the_one_that_was_saved(index: ItemIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "items.faiss")
    loaded = ItemIndex.load(tmp_path / "items.faiss")
    assert (len(loaded), loaded.dimension) == (400, 8)
    assert loaded.search(QUERIES, 9).rows.tolist() == index.search(QUERIES, 9).rows.tolist()
    loaded.put(np.array([3, 400]), QUERIES[:2])
    assert loaded.vectors(np.array([400])).tolist() == QUERIES[1:2].tolist(), "a loaded index takes no new items"


def test_vectors_come_back_by_row(index: ItemIndex) -> None:
    assert index.vectors(np.array([7, 0])).tolist() == VECTORS[[7, 0]].tolist()


def test_a_put_vector_replaces_the_old_one(index: ItemIndex) -> None:
    far = np.full((2, 8), 50, dtype=np.float32)
    index.put(np.array([0, 400]), far)
    assert len(index) == 401, "replacing an item changed the number of items by more than the new one"
    assert index.vectors(np.array([0])).tolist() == far[:1].tolist()
    assert set(index.search(far[:1], 2).rows[0].tolist()) == {0, 400}, "the new vectors are not found"
    assert 0 not in index.search(VECTORS[:1], 50).rows[0], "the old vector is still found"
    index.put(np.array([400, 0]), VECTORS[:2])
    assert len(index) == 401 and index.vectors(np.array([0, 400])).tolist() == VECTORS[[1, 0]].tolist()
    assert index.search(VECTORS[:1], 2).rows[0, 0] == 400, "what was changed before cannot be changed again"


def test_a_changed_index_searches_as_one_that_was_built_so(index: ItemIndex, tmp_path: Path) -> None:
    fresh = np.random.default_rng(1).normal(size=(60, 8)).astype(np.float32)
    rows = np.concatenate([np.arange(0, 400, 10), np.arange(400, 420)])
    for part in np.array_split(np.arange(60), 7):
        index.put(rows[part], fresh[part])
    vectors = np.concatenate([VECTORS, fresh[40:]])
    vectors[rows] = fresh
    expected = exact(vectors, QUERIES).argsort(axis=1)[:, :9]
    assert index.search(QUERIES, 9).rows.tolist() == expected.tolist()
    index.save(tmp_path / "items.faiss")
    loaded = ItemIndex.load(tmp_path / "items.faiss")
    assert len(loaded) == 420 and loaded.search(QUERIES, 9).rows.tolist() == expected.tolist(), "changes were not saved"


def test_only_items_of_the_mask_are_found(index: ItemIndex) -> None:
    index.put(np.array([5, 400, 401]), QUERIES[:3])
    among = np.arange(402) % 3 == 0
    vectors = np.concatenate([VECTORS, QUERIES[1:3]])
    vectors[5] = QUERIES[0]
    distances = np.where(among, exact(vectors, QUERIES), np.inf)
    assert index.search(QUERIES, 9, among).rows.tolist() == distances.argsort(axis=1)[:, :9].tolist()


@pytest.mark.parametrize("kind", ["IDMap2,Flat", "IVF8,Flat"])
def test_indexes_of_older_bundles_are_read(kind: str, tmp_path: Path) -> None:
    """Those indexes map ids to positions, because they could be changed."""
    older: Any = faiss.index_factory(8, kind)
    if kind.startswith("IVF"):
        older.cp.min_points_per_centroid = 1
        older.train(VECTORS)
        lists = faiss.extract_index_ivf(older)
        lists.nprobe = 8
        lists.set_direct_map_type(2)
    older.add_with_ids(VECTORS, np.arange(400))
    faiss.write_index(older, str(tmp_path / "items.faiss"))
    index = ItemIndex.load(tmp_path / "items.faiss")
    index.put(np.array([3, 400]), QUERIES[:2])
    vectors = np.concatenate([VECTORS, QUERIES[1:2]])
    vectors[3] = QUERIES[0]
    assert index.search(QUERIES, 9).rows.tolist() == exact(vectors, QUERIES).argsort(axis=1)[:, :9].tolist()
    assert index.vectors(np.array([3, 7])).tolist() == vectors[[3, 7]].tolist()


def test_the_search_over_codes_finds_nearly_all_nearest_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors are clustered, as those of titles are; queries are near items."""
    monkeypatch.setattr(grounding, "MAX_FLAT_ITEMS", 100)
    monkeypatch.setattr(grounding, "_NUM_PROBED", 2000)
    random = np.random.default_rng(0)
    centres = random.normal(size=(200, 32))
    vectors = (centres[random.integers(200, size=10_000)] + 0.5 * random.normal(size=(10_000, 32))).astype(np.float32)
    queries = vectors[:100] + 0.1 * random.normal(size=(100, 32)).astype(np.float32)
    found = ItemIndex.build(vectors).search(queries, 10).rows
    expected = exact(vectors, queries).argsort(axis=1)[:, :10]
    recall = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, expected, strict=True)])
    assert recall >= 0.95, f"recall@10 is {recall:.3f}"


def test_missing_results_have_row_minus_one_and_infinite_distance() -> None:
    rows, distances = ItemIndex.build(VECTORS[:2]).search(QUERIES[:1], 4)
    assert rows[0].tolist() == [0, 1, -1, -1]
    assert np.isinf(distances[0, 2:]).all() and np.isfinite(distances[0, :2]).all()


def test_a_file_that_is_no_index_is_a_corrupt_bundle(tmp_path: Path) -> None:
    (tmp_path / "items.faiss").write_bytes(b"not an index")
    with pytest.raises(BundleCorrupt, match=r"items\.faiss"):
        ItemIndex.load(tmp_path / "items.faiss")
