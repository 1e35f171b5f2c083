"""What the voices know of items while the service runs: the trained tables, new titles and live counts together.

In: titles of new tokens, counts of live events by token. Out: `KnownItems` with more tokens, other popularity and added
rows. A new title is near the titles that share its words, and they are near it. Items that occur together live are near
each other by the formula of training; only pairs with an item that the trained table does not know are added. Without
titles and counts the result is the trained knowledge itself, so that an evaluation ranks as the service does.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from immutables import Map
from numpy.typing import NDArray

from model_store.voices.added import AddedRow, AddedRows
from model_store.voices.past import ItemFacts
from model_store.voices.similar_titles import NUM_ALIKE, SimilarTitles
from model_store.voices.tables import KnownItems

NEAR, ALIKE = "near", "alike"
NEAR_SHRINKAGE, NUM_NEAR = 5.0, 200
_USUAL_NEAR_SUM = 10.0  # of a row of `near` before it was divided by its sum, where the bundle does not say it
_MOST_TITLES = 200_000  # trained titles that are compared with new ones, the most popular first
_NO_EVENTS = 0  # this token begins a prompt and has no events: its facts are the means of all items


class TokenCounts(NamedTuple):
    """Decayed numbers of live events: `counts` (n,) of `tokens` (n,), and `pair_counts` (p,) of `pairs` (p, 2)."""

    tokens: NDArray[np.int64]
    counts: NDArray[np.float64]
    pairs: NDArray[np.int64]
    pair_counts: NDArray[np.float64]


class LiveItems:
    """Keeps what came after training; `known` gives an immutable snapshot. Not thread-safe."""

    def __init__(
        self, trained: KnownItems, near_sums: NDArray[np.float32] | None, titles: Iterable[tuple[int, str]]
    ) -> None:
        """`titles`: pairs of a trained token and its title. `near_sums`: see `Voices`."""
        self._trained, self._near_sums = trained, near_sums
        self._titles = SimilarTitles(_most_popular(titles, trained.facts.popularity))
        self._alike: dict[int, dict[int, float]] = {}  # token → near token → cosine, of what came after training
        self._alike_sums: dict[int, float] = {}  # of trained rows
        # Maps, because snapshots share them: a snapshot costs what changed, however many titles came before.
        self._alike_rows: Map[int, AddedRow] = Map()
        self._near_rows: Map[int, AddedRow] = Map()
        self._has = {
            NEAR: np.zeros(0, dtype=bool),
            ALIKE: np.zeros(0, dtype=bool),
        }  # by token, whether it has such a row
        nothing = np.zeros(0, dtype=np.int64)
        self._counts = TokenCounts(nothing, np.zeros(0), nothing.reshape(0, 2), np.zeros(0))
        self._num_tokens = trained.num_tokens

    def add_titles(self, titles: Mapping[int, str]) -> None:
        """Titles by token; tokens that are known already are ignored."""
        changed: set[int] = set()
        for token, title in titles.items():
            if token >= self._trained.num_tokens and token not in self._alike:
                self._num_tokens = max(self._num_tokens, token + 1)
                changed |= self._add_title(token, title)
        if ALIKE in self._trained.tables.names:
            self._sum_trained_rows(changed)
            self._alike_rows = self._alike_rows.update({token: self._alike_row(token) for token in changed})
            self._has[ALIKE] = _marked(self._has[ALIKE], changed, self._num_tokens)

    def count(self, counts: TokenCounts) -> None:
        """Replaces the counts of live events."""
        self._counts = counts
        newest = max(int(counts.tokens.max(initial=-1)), int(counts.pairs.max(initial=-1)))
        self._num_tokens = max(self._num_tokens, newest + 1)
        if NEAR in self._trained.tables.names:
            self._near_rows = Map(self._rows_of_pairs(counts.pairs, counts.pair_counts))
            self._has[NEAR] = _marked(np.zeros(0, dtype=bool), self._near_rows, self._num_tokens)

    def known(self) -> KnownItems:
        if self._num_tokens == self._trained.num_tokens and not len(self._counts.tokens) and not self._alike_rows:
            return self._trained
        names = self._trained.tables.names
        added = {NEAR: self._near_rows, ALIKE: self._alike_rows}
        rows = [added.get(name, Map[int, AddedRow]()) for name in names]
        has_row = np.zeros((self._num_tokens, len(names)), dtype=bool)
        for name, has in self._has.items():
            if name in names:
                has_row[: len(has), names.index(name)] = has
        return KnownItems(self._facts(), self._trained.tables, AddedRows(rows, has_row))

    def _facts(self) -> ItemFacts:
        """Those of new items are the means of all items, as for an item without events in training."""
        num_new = self._num_tokens - self._trained.num_tokens
        facts = self._trained.facts
        rates, intervals = (np.append(part, np.repeat(part[_NO_EVENTS], num_new)) for part in facts[1:])
        return ItemFacts(self._popularity().astype(np.float32), rates, intervals)

    def _popularity(self) -> NDArray[np.float64]:
        found = np.bincount(self._counts.tokens, self._counts.counts, self._num_tokens).astype(np.float64)
        found[: self._trained.num_tokens] += self._trained.facts.popularity
        return found

    def _add_title(self, token: int, title: str) -> set[int]:
        """Returns the tokens whose near titles have changed."""
        tokens, cosines = self._titles.add(token, title)
        near = self._alike[token] = dict(zip(tokens.tolist(), cosines.tolist(), strict=True))
        for other, cosine in near.items():
            changed = self._alike.get(other, {}) | {token: cosine}
            best = sorted(changed.items(), key=lambda pair: (-pair[1], pair[0]))
            self._alike[other] = dict(islice(best, NUM_ALIKE))
        return {token, *near} if near else set()

    def _alike_row(self, token: int) -> AddedRow:
        near = self._alike[token]
        return AddedRow.of(self._alike_sums.get(token, 0.0), np.array(list(near)), np.array(list(near.values())))

    def _sum_trained_rows(self, tokens: set[int]) -> None:
        """What the trained rows of these tokens summed to before they were divided by their sums, each token once."""
        size, table = self._trained.num_tokens, self._trained.tables.names.index(ALIKE)
        wanted = np.array(sorted(token for token in tokens - self._alike_sums.keys() if token < size), dtype=np.int64)
        if len(wanted):
            near = self._trained.tables.rows(np.full(len(wanted), table), wanted, size)
            sums = self._titles.sums(wanted, near[:, table * size : (table + 1) * size])
            self._alike_sums.update(zip(wanted.tolist(), sums.tolist(), strict=True))

    def _rows_of_pairs(self, pairs: NDArray[np.int64], counts: NDArray[np.float64]) -> Iterable[tuple[int, AddedRow]]:
        is_added = (pairs[:, 0] != pairs[:, 1]) & ~self._has_trained_row(pairs).all(axis=1)
        both = np.concatenate([pairs[is_added], pairs[is_added][:, ::-1]])
        roots = np.sqrt(np.maximum(self._popularity(), 1))
        values = np.tile(counts[is_added], 2) / (roots[both[:, 0]] * roots[both[:, 1]] + NEAR_SHRINKAGE)
        order = np.lexsort((both[:, 1], -values, both[:, 0]))
        both, values = both[order], values[order]
        tokens, starts, lengths = np.unique(both[:, 0], return_index=True, return_counts=True)
        for token, start, length in zip(tokens.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            part = slice(start, start + min(length, NUM_NEAR))
            yield token, AddedRow.of(self._near_sum(token), both[part, 1], values[part])

    def _has_trained_row(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        has_row = self._trained.has_row[:, self._trained.tables.names.index(NEAR)]
        return (tokens < len(has_row)) & has_row[np.minimum(tokens, len(has_row) - 1)]

    def _near_sum(self, token: int) -> float:
        if self._near_sums is not None:
            return float(self._near_sums[token]) if token < len(self._near_sums) else 0.0
        return _USUAL_NEAR_SUM if self._has_trained_row(np.array([token]))[0] else 0.0


def _marked(flags: NDArray[np.bool_], tokens: Collection[int], size: int) -> NDArray[np.bool_]:
    """A copy of `flags` with `size` elements, those of `tokens` set."""
    found = np.pad(flags, (0, max(size - len(flags), 0)))
    found[np.fromiter(tokens, dtype=np.int64, count=len(tokens))] = True
    return found


def _most_popular(titles: Iterable[tuple[int, str]], popularity: NDArray[np.float32]) -> Sequence[tuple[int, str]]:
    pairs = list(titles)
    if len(pairs) <= _MOST_TITLES:
        return pairs
    return sorted(pairs, key=lambda pair: -popularity[pair[0]])[:_MOST_TITLES]
