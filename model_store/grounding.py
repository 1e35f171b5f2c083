"""From a vector to real items: a Faiss index over title embeddings, searched by L2 (BIGRec, arXiv 2308.08434, step 2).

A title's vector is the last layer's state of its last token, read after the prompt's head. Up to `MAX_FLAT_ITEMS` the
search is exact. Above, it reads codes of half a byte per two dimensions in the lists nearest to the query (product
quantisation, scanned in registers), then compares the best of them exactly. The index of a bundle lies in a mapped file
and is never written to: items that come or change stand in a small exact index beside it. The only file that knows
faiss. Not thread-safe: the engine only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from model_store.errors import BundleCorrupt

MAX_FLAT_ITEMS = 50_000
_NUM_PROBED = 200_000  # items in the lists that a search reads: what two milliseconds are enough for
_NUM_COMPARED = 200  # that many candidates, or twice as many as asked for, are compared exactly
_untyped: Any = faiss  # whose stubs know no keywords and want pointers for arrays
_TRAINING_ROUNDS, _POINTS_PER_LIST = 6, 48


class Neighbors(NamedTuple):
    """Nearest first; row -1 with an infinite distance where the index has too few items."""

    rows: NDArray[np.int64]  # (B, K)
    distances: NDArray[np.float32]  # (B, K), L2


class ItemIndex:
    """Ids are catalogue rows."""

    def __init__(self, index: faiss.Index) -> None:
        """`index` has the rows from 0 on, none missing."""
        self._base = index
        self._changed = faiss.IndexIDMap2(faiss.IndexFlatL2(index.d))
        self._replaced = np.empty(0, dtype=np.int64)  # rows of the base that stand in `_changed`
        self._num_items = int(index.ntotal)

    @classmethod
    def build(cls, vectors: NDArray[np.float32]) -> "ItemIndex":
        """`vectors` (N, D); row i becomes item i."""
        vectors = _contiguous(vectors)
        return cls(_flat(vectors) if len(vectors) <= MAX_FLAT_ITEMS else _quantised(vectors))

    @classmethod
    def load(cls, path: Path) -> "ItemIndex":
        """Mapped. The file's checksum must have been verified: Faiss parses it in native code."""
        try:
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))
        except RuntimeError as error:
            raise BundleCorrupt(f"{path}: not a Faiss index; build the bundle again") from error

    def save(self, path: Path) -> None:
        """Changed items are built in."""
        whole = ItemIndex.build(self.vectors(np.arange(len(self)))) if self._changed.ntotal else self
        faiss.write_index(whole._base, str(path))

    def __len__(self) -> int:
        return self._num_items

    @property
    def dimension(self) -> int:
        return int(self._base.d)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The stored vectors (B, D) of rows that are in the index."""
        is_changed = np.isin(rows, self._replaced) | (rows >= self._base.ntotal)
        sources = [self._changed if changed else self._base for changed in is_changed]
        return np.stack([source.reconstruct(int(row)) for source, row in zip(sources, rows, strict=True)])

    def put(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add items, or replace the vectors of items already there. The cost grows with the changed items alone."""
        ids = np.ascontiguousarray(rows, dtype=np.int64)
        self._changed.remove_ids(faiss.IDSelectorArray(ids))
        self._changed.add_with_ids(_contiguous(vectors), ids)
        self._replaced = np.union1d(self._replaced, ids[ids < self._base.ntotal])
        self._num_items = max(self._num_items, int(ids.max(initial=-1)) + 1)

    def search(
        self, vectors: NDArray[np.float32], num_results: int, among: NDArray[np.bool_] | None = None
    ) -> Neighbors:
        """The items nearest to `vectors` (B, D); only those of `among` (N,) if given."""
        queries = _contiguous(vectors)
        with _threads(1):  # threads that meet at a barrier lose more than they win where cores are busy
            squared, rows = _search(self._base, queries, num_results, self._in_base(among))
            if self._changed.ntotal:
                late = _search(self._changed, queries, num_results, among)
                squared, rows = np.hstack([squared, late[0]]), np.hstack([rows, late[1]])
                order = np.argsort(np.where(rows < 0, np.inf, squared), axis=1, kind="stable")[:, :num_results]
                squared, rows = np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)
        return Neighbors(rows, np.sqrt(np.where(rows < 0, np.inf, np.maximum(squared, 0))).astype(np.float32))

    def _in_base(self, among: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Without the rows that were replaced."""
        if not len(self._replaced):
            return among
        mask = np.ones(len(self), dtype=bool) if among is None else among.copy()
        mask[self._replaced] = False
        return mask


def _search(
    index: faiss.Index, queries: NDArray[np.float32], num_results: int, among: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Squared distances and rows (B, K). Faiss keeps no reference to parameters: all are held here until it is done."""
    bits = None if among is None else np.packbits(among, bitorder="little")
    selector = None if bits is None else _untyped.IDSelectorBitmap(bits)
    lists = faiss.try_extract_index_ivf(index)
    if lists is None:
        plain = parameters = _untyped.SearchParameters(sel=selector)
    else:
        plain = parameters = _untyped.SearchParametersIVF(sel=selector, nprobe=lists.nprobe)
    if isinstance(index, faiss.IndexRefine):
        factor = max(2.0, _NUM_COMPARED / num_results)
        parameters = _untyped.IndexRefineSearchParameters(k_factor=factor, base_index_params=plain)
    found: tuple[NDArray[np.float32], NDArray[np.int64]] = index.search(queries, num_results, params=parameters)
    return found


def with_popularity(
    distances: NDArray[np.float32], popularity: NDArray[np.float64], gamma: float
) -> NDArray[np.float64]:
    """d·(1 + p)^(−γ), with d and p scaled to [0, 1] in each row as in BIGRec; γ = 0 keeps the order."""
    scale = distances.max(axis=-1, keepdims=True, initial=1e-12)
    return distances / scale * (1 + popularity / max(popularity.max(initial=0), 1)) ** -gamma


def _flat(vectors: NDArray[np.float32]) -> faiss.Index:
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    return index


def _quantised(vectors: NDArray[np.float32]) -> faiss.Index:
    """√N lists of codes, and the vectors themselves."""
    num_items, dimension = vectors.shape
    num_lists = int(num_items**0.5)
    num_codes = dimension // 2 if dimension % 2 == 0 else dimension
    codes = _untyped.index_factory(dimension, f"IVF{num_lists},PQ{num_codes}x4fs")
    codes.cp.niter, codes.cp.max_points_per_centroid = _TRAINING_ROUNDS, _POINTS_PER_LIST
    sample = np.random.default_rng(0).permutation(num_items)[: num_lists * _POINTS_PER_LIST]
    with _threads(1):  # of hundreds of small problems, each of which would wait for all threads
        codes.train(vectors[np.sort(sample)])
    codes.add(vectors)
    codes.nprobe = min(num_lists, round(num_lists * _NUM_PROBED / num_items))
    return faiss.IndexRefine(codes, _flat(vectors))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Of Faiss, while in it; torch has its own."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _contiguous(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors, dtype=np.float32)
