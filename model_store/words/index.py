"""The hybrid index: BM25 beside vectors of the texts of items (Faiss), and tables of near items.

In: the text of each item, an encoder, tables. Out: what a query says of items, and the items near others. Rows are
those of the catalogue; rows that were added to the catalogue later are unknown here and never found by words.
Immutable, but not thread-safe, as Faiss and the encoder of sentences are not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_store.grounding import ItemIndex
from model_store.words.encoders import TextEncoder
from model_store.words.lexical import Lexicon
from model_store.words.texts import ItemText, query_terms, whole
from model_store.words.vectors import Vectors

CHANNELS = ("near", "follow")  # users had both; users had the second on a later day
_NUM_LEXICAL, _NUM_ASKED, _NUM_DENSE = 300, 200, 200  # candidates of a query

Rows = NDArray[np.int64]
Values = NDArray[np.float32]


class Found(NamedTuple):
    """What the words of a query find: BM25 of all items (N,), who asked so before (N,), and the best rows by each."""

    lexical: Values
    asked: Values
    rows: Rows


@dataclass(frozen=True)
class WordsIndex:
    """`tables`: channel → (N, N) rows that sum to at most one. `popularity` (N,): events in training.

    `vectors` (N, D) of the items' texts; `dense` is their Faiss index. `shares`: scenario → its share of all events in
    training (see `memory.scenarios_of`).
    """

    texts: Sequence[ItemText]
    lexicon: Lexicon
    vectors: Vectors
    dense: ItemIndex
    tables: Mapping[str, sparse.csr_matrix]
    popularity: Rows
    shares: Mapping[str, float]
    encoder: TextEncoder

    def __len__(self) -> int:
        return len(self.texts)

    def find(self, query: str, vector: Vectors) -> Found:
        """`vector` (D,) of the query."""
        lexical, asked = self.lexicon.scores(query_terms(query)), np.zeros(len(self), dtype=np.float32)
        for row, count in self._askers.get(whole(query), ()):
            asked[row] = count
        near = self.dense.search(vector[None, :], min(_NUM_DENSE, len(self))).rows[0]
        rows = [largest(lexical, _NUM_LEXICAL), largest(asked, _NUM_ASKED), near[near >= 0]]
        return Found(lexical, asked, np.unique(np.concatenate(rows)))

    def neighbours(self, channel: str, rows: Sequence[int], weights: Values | None = None) -> Values:
        """(N,) the mean of rows of a table, by weights that sum to one if given; zeros for no rows."""
        near = self.tables[channel][np.asarray(rows, dtype=np.int64)]
        each = np.full(len(rows), 1 / max(len(rows), 1)) if weights is None else weights
        values = near.data * np.repeat(each, np.diff(near.indptr))
        return np.bincount(near.indices, values, minlength=len(self)).astype(np.float32)

    @cached_property
    def log_popularity(self) -> Values:
        return np.log1p(self.popularity).astype(np.float32)

    @cached_property
    def popular(self) -> Rows:
        """The most popular rows, which are candidates of every query."""
        return largest(self.log_popularity, 100)

    @cached_property
    def _askers(self) -> dict[str, list[tuple[int, int]]]:
        """Query, as one term → items that were chosen after it, and by how many."""
        found: dict[str, list[tuple[int, int]]] = {}
        for row, text in enumerate(self.texts):
            for phrase, count in text.phrases:
                found.setdefault(whole(phrase), []).append((row, count))
        return found


def largest(values: Values, count: int) -> Rows:
    """The rows of the `count` largest values that are above zero, in no order."""
    count = min(count, len(values))
    best = np.argpartition(-values, count - 1)[:count] if count else np.empty(0, np.int64)
    return best[values[best] > 0].astype(np.int64)
