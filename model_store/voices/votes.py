"""The votes of one user's events by channel: entries (channel, token, value), gathered from all tables at once."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.voices.tables import KnownItems

NEGLIGIBLE = 1e-5  # a voice with less weight is left out: so are most of many old events


class Votes(NamedTuple):
    """Entries of equal length; a token may have several, which add up."""

    channels: NDArray[np.int64]
    tokens: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, known: KnownItems, tokens: NDArray[np.int64], weights: NDArray[np.float32]) -> "Votes":
        """`tokens` (n,) of the events and the `weights` (n, C) of their channels, the last of which is `return`."""
        events, channels = np.nonzero(weights[:, :-1] > NEGLIGIBLE)
        starts, stops = known.spans(channels, tokens[events])
        lengths = stops - starts
        ends = np.cumsum(lengths)
        places = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
        back = np.flatnonzero(weights[:, -1] > NEGLIGIBLE)
        return cls(
            np.concatenate([np.repeat(channels, lengths), np.full(len(back), weights.shape[1] - 1)]),
            np.concatenate([known.near[places], tokens[back]]),
            np.concatenate([known.nearness[places] * np.repeat(weights[events, channels], lengths), weights[back, -1]]),
        )

    def sums(self, num_tokens: int) -> NDArray[np.float64]:
        """(num_tokens,) all channels together."""
        found: NDArray[np.float64] = np.bincount(self.tokens, self.values, num_tokens).astype(np.float64)
        return found

    def channel(self, number: int, num_tokens: int) -> NDArray[np.float64]:
        """(num_tokens,) what one channel gives."""
        own = self.channels == number
        found: NDArray[np.float64] = np.bincount(self.tokens[own], self.values[own], num_tokens).astype(np.float64)
        return found

    def at(self, wanted: NDArray[np.int64], num_tokens: int, num_channels: int) -> NDArray[np.float64]:
        """(c, num_channels) what each channel gives to the tokens `wanted`, all different."""
        place_of = np.full(max(num_tokens, int(wanted.max(initial=-1)) + 1), -1, dtype=np.int64)
        place_of[wanted] = np.arange(len(wanted))
        places = place_of[self.tokens]
        is_wanted = places >= 0
        cells = places[is_wanted] * num_channels + self.channels[is_wanted]
        found = np.bincount(cells, self.values[is_wanted], len(wanted) * num_channels)
        return found.reshape(len(wanted), num_channels).astype(np.float64)
