"""Packed training of the split model: every title of a window is a target, and older windows are its memory.

A *block* is a window of K + 1 consecutive titles, with a loss on all of them. It costs about a tenth of one prompt per
target and trains the same distribution. A *chapter* is a run of consecutive blocks of one user.

The bottom half reads each block alone, as it reads windows when serving. The memory are the states of the full windows
that end with earlier titles of the chapter (`memory_states.py`). A part of them, often none, is put where `insert` puts
memory when serving: before the last token of a title of the block, here a random one. The part is random, or, as when
serving, it was retrieved: the memories whose states are most similar to the state of that title. So the generator
learns to read memory while it learns to write, and the bottom half learns states that are worth storing. With
`memory_share=0` this is plain BIGRec tuning, as for the paper's generator.

Events of one user with equal timestamps are a basket. Their stored order is that of a hash and means nothing, so each
epoch reads every basket in a new random order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from training.data.splits import History, Target
from training.lm.memory_states import Stretch, memory_states
from training.lm.windows import Windows, groups_of_similar_length

_IGNORED = -100
_CHAPTER_BLOCKS = 9


class Block(NamedTuple):
    """`ends[i]` is the index in `tokens` of the last token of title i."""

    tokens: list[int]
    ends: list[int]


class PackedRow(NamedTuple):
    """One training sequence: a block, its memory, the place of the memory, and the first token with a loss."""

    block: Block
    memory: Sequence[int]  # places in `source` of the titles with which the windows of the memory end, oldest first
    boundary: int  # the memory is put before the last token of this title
    loss_from: int
    source: Stretch | None = None  # rows of one chapter have the same object, whose windows are then read once
    num_retrieved: int = 0  # only so many of the memories are read, the most similar ones; 0: all


def make_block(head: Sequence[int], titles: Sequence[Sequence[int]]) -> Block:
    """`head` are the tokens before the first title; `titles` are the tokens of each title."""
    tokens, ends = list(head), []
    for title in titles:
        tokens += title
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
    starts = np.cumsum([0, *(len(row.block.tokens) for row in rows)]).tolist()
    states, memories = _with_memories(lm, rows, _bottom_states(lm, [row.block.tokens for row in rows]))
    parts = zip(rows, starts[:-1], memories, strict=True)
    inputs = [_packed_input(row, start, _retrieved(row, start, memory, states)) for row, start, memory in parts]
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


def _packed_input(row: PackedRow, start: int, memory: Sequence[int]) -> _PackedInput:
    """`start` is the index of the row's first bottom state, `memory` are those of its memory."""
    tokens, cut = row.block.tokens, row.block.ends[row.boundary]
    own = range(start, start + len(tokens))
    first = max(0, row.loss_from - 1)
    labels = [_IGNORED] * first + tokens[first + 1 :] + [_IGNORED]
    return _PackedInput(
        [*own[:cut], *memory, *own[cut:]],
        [*labels[:cut], *[_IGNORED] * len(memory), *labels[cut:]],
    )


def _with_memories(lm: SplitLM, rows: Sequence[PackedRow], states: Tensor) -> tuple[Tensor, list[list[int]]]:
    """`states` with those of all memories after them, and for each row the indices of its memory."""
    wanted: dict[int, tuple[Stretch, set[int]]] = {}
    for row in rows:
        if row.source is not None and row.memory:
            wanted.setdefault(id(row.source), (row.source, set()))[1].update(row.memory)
    if not wanted:
        return states, [[] for _ in rows]
    pairs = {key: (source, sorted(places)) for key, (source, places) in wanted.items()}
    keys = [(key, place) for key, (_, places) in pairs.items() for place in places]
    index_of = {key: len(states) + number for number, key in enumerate(keys)}
    indices = [[index_of[id(row.source), place] for place in row.memory] for row in rows]
    return torch.cat([states, memory_states(lm, list(pairs.values()))]), indices


@torch.no_grad()
def _retrieved(row: PackedRow, start: int, memory: Sequence[int], states: Tensor) -> Sequence[int]:
    """The indices in `memory` that the row reads, oldest first.

    Similarity is that of the retriever without its learned layers: the product of layer-normalised states.
    """
    if not 0 < row.num_retrieved < len(memory):
        return memory
    query = start + row.block.ends[row.boundary]
    normal = F.layer_norm(states[[query, *memory]].float(), states.shape[-1:])
    best = (normal[1:] * normal[0]).sum(dim=1).topk(row.num_retrieved).indices.sort().values
    return [memory[place] for place in best.tolist()]


def shuffled_baskets(history: History, rng: np.random.Generator) -> NDArray[np.int32]:
    """The items of the train period in order of time; events with equal timestamps are in random order."""
    end = history.train_end
    found: NDArray[np.int32] = history.items[:end][np.lexsort((rng.random(end), history.timestamps[:end]))]
    return found


class PackedBatches:
    """The rows of any batch, by its number: epochs are cut into blocks and shuffled by seed.

    Before batch `memory_from` no row has memory; from then on a share `memory_share` of the rows has some. How many
    memories a row gets is drawn from `memory_sizes`. From batch `retrieved_from` on, a share `retrieved_share` of the
    rows with memory reads retrieved ones; how many is drawn from `retrieved_sizes`.
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
        retrieved_share: float = 0.0,
        retrieved_from: int = 0,
        retrieved_sizes: Sequence[int] = (1,),
    ) -> None:
        self.windows, self.num_blocks, self.seed = windows, num_blocks, seed
        self.memory_share, self.memory_from, self.memory_sizes = memory_share, memory_from, memory_sizes
        self.retrieved_share, self.retrieved_from = retrieved_share, retrieved_from
        self.retrieved_sizes = retrieved_sizes
        self._epoch, self._first_step = -1, 0
        self._batches: list[list[list[tuple[int, int]]]] = []
        self._items: list[NDArray[np.int32]] = []  # of each user, as this epoch reads them

    def __call__(self, step: int) -> list[PackedRow]:
        while step >= self._first_step + len(self._batches):
            self._first_step += len(self._batches)
            self._epoch += 1
            self._begin_epoch(np.random.default_rng((self.seed, self._epoch)))
        rng = np.random.default_rng((self.seed, step, 1))
        return [row for chapter in self._batches[step - self._first_step] for row in self._rows(chapter, step, rng)]

    def _begin_epoch(self, rng: np.random.Generator) -> None:
        """Chapters of (user, start of a block) in random order, in batches of about `num_blocks` blocks."""
        histories = self.windows.split.histories
        self._items = [shuffled_baskets(history, rng) for history in histories]
        chapters = [
            [(user, start) for start in starts[first : first + _CHAPTER_BLOCKS]]
            for user, history in enumerate(histories)
            for starts in [self._starts(history.train_end, rng)]
            for first in range(0, len(starts), _CHAPTER_BLOCKS)
        ]
        batches: list[list[list[tuple[int, int]]]] = [[]]
        for index in rng.permutation(len(chapters)):
            if sum(map(len, batches[-1])) >= self.num_blocks:
                batches.append([])
            batches[-1].append(chapters[index])
        self._batches = batches

    def _starts(self, train_end: int, rng: np.random.Generator) -> list[int]:
        """Block starts: every K + 1 events from a random offset. The first may be negative: that block is shorter."""
        size = self.windows.recent_length + 1
        return [] if train_end < 2 else list(range(-int(rng.integers(min(size, train_end - 1))), train_end - 1, size))

    def _rows(self, chapter: Sequence[tuple[int, int]], step: int, rng: np.random.Generator) -> list[PackedRow]:
        (user, begin), head, size = chapter[0], self.windows.prompt.head, self.windows.recent_length
        oldest = max(0, begin)  # the first title of the chapter; its window begins earlier
        first = max(0, oldest + 1 - size)
        source = Stretch(self.windows.title_tokens(self._items[user][first : chapter[-1][1] + size + 1]), head, size)
        rows: list[PackedRow] = []
        for _, at in chapter:
            start = max(0, at) - first
            block = make_block(head, source.titles[start : at + size + 1 - first])
            earlier = range(max(oldest - first, start - self.windows.max_memory), start)
            memory, num_retrieved = self._draw(earlier, step, rng)
            boundary = int(rng.integers(max(1, len(block.ends) - 1)))
            rows.append(PackedRow(block, memory, boundary, max(1, len(head)), source, num_retrieved))
        return rows

    def _draw(self, earlier: Sequence[int], step: int, rng: np.random.Generator) -> tuple[list[int], int]:
        """Places of the memories, and how many of them the row retrieves (0: it reads all)."""
        if not earlier or step < self.memory_from or rng.random() >= self.memory_share:
            return [], 0
        if self.retrieved_share and step >= self.retrieved_from and rng.random() < self.retrieved_share:
            return list(earlier), int(rng.choice(self.retrieved_sizes))
        chosen = np.sort(rng.permutation(len(earlier))[: int(rng.choice(self.memory_sizes))])
        return [earlier[index] for index in chosen], 0


def target_row(windows: Windows, target: Target, *, num_memories: int) -> PackedRow:
    """The window of a target with the target itself, with a loss on it only, and at most so many newest memories."""
    head, size, items = windows.prompt.head, windows.recent_length, windows.split.histories[target.user].items
    start = max(0, target.position - size)
    block = make_block(head, windows.title_tokens(items[start : target.position + 1]))
    if target.position == start:
        return PackedRow(block, [], 0, max(1, len(head)))
    places = windows.memory_positions(target)[-num_memories:] if num_memories else range(0)
    first = max(0, int(places[0]) + 1 - size) if len(places) else start
    source = Stretch(windows.title_tokens(items[first:start]), head, size)
    memory = [int(place) - first for place in places]
    return PackedRow(block, memory, len(block.ends) - 2, block.ends[-2] + 1, source)
