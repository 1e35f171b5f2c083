"""Titles that are alike: the next volume, the sequel, the same subject.

In: titles. Out: a sparse matrix whose row i holds the titles nearest to title i, by the cosine of their TF-IDF vectors
over words and runs of up to three words (Salton and Buckley 1988). What nobody has had yet has no neighbours by
co-occurrence, and is most of what is new; words are there from the first day.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from training.run.stage import progress

NUM_ALIKE = 50
LONGEST_RUN = 3
# What is in one title links nothing; what is in very many says nothing, and would take most of the time.
FEWEST_TITLES, MOST_TITLES = 2, 500
_BLOCK = 1024  # titles compared with all others at a time
_WRITTEN_WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, kana, Han


def likeness(titles: Sequence[str]) -> sparse.csr_matrix:
    """(T, T) float32 in 0 … 1, `NUM_ALIKE` a row at most, no title being its own neighbour. Titles must be distinct."""
    vectors = tf_idf(titles)
    others = vectors.T.tocsr()
    blocks = [
        _nearest_others((vectors[start : start + _BLOCK] @ others).tocsr(), start)
        for start in progress(range(0, len(titles), _BLOCK), desc="titles alike", unit="block")
    ]
    return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))


def tf_idf(titles: Sequence[str]) -> sparse.csr_matrix:
    """(N, terms) float32, rows of length 1, or 0 where a title shares no term with another."""
    counts = [Counter(_terms(title)) for title in titles]
    spread = Counter(term for each in counts for term in each)
    telling = (term for term, count in spread.items() if FEWEST_TITLES <= count <= MOST_TITLES)
    columns = {term: place for place, term in enumerate(telling)}
    cells = [
        (row, columns[term], (1 + np.log(count)) * (1 + np.log(len(titles) / spread[term])))
        for row, each in enumerate(counts)
        for term, count in each.items()
        if term in columns
    ]
    rows, places, weights = zip(*cells, strict=True) if cells else ((), (), ())
    shape = len(titles), max(1, len(columns))
    table = sparse.csr_matrix((np.array(weights, np.float32), (rows, places)), shape, dtype=np.float32)
    lengths = np.sqrt(np.asarray(table.multiply(table).sum(axis=1)).ravel())
    return (sparse.diags((1 / np.maximum(lengths, 1e-9)).astype(np.float32)) @ table).tocsr()


def _terms(title: str) -> list[str]:
    words = _words(title)
    sizes = range(1, LONGEST_RUN + 1)
    return [" ".join(words[start : start + size]) for size in sizes for start in range(len(words) - size + 1)]


def _words(title: str) -> list[str]:
    """Letters, marks on them and digits; each character is a word where a script writes none apart."""
    plain = unicodedata.normalize("NFKC", title.casefold())
    kept = "".join(sign if sign.isalnum() or _is_mark(sign) else " " for sign in plain)
    return _WRITTEN_WITHOUT_SPACES.sub(r" \g<0> ", kept).split()


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign).startswith("M")


def _nearest_others(block: sparse.csr_matrix, first: int) -> sparse.csr_matrix:
    """Of each row the `NUM_ALIKE` largest; row 0 is title `first`."""
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    block.data[block.indices == first + rows] = 0
    for start, stop in zip(block.indptr[:-1], block.indptr[1:], strict=True):
        if stop - start > NUM_ALIKE:
            values = block.data[start:stop]  # a view
            values[np.argpartition(values, len(values) - NUM_ALIKE)[:-NUM_ALIKE]] = 0
    block.eliminate_zeros()
    return block
