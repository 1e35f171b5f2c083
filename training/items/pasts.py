"""What is known of a target's user: the past that the voices read, and the items that may be shown.

In: a split and the token of each item. Out: pasts and tokens. What is known of a target is everything earlier in its
history. The time of the request is the time of the target, so earlier events at that time are the current basket.
"""

import numpy as np
from numpy.typing import NDArray

from model_store.voices.past import Against, Past
from training.data.splits import Split, Target


class Pasts:
    """`tokens` (N,) of the items; items of equal title share a token. `length`: events of a past."""

    def __init__(self, split: Split, tokens: NDArray[np.int64], *, length: int) -> None:
        self.split, self.tokens, self.length = split, tokens, length
        self.all_tokens = np.unique(tokens)

    def past(self, target: Target) -> Past:
        history, start = self.split.histories[target.user], max(0, target.position - self.length)
        span = slice(start, target.position)
        times = history.timestamps.astype(np.int64)
        now = int(times[target.position])
        if history.typed is None:
            return Past(self.tokens[history.items[span]], times[span], now)
        against = history.typed.against_at(now)
        return Past(
            self.tokens[history.items[span]],
            times[span],
            now,
            history.typed.weights[span],
            Against(self.tokens[against.items], against.weights) if len(against.items) else None,
        )

    def truth(self, target: Target) -> int:
        return int(self.tokens[self.split.histories[target.user].items[target.position]])

    def had_truth(self, target: Target) -> bool:
        """Whether the user had the true item before."""
        earlier = self.split.histories[target.user].items[: target.position]
        return bool((self.tokens[earlier] == self.truth(target)).any())

    def hidden(self, target: Target) -> NDArray[np.int64]:
        """Tokens that may not be shown, but for the truth: what lies in the current basket, and where users of the data
        do not come back to items, all that the user had.
        """
        history = self.split.histories[target.user]
        items = history.hidden(target.position, hides_seen=not self.split.has_repeats)
        tokens = np.unique(self.tokens[items])
        return tokens[tokens != self.truth(target)]

    def allowed(self, target: Target) -> NDArray[np.int64]:
        return np.setdiff1d(self.all_tokens, self.hidden(target), assume_unique=True)
