"""BM25 over the texts of items (the library bm25s, which scores all items when the index is made).

In: the terms of each item, or saved arrays. Out: a score for every item. Thread-safe until items come later: these get
scores from the statistics of the first ones, and only the newest lexicon may be used then.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Self

import bm25s
import numpy as np
from numpy.typing import NDArray

_PARTS = ("data", "indices", "indptr")
_SATURATION = 1.5  # k1 of items that are added
_NOTHING = "="  # the term of an item without words; no query has it


class Lexicon:
    """The scores of all pairs of terms and items, as a sparse matrix."""

    def __init__(self, engine: bm25s.BM25, num_items: int) -> None:
        self._engine = engine
        self.num_items = num_items
        self._num_added = 0
        self._added: dict[str, dict[int, int]] = {}  # term → place among the added items → count

    @classmethod
    def build(cls, texts: Sequence[Sequence[str]], *, saturation: float = 1.5, length: float = 0.75) -> Self:
        """`texts`: the terms of each item. `saturation` is k1 of BM25, `length` is b."""
        engine = bm25s.BM25(k1=saturation, b=length, backend="numpy")
        engine.index([list(text) or [_NOTHING] for text in texts], show_progress=False)
        return cls(engine, len(texts))

    def scores(self, terms: Sequence[str]) -> NDArray[np.float32]:
        """(N,) zero where an item has none of the terms."""
        scores = np.zeros(self.num_items, dtype=np.float32)
        num_first = self.num_items - self._num_added
        known = [term for term in terms if term in self._engine.vocab_dict and term != _NOTHING]
        if known:
            scores[:num_first] = self._engine.get_scores(known)
        for term in terms:
            if found := self._added.get(term):
                counts = np.fromiter(found.values(), dtype=np.float32, count=len(found))
                places = num_first + np.fromiter(found, dtype=np.int64, count=len(found))
                scores[places] += self._rarity(term, num_first) * counts / (counts + _SATURATION)
        return scores

    def with_texts(self, texts: Mapping[int, tuple[Sequence[str], Sequence[str]]]) -> "Lexicon":
        """A lexicon with other terms of items that came later, which takes what this one knows of them.

        `texts`: row → terms until now, none for a new item, and terms from now on. Costs these terms only.
        """
        num_first, found = self.num_items - self._num_added, copy(self)
        for row, (before, terms) in texts.items():
            for term in set(before):
                del found._added[term][row - num_first]
            for term, count in Counter(terms).items():
                found._added.setdefault(term, {})[row - num_first] = count
        found.num_items = max(self.num_items, max(texts, default=-1) + 1)
        found._num_added = found.num_items - num_first
        return found

    def _rarity(self, term: str, num_items: int) -> float:
        """The inverse document frequency of BM25, as the library has it."""
        starts, number = self._engine.scores["indptr"], self._engine.vocab_dict.get(term)
        count = 0 if number is None else int(starts[number + 1] - starts[number])
        return math.log(1 + (num_items - count + 0.5) / (count + 0.5))

    def terms(self) -> list[str]:
        """All terms, by their number."""
        numbered = sorted((number, term) for term, number in self._engine.vocab_dict.items() if term)
        return [term for _, term in numbered]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` needs beside the terms."""
        return {f"lexicon.{part}": np.asarray(self._engine.scores[part]) for part in _PARTS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], terms: Sequence[str], num_items: int) -> Self:
        """Raises KeyError where an array is missing."""
        engine = bm25s.BM25(backend="numpy")
        engine.scores = {part: arrays[f"lexicon.{part}"] for part in _PARTS} | {"num_docs": num_items}
        engine.vocab_dict = {term: number for number, term in enumerate(terms)}
        engine.nonoccurrence_array = None  # of variants of BM25 that score absent terms
        return cls(engine, num_items)
