"""Grounding: a Faiss index over title embeddings, searched by L2 distance (BIGRec, arXiv 2308.08434, step 2).

The vector of a title is the final hidden state of its last token, read after the head of the prompt. Up to
`MAX_FLAT_ITEMS` items the search is exact. Above that, it scans product-quantised codes (half a byte for two
dimensions) in the lists nearest to the query, then compares the best candidates exactly. The index of a bundle is a
memory-mapped file and is never changed: items that are added or changed are in a small exact index beside it. This is
the only module that imports faiss. Not thread-safe.
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
_NUM_PROBED = 200_000  # items in the lists that a search scans; takes about two milliseconds
_NUM_COMPARED = 200  # candidates that are compared exactly; twice the number of results if that is more
_TRAINING_ROUNDS, _POINTS_PER_LIST = 6, 48
_untyped: Any = faiss  # its stubs have no keyword arguments and want pointers for arrays


class NearestItems(NamedTuple):
    """Search results, nearest first; row -1 and an infinite distance where there are fewer than K items."""

    rows: NDArray[np.int64]  # (B, K)
    distances: NDArray[np.float32]  # (B, K), L2


class ItemIndex:
    """An index of title embeddings. Ids are catalogue rows."""

    def __init__(self, index: faiss.Index) -> None:
        """`index` holds the rows 0 … N − 1."""
        self._base = index
        self._changed = faiss.IndexIDMap2(faiss.IndexFlatL2(index.d))
        self._places: dict[int, int] = {}  # row → place of its vector in `_changed`
        self._replaced = np.empty(0, dtype=np.int64)  # rows of `_base` that `_changed` replaces
        self._num_items = int(index.ntotal)

    @classmethod
    def build(cls, vectors: NDArray[np.float32]) -> "ItemIndex":
        """An index of `vectors` (N, D); vector i belongs to catalogue row i."""
        vectors = _contiguous(vectors)
        return cls(_flat_index(vectors) if len(vectors) <= MAX_FLAT_ITEMS else _quantised_index(vectors))

    @classmethod
    def load(cls, path: Path) -> "ItemIndex":
        """Memory-map an index. Verify the checksum of the file first: Faiss parses it in native code.

        Raises BundleCorrupt.
        """
        try:
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))
        except RuntimeError as error:
            raise BundleCorrupt(f"{path}: not a Faiss index; build the bundle again") from error

    def save(self, path: Path) -> None:
        """Write the index to `path`. Changed items are merged into it."""
        whole = ItemIndex.build(self.vectors(np.arange(len(self)))) if self._changed.ntotal else self
        faiss.write_index(whole._base, str(path))

    def __len__(self) -> int:
        return self._num_items

    @property
    def dimension(self) -> int:
        return int(self._base.d)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The stored vectors (B, D) of `rows` (B,), which must be in the index."""
        is_changed = np.isin(rows, self._replaced) | (rows >= self._base.ntotal)
        sources = [self._changed if changed else self._base for changed in is_changed]
        return np.stack([source.reconstruct(int(row)) for source, row in zip(sources, rows, strict=True)])

    def put(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add or replace the vectors (B, D) of `rows` (B,), which are all different. Costs these rows only."""
        ids = np.ascontiguousarray(rows, dtype=np.int64)
        is_known = np.array([row in self._places for row in ids.tolist()], dtype=bool)
        if is_known.any():
            stored = _stored_vectors(self._changed)
            stored[[self._places[row] for row in ids[is_known].tolist()]] = vectors[is_known]
        fresh = ids[~is_known]
        self._places.update(
            zip(fresh.tolist(), range(self._changed.ntotal, self._changed.ntotal + len(fresh)), strict=True)
        )
        self._changed.add_with_ids(_contiguous(vectors[~is_known]), fresh)
        in_base = fresh[fresh < self._base.ntotal]
        if len(in_base):
            self._replaced = np.union1d(self._replaced, in_base)
        self._num_items = max(self._num_items, int(ids.max(initial=-1)) + 1)

    def search(
        self, vectors: NDArray[np.float32], num_results: int, among: NDArray[np.bool_] | None = None
    ) -> NearestItems:
        """The `num_results` items nearest to each of `vectors` (B, D), only items of `among` (N,) bool if given."""
        queries = _contiguous(vectors)
        with _threads(1):  # with busy cores, waiting for other threads costs more than they save
            squared, rows = _search(self._base, queries, num_results, self._in_base(among))
            if self._changed.ntotal:
                changed = _search(self._changed, queries, num_results, among)
                squared, rows = np.hstack([squared, changed[0]]), np.hstack([rows, changed[1]])
                order = np.argsort(np.where(rows < 0, np.inf, squared), axis=1, kind="stable")[:, :num_results]
                squared, rows = np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)
        return NearestItems(rows, np.sqrt(np.where(rows < 0, np.inf, np.maximum(squared, 0))).astype(np.float32))

    def _in_base(self, among: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """The mask `among` without replaced rows."""
        if not len(self._replaced):
            return among
        mask = np.ones(len(self), dtype=bool) if among is None else among.copy()
        mask[self._replaced] = False
        return mask


def _search(
    index: faiss.Index, queries: NDArray[np.float32], num_results: int, among: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Squared distances and rows (B, K).

    Faiss does not keep search parameters alive, so every object stays in a local variable until the search returns.
    """
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


def _stored_vectors(index: faiss.IndexIDMap2) -> NDArray[np.float32]:
    """(n, D) the memory in which a flat index keeps its vectors; valid until the next one is added."""
    flat = _untyped.downcast_index(index.index)
    return np.asarray(_untyped.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)).reshape(flat.ntotal, flat.d)


def _flat_index(vectors: NDArray[np.float32]) -> faiss.Index:
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    return index


def _quantised_index(vectors: NDArray[np.float32]) -> faiss.Index:
    """√N lists of codes, and the vectors themselves for the exact comparison."""
    num_items, dimension = vectors.shape
    num_lists = int(num_items**0.5)
    num_codes = dimension // 2 if dimension % 2 == 0 else dimension
    codes = _untyped.index_factory(dimension, f"IVF{num_lists},PQ{num_codes}x4fs")
    codes.cp.niter, codes.cp.max_points_per_centroid = _TRAINING_ROUNDS, _POINTS_PER_LIST
    sample = np.random.default_rng(0).permutation(num_items)[: num_lists * _POINTS_PER_LIST]
    with _threads(1):  # training solves hundreds of small problems; each would wait for all threads
        codes.train(vectors[np.sort(sample)])
    codes.add(vectors)
    codes.nprobe = min(num_lists, round(num_lists * _NUM_PROBED / num_items))
    return faiss.IndexRefine(codes, _flat_index(vectors))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set the number of threads of Faiss within the block. The threads of torch are separate."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _contiguous(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors, dtype=np.float32)
