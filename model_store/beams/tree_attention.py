"""Beams as columns: one row of the KV caches per query, however many beams it has.

Each beam's tokens become columns of its query's row. A mask of four dimensions lets a column see the prompt, its own
ancestors and itself, and a position of its own tells it how deep it stands: as in SpecInfer (arXiv 2305.09781) and
Medusa (arXiv 2401.10774). So the prompt's keys and values are shared by all beams and never copied for one, and tokens
of beams of different lengths stand side by side without padding between them. Knows neither tries nor scores.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from model_store.lm.split_lm import SplitLM


class Branch(NamedTuple):
    """Tokens to read, at least one. They follow what stands at `parent` of what `read` returned last."""

    query: int
    parent: int  # before the first step: the query itself
    depth: int  # tokens of the title before these
    tokens: Sequence[int]


class Layout(NamedTuple):
    """Where the tokens of one step stand: columns (B, N) of the rows. `branches` is -1 where a row has no token."""

    tokens: NDArray[np.int64]  # (B, N)
    depths: NDArray[np.int64]  # (B, N)
    branches: NDArray[np.int64]  # (B, N)
    parents: NDArray[np.int64]  # (B, N) columns of the step before
    rows: NDArray[np.int64]  # (C,) of each token, in the order of the branches
    columns: NDArray[np.int64]  # (C,)


class Tree:
    """Reads branches through both halves. Takes the caches over: the bottom half's and the top half's, each of which
    has read what its mask (B, T) says; memory stands in the top half alone."""

    def __init__(self, lm: SplitLM, caches: tuple[DynamicCache, DynamicCache], masks: tuple[Tensor, Tensor]) -> None:
        self._lm, self._device, self._dtype = lm, lm.device, lm.dtype
        self._caches = caches
        self._num_read = [mask.sum(dim=1, keepdim=True) for mask in masks]  # (B, 1): where the first position is
        self._hidden = [_additive(mask[:, None, None] == 1, self._dtype) for mask in masks]  # (B, 1, 1, T)
        self._queries = list(range(len(masks[0])))  # of each row
        self._seen = np.zeros((len(masks[0]), 1, 0), dtype=np.bool_)  # (B, N, P): by columns of the last step
        self._columns = np.zeros(len(masks[0]), dtype=np.int64)  # (C,) of the last step

    def read(self, branches: Sequence[Branch]) -> Tensor:
        """(C, D) for the head: one state for each token, branch after branch. Every branch goes on from the step
        before; a query that has none any more is let go."""
        self._keep(sorted({branch.query for branch in branches}))
        step = _layout(branches, self._queries, self._columns)
        self._seen, self._columns = _seen(self._seen, step), step.columns
        tail = _additive(self._tensor(self._seen), self._dtype)[:, None]
        depths = self._tensor(step.depths)
        masks = [torch.cat([past.expand(-1, -1, tail.shape[2], -1), tail], dim=3) for past in self._hidden]
        bottom, top = [num_read + depths for num_read in self._num_read]
        states = self._lm.bottom(self._tensor(step.tokens), masks[0], self._caches[0], positions=bottom)
        hidden = self._lm.top_hidden(states, masks[1], self._caches[1], positions=top)
        return hidden[self._tensor(step.rows), self._tensor(step.columns)]

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _keep(self, queries: list[int]) -> None:
        """Rows of finished queries would be computed for nothing."""
        if len(queries) == len(self._queries):
            return
        rows = [self._queries.index(query) for query in queries]
        index = torch.tensor(rows, device=self._device)
        for cache in self._caches:
            cache.batch_select_indices(index)
        self._num_read = [num_read[index] for num_read in self._num_read]
        self._hidden = [past[index] for past in self._hidden]
        self._seen = self._seen[rows]
        self._queries = queries


def _layout(branches: Sequence[Branch], queries: list[int], last_columns: NDArray[np.int64]) -> Layout:
    """`queries` are those of the rows and ascend, `last_columns` (C,) say where the tokens of the step before stand."""
    asked, parents, depths, tokens = zip(*branches, strict=True)
    branch_of = np.repeat(np.arange(len(branches)), [len(part) for part in tokens])  # (C,)
    rows = np.searchsorted(queries, asked)[branch_of]
    columns = _ranks(rows)
    shape = len(queries), int(columns.max()) + 1
    step = Layout(
        tokens=np.zeros(shape, dtype=np.int64),
        depths=np.zeros(shape, dtype=np.int64),
        branches=np.full(shape, -1, dtype=np.int64),
        parents=np.zeros(shape, dtype=np.int64),
        rows=rows,
        columns=columns,
    )
    step.tokens[rows, columns] = list(chain.from_iterable(tokens))
    step.depths[rows, columns] = np.array(depths)[branch_of] + _ranks(branch_of)
    step.branches[rows, columns] = branch_of
    step.parents[rows, columns] = last_columns[np.array(parents)[branch_of]]
    return step


def _ranks(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """(C,) how many of those before it are of the same group (C,)."""
    order, sizes = np.argsort(groups, kind="stable"), np.bincount(groups)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def _seen(before: NDArray[np.bool_], step: Layout) -> NDArray[np.bool_]:
    """(B, N, P + N): a token sees what its parent saw, and its own branch up to itself. `before` (B, N', P)."""
    older = before[np.arange(len(before))[:, None], step.parents]
    own = step.branches[:, :, None] == step.branches[:, None, :]
    return np.concatenate([older, np.tril(own)], axis=2)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible; elsewhere the lowest number, as the library has it: it suits every kind of attention."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
