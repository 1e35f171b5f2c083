"""Co-occurrence of items: how often users have two items near each other, and item vectors that follow from it.

In: a split, of which only the train period is read. Out: sparse (N, N) counts, or dense (N, D) vectors.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from training.data.splits import Split

VECTOR_SPAN = 5  # events


def co_occurrences(split: Split, span: int | None) -> sparse.csr_matrix:
    """(N, N) float32, symmetric, empty diagonal: counts of pairs at most `span` events of one user apart.

    With `span` None: the number of users who had both.
    """
    user = np.repeat(np.arange(len(split.histories)), [history.train_end for history in split.histories])
    item = np.concatenate([history.items[: history.train_end] for history in split.histories])
    num_items = len(split.item_ids)
    if span is None:
        had = sparse.csr_matrix((np.ones(len(item), np.float32), (user, item)), (len(split.histories), num_items))
        had.data[:] = 1  # a user counts once, however often the user had the item
        counts = (had.T @ had).tocsr()
    else:
        pairs = [np.stack([item[:-gap], item[gap:]])[:, user[gap:] == user[:-gap]] for gap in range(1, span + 1)]
        first, second = np.concatenate(pairs, axis=1)
        counts = sparse.csr_matrix((np.ones(len(first), np.float32), (first, second)), (num_items, num_items))
        counts = (counts + counts.T).tocsr()
    counts.setdiag(0)
    counts.eliminate_zeros()
    return counts


def keep_largest(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """A copy with the `count` largest values of each row. Values must not be negative; which of equals stay is open."""
    kept = matrix.copy()
    for start, stop in zip(kept.indptr[:-1], kept.indptr[1:], strict=True):
        if stop - start > count:
            values = kept.data[start:stop]  # a view
            values[np.argpartition(values, len(values) - count)[:-count]] = 0
    kept.eliminate_zeros()
    return kept


def co_occurrence_vectors(split: Split, dimension: int, *, seed: int) -> NDArray[np.float32]:
    """(N, dimension), rows of length 1; a row of zeros for an item that has no co-occurrence.

    The truncated singular vectors of the positive pointwise mutual information of items at most `VECTOR_SPAN` events
    apart. This is the matrix that skip-gram embeddings factorise (Levy and Goldberg, NeurIPS 2014). A model trained
    from scratch needs many epochs to learn the same; the factorisation takes seconds.
    """
    table = positive_information(co_occurrences(split, VECTOR_SPAN))
    rank = min(dimension, table.shape[0] - 1)
    vectors = np.zeros((table.shape[0], dimension), dtype=np.float32)
    if table.nnz:
        left, values, _ = svds(table, k=rank, rng=np.random.default_rng(seed))
        vectors[:, :rank] = left * np.sqrt(values)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(lengths > 1e-6, vectors / np.maximum(lengths, 1e-6), 0.0).astype(np.float32)
    return unit


def positive_information(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """max(0, log p(i, j) / (p(i) p(j))), with p(j) smoothed by the power 3/4 as in word2vec."""
    table = counts.tocoo()
    frequency = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    smoothed = frequency**0.75
    smoothed *= frequency.sum() / max(smoothed.sum(), 1e-12)
    expected = frequency[table.row] * smoothed[table.col] / max(frequency.sum(), 1e-12)
    information = np.log(np.maximum(table.data / np.maximum(expected, 1e-12), 1.0)).astype(np.float32)
    return sparse.csr_matrix((information, (table.row, table.col)), counts.shape)
