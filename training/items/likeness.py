"""Likeness of titles: the next volume, the sequel, the same subject.

In: titles. Out: a sparse matrix whose row i holds the titles nearest to title i, by the cosine of TF-IDF vectors over
words and runs of up to three words (Salton and Buckley 1988). An item that nobody has had yet has no co-occurrence,
and most of what is new is such an item; its title is known from the first day.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from model_store.voices.similar_titles import LONGEST_RUN, MOST_TITLES, NUM_ALIKE, words_of
from training.data.splits import Split
from training.items.co_occurrence import keep_largest
from training.run.stage import progress

FEWEST_TITLES = 2  # a term in a single title links nothing
_BLOCK = 1024  # titles compared with all others at a time


def likeness(titles: Sequence[str]) -> sparse.csr_matrix:
    """(T, T) float32 in 0 … 1, at most `NUM_ALIKE` entries a row, empty diagonal. Titles must be distinct."""
    vectors = tf_idf(titles)
    others = vectors.T.tocsr()
    blocks = [
        _nearest_others((vectors[start : start + _BLOCK] @ others).tocsr(), start)
        for start in progress(range(0, len(titles), _BLOCK), desc="titles alike", unit="block")
    ]
    return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))


def tf_idf(titles: Sequence[str]) -> sparse.csr_matrix:
    """(T, terms) float32, rows of length 1, or of zeros where a title shares no term with another."""
    vectorizer = TfidfVectorizer(
        tokenizer=words_of,
        token_pattern=None,
        lowercase=False,
        ngram_range=(1, LONGEST_RUN),
        min_df=FEWEST_TITLES,
        max_df=MOST_TITLES,
        sublinear_tf=True,
        smooth_idf=False,
        dtype=np.float32,
    )
    try:
        return sparse.csr_matrix(vectorizer.fit_transform(titles))
    except ValueError:  # scikit-learn's way to say that no term is left
        return sparse.csr_matrix((len(titles), 1), dtype=np.float32)


def _nearest_others(block: sparse.csr_matrix, first: int) -> sparse.csr_matrix:
    """The `NUM_ALIKE` largest entries of each row, without the diagonal. Row 0 is title number `first`."""
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    block.data[block.indices == first + rows] = 0
    return keep_largest(block, NUM_ALIKE)


def alike_items(split: Split) -> sparse.csr_matrix:
    """(N, N) likeness of titles. Only the most popular item of a title is a neighbour, as in `channels.over_tokens`."""
    shown = most_popular_of_titles(split.title_class, split.popularity)
    number = np.unique(split.title_class, return_inverse=True)[1]
    table = likeness([split.titles[item] for item in shown])[number].tocoo()
    return sparse.csr_matrix((table.data, (table.row, shown[table.col])), (len(number), len(number)))


def most_popular_of_titles(titles: NDArray[np.integer], popularity: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T,) the most popular item of each title, by rising title number; `titles` (N,) numbers the items' titles."""
    order = np.lexsort((-popularity, titles))
    return order[np.diff(titles[order], prepend=-1) > 0]


def combined(near: sparse.csr_matrix, alike: sparse.csr_matrix, weight: float) -> sparse.csr_matrix:
    """(N, N) nearness with β = `weight`, see the module's formula."""
    near_sums, alike_sums = (np.asarray(table.sum(axis=1)).ravel() for table in (near, alike))
    if not weight or not alike_sums.any():
        return near
    scale = np.median(near_sums[near_sums > 0]) / np.median(alike_sums[alike_sums > 0]) if near_sums.any() else 1.0
    return (near + alike * np.float32(weight * scale)).tocsr()
