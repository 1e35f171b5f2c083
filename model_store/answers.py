"""Queries to a bundle and its answers, as plain values. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.catalogue import Catalogue

Source = Literal["generated", "grounded", "popular", "found", "trending", "latest"]
GENERATED: Source = "generated"
GROUNDED: Source = "grounded"
POPULAR: Source = "popular"
FOUND: Source = "found"  # for a query in words
TRENDING: Source = "trending"
LATEST: Source = "latest"


class PastRows(NamedTuple):
    """Events as catalogue rows (n,) and times (n,) in seconds, oldest first, and the time of the query.

    `weights` (n,): how much each event counts; empty where each counts 1. `against`: pairs of a row and how strongly
    events speak against its item, a positive number. `voices`: voice → what its weight is multiplied by, see `reasons`.
    """

    rows: Sequence[int]
    timestamps: Sequence[int]
    now: int
    weights: Sequence[float] = ()
    against: Sequence[tuple[int, float]] = ()
    voices: Mapping[str, float] = {}


@dataclass(frozen=True)
class Query:
    """One query to the model.

    `prompt`: tokens of the recent window. `memory` (M, D): states, oldest first. `allowed` (N,): by catalogue row.
    `chosen`: indices of memory elements that replace the retriever's selection (used in evaluation). `past`: the events
    that the voices of the bundle read, window included, oldest first.
    """

    prompt: Sequence[int]
    memory: NDArray[np.float16]
    allowed: NDArray[np.bool_]
    num_results: int
    chosen: tuple[int, ...] | None = None
    past: PastRows | None = None


class RowCounts(NamedTuple):
    """Decayed numbers of live events: `counts` (n,) of catalogue `rows` (n,), `pair_counts` (p,) of `pairs` (p, 2)."""

    rows: NDArray[np.int64]
    counts: NDArray[np.float64]
    pairs: NDArray[np.int64]
    pair_counts: NDArray[np.float64]

    @classmethod
    def none(cls) -> "RowCounts":
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, np.zeros(0), nothing.reshape(0, 2), np.zeros(0))

    def by_row(self, num_items: int) -> NDArray[np.float64]:
        """(num_items,) the numbers of events."""
        found: NDArray[np.float64] = np.bincount(self.rows, self.counts, num_items).astype(np.float64)
        return found


class Ranked(NamedTuple):
    """One item of an answer.

    `score`: log-probability of the title if generated, the ranker's score if found for a query, else None.
    `distance`: L2 distance to the best generated title, None unless generated or grounded.
    """

    row: int
    source: Source
    score: float | None
    distance: float | None


class Reason(NamedTuple):
    """Why an item is in a list: the voice that gives it most, the share of this voice in what all voices give it, and
    the event behind it as a place in the past. `voice`: "language_model", "popularity" or a channel of the voices.
    """

    voice: str
    share: float
    event: int | None


@dataclass(frozen=True)
class Answer:
    """The ranked items of one query, and which memory was used for them.

    `weights` (M,): the retriever's probabilities. `null_weight`: its probability of the null slot. `chosen`: indices of
    the memory elements that entered the top half. `reasons`: one for each item, None where no voice proposed it.
    `event_shares` (n,): how much each event of the past counts in the mixture of the voices. `timings_s`: seconds of
    each stage, for the whole batch.
    """

    items: list[Ranked]
    chosen: tuple[int, ...]
    weights: NDArray[np.float32]
    null_weight: float
    reasons: Sequence[Reason | None] = ()
    event_shares: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    timings_s: dict[str, float] = field(default_factory=dict)


def popular(catalogue: Catalogue, allowed: NDArray[np.bool_], num_results: int) -> list[Ranked]:
    """The most popular items of `allowed` (N,), at most `num_results`."""
    return [Ranked(row, POPULAR, None, None) for row in catalogue.most_popular(allowed, num_results)]
