"""Which items are available at a time, as arrays. Immutable."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class HasAvailability(Protocol):
    """The availability of an item: from the start (included) to the end (excluded), epoch seconds, None = open."""

    @property
    def hidden(self) -> bool: ...
    @property
    def available_from(self) -> int | None: ...
    @property
    def available_until(self) -> int | None: ...


class Availability(NamedTuple):
    """The availability of N items."""

    always: NDArray[np.bool_]  # (N,): neither hidden nor limited in time
    windowed: NDArray[np.int64]  # (W,): rows that are available within [opens, closes) only
    opens: NDArray[np.float64]  # (W,) epoch seconds, −∞ = open
    closes: NDArray[np.float64]  # (W,) epoch seconds, ∞ = open

    @classmethod
    def none(cls) -> "Availability":
        """The availability of an empty catalogue."""
        nothing = np.empty(0, dtype=np.float64)
        return cls(np.empty(0, dtype=bool), nothing.astype(np.int64), nothing, nothing)

    def at(self, now: float) -> NDArray[np.bool_]:
        """(N,) bool: whether each item is available at `now` (epoch seconds). A new array."""
        mask = self.always.copy()
        mask[self.windowed] = (self.opens <= now) & (now < self.closes)
        return mask

    def replaced(self, rows: NDArray[np.int64], items: Iterable[HasAvailability]) -> "Availability":
        """A copy with `items` at `rows`, which are all different. Rows from N on are new."""
        kinds = [(item.hidden, item.available_from, item.available_until) for item in items]
        num_items = max(len(self.always), int(rows.max(initial=-1)) + 1)
        always = np.pad(self.always, (0, num_items - len(self.always)))
        always[rows] = [kind == (False, None, None) for kind in kinds]
        windows = [
            (row, -np.inf if opens is None else opens, np.inf if closes is None else closes)
            for row, (is_hidden, opens, closes) in zip(rows.tolist(), kinds, strict=True)
            if not is_hidden and (opens, closes) != (None, None)
        ]
        kept = ~np.isin(self.windowed, rows)
        fresh = np.array(windows, dtype=np.float64).reshape(-1, 3)
        return Availability(
            always,
            np.concatenate([self.windowed[kept], fresh[:, 0].astype(np.int64)]),
            np.concatenate([self.opens[kept], fresh[:, 1]]),
            np.concatenate([self.closes[kept], fresh[:, 2]]),
        )
