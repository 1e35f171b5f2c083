"""From a vector to real items: a Faiss index over title embeddings, searched by L2 (BIGRec, arXiv 2308.08434, step 2).

A title's vector is the last layer's state of its last token, read after the prompt's head. Exact search up to
`MAX_FLAT_ITEMS`, inverted lists above. The only file that knows faiss. Not thread-safe: the engine thread only.
"""

from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from model_store.errors import BundleCorrupt

MAX_FLAT_ITEMS = 50_000
_NUM_PROBES = 16
_HASHTABLE = 2  # faiss::DirectMap::Hashtable, which the stubs lack


class Neighbors(NamedTuple):
    """Nearest first; row -1 with an infinite distance where the index has too few items."""

    rows: NDArray[np.int64]  # (B, K)
    distances: NDArray[np.float32]  # (B, K), L2


class ItemIndex:
    """Ids are catalogue rows."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: NDArray[np.float32]) -> "ItemIndex":
        """`vectors` (N, D); row i becomes item i."""
        index = _empty(vectors)
        index.add_with_ids(_contiguous(vectors), np.arange(len(vectors), dtype=np.int64))
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> "ItemIndex":
        """The file's checksum must have been verified: Faiss parses it in native code."""
        try:
            return cls(faiss.read_index(str(path)))
        except RuntimeError as error:
            raise BundleCorrupt(f"{path}: not a Faiss index; build the bundle again") from error

    def save(self, path: Path) -> None:
        faiss.write_index(self._index, str(path))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        return int(self._index.d)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The stored vectors (B, D) of rows that are in the index."""
        return np.stack([self._index.reconstruct(int(row)) for row in rows])

    def put(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add items, or replace the vectors of items already there."""
        ids = np.ascontiguousarray(rows, dtype=np.int64)
        self._index.remove_ids(faiss.IDSelectorArray(ids))
        self._index.add_with_ids(_contiguous(vectors), ids)

    def search(self, vectors: NDArray[np.float32], num_results: int) -> Neighbors:
        """The items nearest to `vectors` (B, D)."""
        squared, rows = self._index.search(_contiguous(vectors), num_results)
        return Neighbors(rows, np.sqrt(np.where(rows < 0, np.inf, np.maximum(squared, 0))).astype(np.float32))


def with_popularity(
    distances: NDArray[np.float32], popularity: NDArray[np.float64], gamma: float
) -> NDArray[np.float64]:
    """d·(1 + p)^(−γ), with d and p scaled to [0, 1] in each row as in BIGRec; γ = 0 keeps the order."""
    scale = distances.max(axis=-1, keepdims=True, initial=1e-12)
    return distances / scale * (1 + popularity / max(popularity.max(initial=0), 1)) ** -gamma


def _empty(vectors: NDArray[np.float32]) -> faiss.Index:
    num_items, dimension = vectors.shape
    if num_items <= MAX_FLAT_ITEMS:
        return faiss.IndexIDMap2(faiss.IndexFlatL2(dimension))
    index = faiss.index_factory(dimension, f"IVF{int(4 * num_items**0.5)},Flat")
    lists = faiss.extract_index_ivf(index)  # a view: `index` owns the memory
    lists.nprobe = _NUM_PROBES
    index.train(_contiguous(vectors))
    lists.set_direct_map_type(_HASHTABLE)  # without it neither `vectors` nor `put` could find an id
    return index


def _contiguous(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors, dtype=np.float32)
