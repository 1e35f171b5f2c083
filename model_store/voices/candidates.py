"""What the voices say of each item, the candidates that they propose, and the features by which these are ranked.

In: the language model's forecast and the pasts of a batch. Out: `Said`, and for one query its
`Candidates` with two tables of features: of the window, and of older events.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.voices.gate import FORECAST, POPULARITY, Weights
from model_store.voices.past import EVENT_FEATURES, QUERY_FEATURES, Described
from model_store.voices.tables import KnownItems
from model_store.voices.votes import Votes

NUM_CANDIDATES = 200  # of the mixture without memory, and as many of the mixture with memory
_SILENCE, _NO_FORECAST, _NO_RATE = 1e-7, 1e-9, 1e-4  # inside logarithms
_OF_RETURNS = [
    EVENT_FEATURES.index(name)
    for name in (
        "age_in_baskets",
        "age_in_days",
        "count",
        "age_against_interval",
        "basket_overlap",
        "age_against_own_interval",
    )
]
_NUM_OF_RETURNS = len(_OF_RETURNS) + 1  # and whether the user had the item


def num_window_features(num_tables: int) -> int:
    return num_tables + 5 + _NUM_OF_RETURNS + len(QUERY_FEATURES)


def num_older_features(num_tables: int) -> int:
    return num_tables + 1 + _NUM_OF_RETURNS + len(QUERY_FEATURES)


class Said(NamedTuple):
    """`recent` and `older`: for each query the votes of the events of the window, and of older events.

    `window` (B, V') is the mixture without older events, `mixture` with them: there the first mixture takes the place
    of the language model. `described` and `weights`: of the window, and of older events.
    """

    known: KnownItems
    forecast: NDArray[np.float32]
    recent: list[Votes]
    older: list[Votes]
    window: NDArray[np.float32]
    mixture: NDArray[np.float32]
    described: tuple[Described, Described]
    weights: tuple[Weights, Weights]

    @classmethod
    def of(
        cls,
        known: KnownItems,
        forecast: NDArray[np.float32],
        described: tuple[Described, Described],
        weights: tuple[Weights, Weights],
    ) -> "Said":
        recent, older = (
            [Votes.of(known, tokens, own) for tokens, own in zip(part.tokens, weighed.events.numpy(), strict=True)]
            for part, weighed in zip(described, weights, strict=True)
        )
        window = _mixed(known, forecast, weights[0], recent)
        mixture = _mixed(known, window, weights[1], older)
        return cls(known, forecast, recent, older, window, mixture, described, weights)


def _mixed(
    known: KnownItems, forecast: NDArray[np.float32], weights: Weights, votes: Sequence[Votes]
) -> NDArray[np.float32]:
    found: NDArray[np.float32] = weights.overall[:, [FORECAST]].numpy() * forecast
    shares = weights.overall[:, POPULARITY].numpy()
    for row, (own, share) in enumerate(zip(votes, shares, strict=True)):
        found[row, : known.num_tokens] += share * known.popularity + own.sums(known.num_tokens)
    return found


class Candidates(NamedTuple):
    """The candidates of one query: `tokens` and `mixture` (c,), and features; `older` None without older events."""

    tokens: NDArray[np.int64]
    mixture: NDArray[np.float32]
    window: NDArray[np.float32]  # (c, F)
    older: NDArray[np.float32] | None  # (c, F')


def find_candidates(said: Said, row: int, allowed: NDArray[np.int64] | None) -> Candidates:
    """The best items of both mixtures among the tokens `allowed` (a,), in ascending order."""
    if allowed is None:
        allowed = np.arange(said.mixture.shape[1])
    has_older = bool(said.described[1].speaks[row].any())
    proposals = [said.window[row], said.mixture[row]] if has_older else [said.window[row]]
    tokens = np.unique(np.concatenate([_best(mixture, allowed) for mixture in proposals]))
    return Candidates(
        tokens,
        said.mixture[row, tokens],
        _window_features(said, row, tokens),
        _older_features(said, row, tokens) if has_older else None,
    )


def _best(mixture: NDArray[np.float32], allowed: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(allowed) <= NUM_CANDIDATES:
        return allowed
    scores = mixture[allowed]
    return allowed[np.argpartition(-scores, NUM_CANDIDATES)[:NUM_CANDIDATES]]


def _window_features(said: Said, row: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    known, is_known = said.known, tokens < said.known.num_tokens
    inside = np.where(is_known, tokens, 0)
    popularity = np.where(is_known, known.popularity[inside], 0)
    rate = np.where(is_known, known.facts.return_rate[inside], 0)
    columns = [
        *np.log(votes_at(said, said.recent[row], tokens) + _SILENCE).T,
        np.log(said.window[row, tokens] + _NO_FORECAST),
        np.log(popularity + _SILENCE),
        np.log(rate + _NO_RATE),
        np.log(said.forecast[row, tokens] + _NO_FORECAST),
    ]
    return _joined(columns, _returns(said.described[0], row, tokens), said.described[0], row)


def _older_features(said: Said, row: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    columns = list(np.log(votes_at(said, said.older[row], tokens) + _SILENCE).T)
    return _joined(columns, _returns(said.described[1], row, tokens), said.described[1], row)


def _joined(
    columns: Sequence[NDArray[np.floating]], returns: NDArray[np.float32], described: Described, row: int
) -> NDArray[np.float32]:
    query = np.broadcast_to(described.queries[row].numpy(), (len(returns), len(QUERY_FEATURES)))
    return np.concatenate([np.stack(columns, axis=1), returns, query], axis=1).astype(np.float32)


def votes_at(said: Said, votes: Votes, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """(c, C)"""
    return votes.at(tokens, said.known.num_tokens, len(said.known.channels))


def _looked_up(
    keys: NDArray[np.integer], values: NDArray[np.float32], wanted: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The values (n, …) of `wanted` keys, 0 where a key is missing. `keys` (n,) ascend."""
    found = np.zeros((len(wanted), *values.shape[1:]), dtype=np.float32)
    if len(keys):
        places = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
        is_there = keys[places] == wanted
        found[is_there] = values[places[is_there]]
    return found


def _returns(described: Described, row: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """(c, R): whether an item may come back; of its last event the age in baskets and days, count, age by interval."""
    places = np.flatnonzero(described.speaks[row, :, -1].numpy())
    places = places[np.argsort(described.tokens[row, places])]
    numbers = described.events[row].numpy()[places][:, _OF_RETURNS]
    facts = np.concatenate([np.ones((len(places), 1), np.float32), numbers], axis=1)
    return _looked_up(described.tokens[row, places], facts, tokens)
