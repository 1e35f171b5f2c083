"""Training windows of item ids, in batches that waste little on padding.

In: a split. Out: for each step, items and the items after them, from everybody's train period. Knows no models.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.splits import Split
from training.run.stage import StageError


class Crops:
    """Training windows: batches of about equal length, a function of the step, so that a resumed run sees the same.

    An epoch shows every short train period once, and as many crops of a long one as cover it, shifted at random.
    """

    def __init__(self, split: Split, *, max_length: int, batch_tokens: int, seed: int) -> None:
        trained = [history.items[: history.train_end] for history in split.histories]
        self._histories = [items for items in trained if len(items) >= 2]
        if not self._histories:
            raise StageError("no user has two events in the train period: there is nothing to learn")
        self._length, self._seed = max_length, seed
        counts = [-(-(len(items) - 1) // self._length) for items in self._histories]
        self._owner = np.repeat(np.arange(len(counts)), counts)
        self._number = np.concatenate([np.arange(count) for count in counts])
        self._targets = np.array([len(items) - 1 for items in self._histories])[self._owner]
        self._batches = self._cut(np.minimum(np.sort(self._targets), self._length), batch_tokens)
        self._plan: tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None = None

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Items (B, T), the items after them (B, T), and which places are real (B, T)."""
        epoch, number = divmod(step, len(self._batches))
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, *self._draw(epoch))
        _, order, starts, turns = self._plan
        windows = [self._window(index, starts[index]) for index in order[self._batches[turns[number]]]]
        items = np.zeros((len(windows), max(len(window) for window in windows)), dtype=np.int64)
        mask = np.zeros(items.shape, dtype=np.bool_)
        for row, window in enumerate(windows):
            items[row, : len(window)] = window
            mask[row, 1 : len(window)] = True
        return torch.from_numpy(items[:, :-1]), torch.from_numpy(items[:, 1:]), torch.from_numpy(mask[:, 1:])

    def _draw(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Crops by length with ties at random, where each starts, and the turns of the batches."""
        rng = np.random.default_rng((self._seed, epoch))
        order = np.lexsort((rng.random(len(self._targets)), np.minimum(self._targets, self._length)))
        shifts = rng.integers(-(self._length // 2), self._length // 2 + 1, size=len(self._histories))[self._owner]
        starts = np.clip(self._number * self._length + shifts, 0, np.maximum(self._targets - self._length, 0))
        return order, starts, rng.permutation(len(self._batches))

    def _window(self, index: int, start: int) -> NDArray[np.int32]:
        window: NDArray[np.int32] = self._histories[self._owner[index]][start : start + self._length + 1]
        return window

    @staticmethod
    def _cut(lengths: NDArray[np.int64], batch_tokens: int) -> list[slice]:
        """Slices of rising `lengths`, each of about `batch_tokens` places with its padding, at least one crop."""
        batches, start = [], 0
        for stop in range(1, len(lengths) + 1):
            is_full = stop == len(lengths) or lengths[stop] * (stop + 1 - start) > batch_tokens
            if is_full:
                batches.append(slice(start, stop))
                start = stop
        return batches
