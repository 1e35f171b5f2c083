"""Training batches of SASRec: windows of item ids, grouped by length so that little is padded.

In: a split. Out: for each step, items and the items that follow them, from the train period of all users.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.splits import Split
from training.run.stage import StageError


class _Epoch(NamedTuple):
    number: int
    order: NDArray[np.int64]  # (crops,) crops by length, equal lengths in random order
    starts: NDArray[np.int64]  # (crops,) where each crop starts in its history
    turns: NDArray[np.int64]  # (batches,) the order of the batches


class SasrecBatches:
    """Batches of windows ("crops") of about equal length. A batch depends on the step only, so training can resume.

    An epoch shows each short train period once. Of a long one it shows as many crops as cover it, shifted at random.
    """

    def __init__(self, split: Split, *, max_length: int, batch_tokens: int, seed: int) -> None:
        """Raises StageError where no user has two events in the train period."""
        trained = [history.items[: history.train_end] for history in split.histories]
        self._histories = [items for items in trained if len(items) >= 2]
        if not self._histories:
            raise StageError("no user has two events in the train period, so SASRec has nothing to learn from")
        self._length, self._seed = max_length, seed
        counts = [-(-(len(items) - 1) // self._length) for items in self._histories]
        self._owner = np.repeat(np.arange(len(counts)), counts)  # (crops,) the history of each crop
        self._number = np.concatenate([np.arange(count) for count in counts])  # (crops,) its place in the history
        self._targets = np.array([len(items) - 1 for items in self._histories])[self._owner]
        self._batches = self._cut(np.minimum(np.sort(self._targets), self._length), batch_tokens)
        self._epoch: _Epoch | None = None

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Items (B, T), the items that follow them (B, T), and which places are real (B, T) bool."""
        number, turn = divmod(step, len(self._batches))
        if self._epoch is None or self._epoch.number != number:
            self._epoch = self._draw(number)
        crops = self._epoch.order[self._batches[self._epoch.turns[turn]]]
        windows = [self._window(crop, self._epoch.starts[crop]) for crop in crops]
        items = np.zeros((len(windows), max(len(window) for window in windows)), dtype=np.int64)
        mask = np.zeros(items.shape, dtype=np.bool_)
        for row, window in enumerate(windows):
            items[row, : len(window)] = window
            mask[row, 1 : len(window)] = True
        return torch.from_numpy(items[:, :-1]), torch.from_numpy(items[:, 1:]), torch.from_numpy(mask[:, 1:])

    def _draw(self, epoch: int) -> _Epoch:
        rng = np.random.default_rng((self._seed, epoch))
        order = np.lexsort((rng.random(len(self._targets)), np.minimum(self._targets, self._length)))
        shifts = rng.integers(-(self._length // 2), self._length // 2 + 1, size=len(self._histories))[self._owner]
        starts = np.clip(self._number * self._length + shifts, 0, np.maximum(self._targets - self._length, 0))
        return _Epoch(epoch, order, starts, rng.permutation(len(self._batches)))

    def _window(self, crop: int, start: int) -> NDArray[np.int32]:
        window: NDArray[np.int32] = self._histories[self._owner[crop]][start : start + self._length + 1]
        return window

    @staticmethod
    def _cut(lengths: NDArray[np.int64], batch_tokens: int) -> list[slice]:
        """Slices of the rising `lengths`: each has about `batch_tokens` places with padding, and at least one crop."""
        batches, start = [], 0
        for stop in range(1, len(lengths) + 1):
            is_full = stop == len(lengths) or lengths[stop] * (stop + 1 - start) > batch_tokens
            if is_full:
                batches.append(slice(start, stop))
                start = stop
        return batches
