"""Where items start: vectors such that items read near each other are near.

The truncated singular vectors of the positive pointwise mutual information of items at most `SPAN` events apart, which
is what skip-gram embeddings factorise (Levy and Goldberg, NeurIPS 2014). They cost seconds and spare a model trained
from scratch the many epochs in which it would find out the same. Only the train period is read.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from training.data.splits import Split
from training.rows.item_knn import co_occurrences

SPAN = 5


def collaborative_vectors(split: Split, dimension: int, *, seed: int) -> NDArray[np.float32]:
    """(N, dimension), rows of length one; zeros for items that the train period shows beside no other."""
    table = positive_information(co_occurrences(split, SPAN))
    rank = min(dimension, table.shape[0] - 1)
    vectors = np.zeros((table.shape[0], dimension), dtype=np.float32)
    if table.nnz:
        left, values, _ = svds(table, k=rank, rng=np.random.default_rng(seed))
        vectors[:, :rank] = left * np.sqrt(values)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(lengths > 1e-6, vectors / np.maximum(lengths, 1e-6), 0.0).astype(np.float32)
    return unit


def positive_information(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """max(0, log p(i, j) / (p(i) p(j))), where p(j) is flattened by the power 3/4 as in word2vec."""
    table = counts.tocoo()
    frequency = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    flattened = frequency**0.75
    flattened *= frequency.sum() / max(flattened.sum(), 1e-12)
    expected = frequency[table.row] * flattened[table.col] / max(frequency.sum(), 1e-12)
    information = np.log(np.maximum(table.data / np.maximum(expected, 1e-12), 1.0)).astype(np.float32)
    return sparse.csr_matrix((information, (table.row, table.col)), counts.shape)
