"""Packed training of the split model: every title of a window is a target, and older windows are its memory.

A *block* is a window of K + 1 consecutive titles, with a loss on all of them. It costs about a tenth of one prompt per
target and trains the same distribution. A *chapter* is a run of consecutive blocks of one user.

The bottom half reads each block alone, as it reads windows when serving. The layer-L states at the ends of earlier
titles of the chapter are the memory. A random part of the memory, often none, is put where `insert` puts memory when
serving: before the last token of a title of the block, here a random one. So the generator learns to read memory while
it learns to write, and the bottom half learns states that are worth storing. With `memory_share=0` this is plain BIGRec
tuning, as for the paper's generator.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from training.lm.windows import Windows

_IGNORED = -100
_CHAPTER_BLOCKS = 9


class Block(NamedTuple):
    """`ends[i]` is the index in `tokens` of the last token of title i."""

    tokens: list[int]
    ends: list[int]


class PackedRow(NamedTuple):
    """One training sequence: a block, its memory, the place of the memory, and the first token with a loss."""

    block: Block
    memory: list[tuple[int, int]]  # (row in the batch, title) of the states, oldest first
    boundary: int  # the memory is put before the last token of this title
    loss_from: int


def make_block(windows: Windows, user: int, start: int, stop: int) -> Block:
    history = windows.split.histories[user]
    tokens = list(windows.prompt.head)
    ends = []
    for title in windows.titles(history.items[max(start, 0) : stop]):
        tokens += windows.prompt.title_tokens(title)
        ends.append(len(tokens) - 1)
    return Block(tokens, ends)


class HeadInputs(NamedTuple):
    """(R, D) states after the final norm, and (R,) the token that follows each."""

    hidden: Tensor
    labels: Tensor


def head_inputs(lm: SplitLM, rows: Sequence[PackedRow]) -> HeadInputs:
    """One entry for each title token from `loss_from` on, given the block before it and the memory; in any order.

    Both halves read rows of similar length together. In a single padded batch half of the bottom half's input and three
    quarters of the top half's would be padding on real data.
    """
    states = _bottom_states(lm, [row.block.tokens for row in rows])
    starts = np.cumsum([0, *(len(row.block.tokens) for row in rows)]).tolist()
    inputs = [
        _packed_input(rows, index, starts) for index, row in enumerate(rows) if row.loss_from < len(row.block.tokens)
    ]
    hidden, labels = [], []
    for group in groups_of_similar_length([len(each.order) for each in inputs]):
        order = pad([inputs[index].order for index in group], side="right", device=lm.device)
        targets = pad([inputs[index].labels for index in group], side="right", value=_IGNORED, device=lm.device).values
        is_target = targets != _IGNORED  # most of a row is memory: logits for all of it would cost more than the model
        hidden.append(lm.top_hidden(states[order.values], order.mask)[is_target])
        labels.append(targets[is_target])
    return HeadInputs(torch.cat(hidden), torch.cat(labels))


def packed_loss(lm: SplitLM, rows: Sequence[PackedRow], *, reduction: str = "mean") -> Tensor:
    """Cross entropy over the whole vocabulary."""
    inputs = head_inputs(lm, rows)
    return F.cross_entropy(lm.head(inputs.hidden).float(), inputs.labels, reduction=reduction)


def groups_of_similar_length(lengths: Sequence[int]) -> Iterator[NDArray[np.int64]]:
    """Yields indices of rows. The longest row of a group is at most 1.5 times as long as its shortest."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop, row in enumerate(order):
        if 2 * lengths[row] > 3 * lengths[order[start]]:
            yield order[start:stop]
            start = stop
    yield order[start:]


def _bottom_states(lm: SplitLM, blocks: Sequence[Sequence[int]]) -> Tensor:
    """(N, D) layer-L states of all tokens of all blocks, one block after the other."""
    groups = list(groups_of_similar_length([len(block) for block in blocks]))
    found: dict[int, Tensor] = {}
    for group in groups:
        padded = pad([blocks[index] for index in group], side="right", device=lm.device)
        found |= zip(group.tolist(), lm.bottom(padded.values, padded.mask), strict=True)
    return torch.cat([found[index][: len(block)] for index, block in enumerate(blocks)])


class _PackedInput(NamedTuple):
    """Input of the top half for one row: indices of bottom states, and the next token wherever there is a loss."""

    order: list[int]
    labels: list[int]


def _packed_input(rows: Sequence[PackedRow], index: int, starts: Sequence[int]) -> _PackedInput:
    row = rows[index]
    tokens, cut = row.block.tokens, row.block.ends[row.boundary]
    own = range(starts[index], starts[index + 1])
    memory = [starts[other] + rows[other].block.ends[title] for other, title in row.memory]
    first = max(0, row.loss_from - 1)
    labels = [_IGNORED] * first + tokens[first + 1 :] + [_IGNORED]
    return _PackedInput(
        [*own[:cut], *memory, *own[cut:]],
        [*labels[:cut], *[_IGNORED] * len(memory), *labels[cut:]],
    )


class PackedBatches:
    """The rows of any batch, by its number: epochs are cut into blocks and shuffled by seed.

    Before batch `memory_from` no row has memory; from then on a share `memory_share` of the rows has some. How many
    memories a row gets is drawn from `memory_sizes`.
    """

    def __init__(
        self,
        windows: Windows,
        *,
        num_blocks: int,
        memory_share: float,
        seed: int,
        memory_from: int = 0,
        memory_sizes: Sequence[int] = (1, 8, 10_000),
    ) -> None:
        self.windows, self.num_blocks, self.seed = windows, num_blocks, seed
        self.memory_share, self.memory_from, self.memory_sizes = memory_share, memory_from, memory_sizes
        self._epoch, self._first_step = -1, 0
        self._batches: list[list[list[tuple[int, int]]]] = []

    def __call__(self, step: int) -> list[PackedRow]:
        while step >= self._first_step + len(self._batches):
            self._first_step += len(self._batches)
            self._epoch += 1
            self._batches = self._cut(np.random.default_rng((self.seed, self._epoch)))
        rng = np.random.default_rng((self.seed, step, 1))
        rows: list[PackedRow] = []
        memory_share = self.memory_share if step >= self.memory_from else 0.0
        for chapter in self._batches[step - self._first_step]:
            rows += self._rows(chapter, len(rows), memory_share, rng)
        return rows

    def _cut(self, rng: np.random.Generator) -> list[list[list[tuple[int, int]]]]:
        """One epoch: chapters of (user, start of a block) in random order, in batches of about `num_blocks` blocks."""
        chapters = [
            [(user, start) for start in starts[first : first + _CHAPTER_BLOCKS]]
            for user, history in enumerate(self.windows.split.histories)
            for starts in [self._starts(history.train_end, rng)]
            for first in range(0, len(starts), _CHAPTER_BLOCKS)
        ]
        batches: list[list[list[tuple[int, int]]]] = [[]]
        for index in rng.permutation(len(chapters)):
            if sum(map(len, batches[-1])) >= self.num_blocks:
                batches.append([])
            batches[-1].append(chapters[index])
        return batches

    def _starts(self, train_end: int, rng: np.random.Generator) -> list[int]:
        """Block starts: every K + 1 events from a random offset. The first may be negative: that block is shorter."""
        size = self.windows.recent_length + 1
        return [] if train_end < 2 else list(range(-int(rng.integers(min(size, train_end - 1))), train_end - 1, size))

    def _rows(
        self, chapter: Sequence[tuple[int, int]], first_row: int, memory_share: float, rng: np.random.Generator
    ) -> list[PackedRow]:
        rows: list[PackedRow] = []
        earlier: list[tuple[int, int]] = []
        for number, (user, start) in enumerate(chapter):
            stop = min(start + self.windows.recent_length + 1, self.windows.split.histories[user].train_end)
            block = make_block(self.windows, user, start, stop)
            memory = self._subset(earlier[-self.windows.max_memory :], memory_share, rng)
            boundary = int(rng.integers(max(1, len(block.ends) - 1)))
            rows.append(PackedRow(block, memory, boundary, loss_from=max(1, len(self.windows.prompt.head))))
            earlier += [(first_row + number, title) for title in range(len(block.ends))]
        return rows

    def _subset(self, memory: list[tuple[int, int]], share: float, rng: np.random.Generator) -> list[tuple[int, int]]:
        if not memory or rng.random() >= share:
            return []
        chosen = np.sort(rng.permutation(len(memory))[: int(rng.choice(self.memory_sizes))])
        return [memory[index] for index in chosen]


def target_rows(windows: Windows, user: int, position: int, first_row: int, *, with_memory: bool) -> list[PackedRow]:
    """Rows with a loss on one target only: first the blocks of its memory, last its window with the target itself.

    `first_row` is the number of the first of these rows in the batch.
    """
    head, size = max(1, len(windows.prompt.head)), windows.recent_length
    start = max(0, position - size)
    block = make_block(windows, user, start, position + 1)
    if position == start:
        return [PackedRow(block, [], 0, head)]
    loss_from = block.ends[-2] + 1
    oldest = max(0, start - windows.max_memory)
    starts = range(oldest, start, size) if with_memory else range(0)
    rows = [PackedRow(make_block(windows, user, at, min(at + size, start)), [], 0, 1 << 30) for at in starts]
    memory = [(first_row + number, title) for number, row in enumerate(rows) for title in range(len(row.block.ends))]
    return [*rows, PackedRow(block, memory, len(block.ends) - 2, loss_from)]
