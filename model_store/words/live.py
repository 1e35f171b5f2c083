"""Items that came after training: they are found by the words of their titles, and have no neighbours or popularity."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import sparse

from model_store.words.answer import Words
from model_store.words.texts import item_text


def with_items(words: Words, titles: Sequence[str]) -> Words:
    """Words with further items at the end, whose rows follow. Changes the dense index of `words`, and nothing else."""
    index, size = words.index, len(words.index) + len(titles)
    texts = [item_text(title, {}) for title in titles]
    vectors = index.encoder.encode([text.sentence for text in texts])
    index.dense.put(np.arange(len(index), size), vectors)
    added = replace(
        index,
        texts=[*index.texts, *texts],
        lexicon=index.lexicon.with_texts([text.terms() for text in texts]),
        vectors=np.concatenate([index.vectors, vectors]),
        tables={name: _with_rows(table, size) for name, table in index.tables.items()},
        popularity=np.concatenate([index.popularity, np.zeros(len(titles), dtype=index.popularity.dtype)]),
    )
    return replace(words, index=added)


def _with_rows(table: sparse.csr_matrix, size: int) -> sparse.csr_matrix:
    """The table with empty rows and columns at the end; its numbers are not copied."""
    starts = np.append(table.indptr, np.full(size - table.shape[0], table.indptr[-1], dtype=table.indptr.dtype))
    return sparse.csr_matrix((table.data, table.indices, starts), (size, size))
