"""The mixture of all voices: for each query a distribution over items, without older events and with them.

In: the language model's forecast, described pasts and the weights of their voices. Out: `Mixtures`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.voices.gate import FORECAST, POPULARITY, Weights
from model_store.voices.past import Described
from model_store.voices.tables import KnownItems
from model_store.voices.votes import Votes


class Mixtures(NamedTuple):
    """The mixtures of a batch of B queries over V' ≥ V items, and what they are made of.

    `window` (B, V') is the mixture without older events, `whole` the one with them: there the first takes the place of
    the language model. `recent` and `older`: for each query the votes of the events of the window, and of older events.
    `described` and `weights`: of the window, and of older events.

    `forecast` is that of the language model as in training, whose vocabulary had the V trained items only: their
    probabilities sum to one, and those of items that came later are in proportion. `scales` (B, 2): what the query
    multiplies the forecast and popularity by; `forecast` is multiplied already.
    """

    known: KnownItems
    forecast: NDArray[np.float32]
    recent: list[Votes]
    older: list[Votes]
    window: NDArray[np.float32]
    whole: NDArray[np.float32]
    described: tuple[Described, Described]
    weights: tuple[Weights, Weights]
    scales: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        known: KnownItems,
        forecast: NDArray[np.float32],
        described: tuple[Described, Described],
        weights: tuple[Weights, Weights],
        scales: NDArray[np.float32],
    ) -> "Mixtures":
        recent, older = (
            [Votes.of(known, tokens, own) for tokens, own in zip(part.tokens, weighed.events.numpy(), strict=True)]
            for part, weighed in zip(described, weights, strict=True)
        )
        forecast = _of_trained(forecast, known.tables.num_tokens)
        if (scales[:, 0] != 1).any():
            forecast = forecast * scales[:, :1]
        window = _mixed(known, forecast, weights[0], recent, scales)
        whole = _mixed(known, window, weights[1], older, scales)
        return cls(known, forecast, recent, older, window, whole, described, weights, scales)


def _of_trained(forecast: NDArray[np.float32], num_trained: int) -> NDArray[np.float32]:
    """Later items, of which there may be many, would take an unknown part of the sum away from the trained ones."""
    total = forecast[:, :num_trained].sum(axis=1, keepdims=True)
    found: NDArray[np.float32] = forecast / np.maximum(total, np.finfo(np.float32).tiny)
    return found


def _mixed(
    known: KnownItems,
    forecast: NDArray[np.float32],
    weights: Weights,
    votes: Sequence[Votes],
    scales: NDArray[np.float32],
) -> NDArray[np.float32]:
    found: NDArray[np.float32] = weights.overall[:, [FORECAST]].numpy() * forecast
    shares = weights.overall[:, POPULARITY].numpy() * scales[:, 1]
    for row, (own, share) in enumerate(zip(votes, shares, strict=True)):
        found[row, : known.num_tokens] += share * known.popularity + own.by_channel.sum(axis=0)
    return found
