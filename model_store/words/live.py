"""Items that came after training: they are found by the words of their titles, and have no neighbours or popularity."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy import sparse

from model_store.words.answer import Words
from model_store.words.index import WordsIndex
from model_store.words.texts import item_text
from model_store.words.vectors import Vectors

_SPARE_SHARE = 8  # reserve 1/8 more rows, so that most new items need no copy of all vectors


def with_titles(words: Words, titles: Mapping[int, str]) -> Words:
    """Words with other titles of items that came later, by row; new rows follow those that are known, without gaps.

    Costs these titles and copies of small arrays. `words` must not be used any more: the result takes its index.
    """
    index = words.index
    known, size = len(index), max(len(index), max(titles, default=-1) + 1)
    rows = np.array(sorted(titles), dtype=np.int64)
    texts = {row: item_text(titles[row], {}) for row in rows.tolist()}
    vectors = index.encoder.encode([text.sentence for text in texts.values()])
    index.dense.put(rows, vectors)
    changed = {row: (index.texts[row].terms() if row < known else [], text.terms()) for row, text in texts.items()}
    every = index.texts if isinstance(index.texts, list) else list(index.texts)
    every += [item_text("", {})] * (size - known)
    for row, text in texts.items():
        every[row] = text
    added = replace(
        index,
        texts=every,
        lexicon=index.lexicon.with_texts(changed),
        vectors=_put(index.vectors, rows, vectors, size),
        tables={name: _with_rows(table, size) for name, table in index.tables.items()},
        popularity=np.append(index.popularity, np.zeros(size - known, dtype=index.popularity.dtype)),
    )
    _keep_askers(index, added)
    return replace(words, index=added)


def _keep_askers(index: WordsIndex, added: WordsIndex) -> None:
    """Nobody asked for new items yet, so what is known of who asked is not made again."""
    added.__dict__["_askers"] = index._askers


def _put(known: Vectors, rows: np.ndarray, vectors: Vectors, size: int) -> Vectors:
    """`known` (N, D) with `vectors` (n, D) at `rows` (n,), in the same memory if there is room."""
    buffer = known.base if isinstance(known.base, np.ndarray) and known.base.flags.writeable else known
    if buffer.ndim != 2 or len(buffer) < size or not known.flags.writeable:
        buffer = np.empty((size + size // _SPARE_SHARE + 1, known.shape[1]), dtype=known.dtype)
        buffer[: len(known)] = known
    buffer[rows] = vectors
    return buffer[:size]


def _with_rows(table: sparse.csr_matrix, size: int) -> sparse.csr_matrix:
    """The table with empty rows and columns at the end; its numbers are not copied."""
    if table.shape[0] == size:
        return table
    starts = np.append(table.indptr, np.full(size - table.shape[0], table.indptr[-1], dtype=table.indptr.dtype))
    return sparse.csr_matrix((table.data, table.indices, starts), (size, size))
