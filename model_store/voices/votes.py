"""The votes of one user's events: what each channel gives to each item."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_store.voices.tables import KnownItems

NEGLIGIBLE = 1e-5  # a voice with less weight is left out: so are most of many old events


class Votes(NamedTuple):
    """`by_channel` (C, V): what each channel gives to each of V items, all events together.

    The other arrays are of P pairs of an event and a channel with a table in which it votes: the number of the channel,
    the place of the event, the weight of the pair, and its row of the table (see `KnownItems.rows`). The pairs of a
    channel are neighbours.
    """

    by_channel: NDArray[np.float32]
    channels: NDArray[np.int64]
    events: NDArray[np.int64]
    weights: NDArray[np.float32]
    rows: sparse.csr_matrix

    @classmethod
    def of(cls, known: KnownItems, tokens: NDArray[np.int64], weights: NDArray[np.float32]) -> "Votes":
        """`tokens` (n,) of the events and the `weights` (n, C) of their channels, the last of which is `return`."""
        channels, events = np.nonzero(weights.T[:-1] > NEGLIGIBLE)
        rows, own = known.rows(channels, tokens[events]), weights[events, channels]
        by_channel = np.zeros((weights.shape[1], known.num_tokens), dtype=np.float32)
        by_channel[:-1] = (rows.T @ own).reshape(-1, known.num_tokens)
        back = np.flatnonzero(weights[:, -1] > NEGLIGIBLE)
        by_channel[-1, tokens[back]] = weights[back, -1]  # an item comes back once
        return cls(by_channel, channels, events, own, rows)

    def at(self, wanted: NDArray[np.int64]) -> NDArray[np.float32]:
        """(c, C) what each channel gives to the tokens `wanted` (c,); zeros from V on."""
        last = self.by_channel.shape[1] - 1
        found = self.by_channel[:, np.minimum(wanted, last)]
        found[:, wanted > last] = 0
        return found.T

    def event_behind(self, channel: int, token: int) -> int | None:
        """The place of the event that gives most to a token in a channel with a table; None if none does."""
        column = channel * self.by_channel.shape[1] + token
        first, last = self.rows.indptr[np.searchsorted(self.channels, [channel, channel + 1])]
        entries = first + np.flatnonzero(self.rows.indices[first:last] == column)
        if not len(entries):
            return None
        pairs = np.searchsorted(self.rows.indptr, entries, side="right") - 1
        best = pairs[(self.rows.data[entries] * self.weights[pairs]).argmax()]
        return int(self.events[best])
