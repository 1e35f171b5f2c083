"""Tree attention: all beams of a query in one row of the KV caches.

The tokens of all beams of a query are columns of the same row. A mask of four dimensions lets each column see the
prompt, its ancestors and itself, and each column has its own rotary position, as in SpecInfer (arXiv 2305.09781) and
Medusa (arXiv 2401.10774). All beams share the keys and values of the prompt without copies, and beams of different
lengths need no padding between them.
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
    """Tokens to read, at least one, after the token at `parent`."""

    query: int
    parent: int  # a row of what `TokenTree.read` returned last; in the first step the query itself
    depth: int  # number of title tokens before these
    tokens: Sequence[int]


class StepLayout(NamedTuple):
    """The tokens of one step as a table, one row per query, N columns."""

    tokens: NDArray[np.int64]  # (B, N)
    depths: NDArray[np.int64]  # (B, N)
    branches: NDArray[np.int64]  # (B, N), -1 in columns without a token
    parents: NDArray[np.int64]  # (B, N) columns of the step before
    rows: NDArray[np.int64]  # (C,) of each token, in the order of the branches
    columns: NDArray[np.int64]  # (C,) likewise


class TokenTree:
    """Reads branches through both halves of a language model. Changes the caches it is given."""

    def __init__(self, lm: SplitLM, caches: tuple[DynamicCache, DynamicCache], masks: tuple[Tensor, Tensor]) -> None:
        """`caches` and `masks` (B, T) of the bottom and the top half: what each has read. Only the top has memory."""
        self._lm, self._device, self._dtype = lm, lm.device, lm.dtype
        self._caches = caches
        self._num_read = [mask.sum(dim=1, keepdim=True) for mask in masks]  # (B, 1): the first position of a title
        self._past = [_additive(mask[:, None, None] == 1, self._dtype) for mask in masks]  # (B, 1, 1, T)
        self._queries = list(range(len(masks[0])))  # the query of each row
        self._visible = np.zeros((len(masks[0]), 1, 0), dtype=np.bool_)  # (B, N, P): by tokens of the last step
        self._columns = np.zeros(len(masks[0]), dtype=np.int64)  # (C,) of the tokens of the last step

    def read(self, branches: Sequence[Branch]) -> Tensor:
        """Hidden states (C, D) for the head: one for each token, branch after branch.

        Every branch continues the step before. A query without a branch is removed from the caches.
        """
        self._keep(sorted({branch.query for branch in branches}))
        step = _layout(branches, self._queries, self._columns)
        self._visible, self._columns = _visible(self._visible, step), step.columns
        tail = _additive(self._tensor(self._visible), self._dtype)[:, None]
        depths = self._tensor(step.depths)
        masks = [torch.cat([past.expand(-1, -1, tail.shape[2], -1), tail], dim=3) for past in self._past]
        bottom, top = [num_read + depths for num_read in self._num_read]
        states = self._lm.bottom(self._tensor(step.tokens), masks[0], self._caches[0], positions=bottom)
        hidden = self._lm.top_hidden(states, masks[1], self._caches[1], positions=top)
        return hidden[self._tensor(step.rows), self._tensor(step.columns)]

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _keep(self, queries: list[int]) -> None:
        """Remove the rows of finished queries, which would be computed without need."""
        if len(queries) == len(self._queries):
            return
        rows = [self._queries.index(query) for query in queries]
        index = torch.tensor(rows, device=self._device)
        for cache in self._caches:
            cache.batch_select_indices(index)
        self._num_read = [num_read[index] for num_read in self._num_read]
        self._past = [past[index] for past in self._past]
        self._visible = self._visible[rows]
        self._queries = queries


def _layout(branches: Sequence[Branch], queries: list[int], last_columns: NDArray[np.int64]) -> StepLayout:
    """`queries`: of each row, ascending. `last_columns` (C,): columns of the tokens of the step before."""
    branch_queries, parents, depths, tokens = zip(*branches, strict=True)
    branch_of = np.repeat(np.arange(len(branches)), [len(part) for part in tokens])  # (C,)
    rows = np.searchsorted(queries, branch_queries)[branch_of]
    columns = _ranks(rows)
    shape = len(queries), int(columns.max()) + 1
    step = StepLayout(
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
    """(C,) for each element of `groups` (C,): how many elements before it are in the same group."""
    order, sizes = np.argsort(groups, kind="stable"), np.bincount(groups)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def _visible(before: NDArray[np.bool_], step: StepLayout) -> NDArray[np.bool_]:
    """(B, N, P + N): a token sees what its parent sees, `before` (B, N', P), and its own branch up to itself."""
    older = before[np.arange(len(before))[:, None], step.parents]
    own = step.branches[:, :, None] == step.branches[:, None, :]
    return np.concatenate([older, np.tril(own)], axis=2)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, else the lowest number, as in the library: it works with every attention implementation."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
