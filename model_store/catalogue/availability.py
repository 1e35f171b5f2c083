"""Which items may be recommended at a time, without looking at each. Numpy only, immutable."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class HasAvailability(Protocol):
    """Epoch seconds, None = open; the start is included, the end is not."""

    @property
    def hidden(self) -> bool: ...
    @property
    def available_from(self) -> int | None: ...
    @property
    def available_until(self) -> int | None: ...


class Availability(NamedTuple):
    """`always` (N,) bool: neither hidden nor bound to a time. `windowed` (W,) rows: [opens, closes) decides."""

    always: NDArray[np.bool_]
    windowed: NDArray[np.int64]
    opens: NDArray[np.float64]
    closes: NDArray[np.float64]

    @classmethod
    def none(cls) -> "Availability":
        """Of no items."""
        nothing = np.empty(0, dtype=np.float64)
        return cls(np.empty(0, dtype=bool), nothing.astype(np.int64), nothing, nothing)

    def at(self, now: float) -> NDArray[np.bool_]:
        """(N,) bool, a fresh array."""
        mask = self.always.copy()
        mask[self.windowed] = (self.opens <= now) & (now < self.closes)
        return mask

    def replaced(self, rows: NDArray[np.int64], items: Iterable[HasAvailability]) -> "Availability":
        """With other `items` at different `rows`; rows from N on are new."""
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
