"""Constrained beam search: the most likely catalogue titles after a prompt (D3, arXiv 2406.14900).

The score of a title is the sum of its tokens' log-probabilities under the whole vocabulary, without length
normalisation; forced tokens are scored, but consumed in one step with the choice before them. A beam is a trie node; it
advances by whole edges, so beams of one step may differ in length. Since scores only fall, a beam that is already worse
than the k-th finished title is dropped, and the search ends when none is left. Knows no text and no memory.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from model_store.combine import Combined
from model_store.split_lm import SplitLM
from model_store.trie import Allowed, Edge, Node, Trie


class Title(NamedTuple):
    """A finished leaf and its log-probability."""

    node: Node
    score: float


class Beam(NamedTuple):
    """`score` counts all tokens up to and including the first of `edge`."""

    search: int
    parent: int  # row of the caches
    edge: Edge
    score: float


@dataclass
class Search:
    """The search of one query."""

    allowed: Allowed
    num_titles: int
    num_beams: int
    titles: list[tuple[float, Node]] = field(default_factory=list)  # min-heap of the best `num_titles`

    @property
    def bound(self) -> float:
        return self.titles[0][0] if len(self.titles) >= self.num_titles else -float("inf")

    def finish(self, node: Node, score: float) -> None:
        heapq.heappush(self.titles, (score, node))
        if len(self.titles) > self.num_titles:
            heapq.heappop(self.titles)

    def result(self) -> list[Title]:
        return [Title(node, score) for score, node in sorted(self.titles, key=lambda pair: (-pair[0], pair[1]))]


class Caches(NamedTuple):
    """What has been read so far, one row per beam. The two halves have read different things, hence two masks."""

    bottom: DynamicCache
    top: DynamicCache
    bottom_mask: Tensor
    top_mask: Tensor

    def select(self, rows: list[int]) -> "Caches":
        index = torch.tensor(rows, device=self.bottom_mask.device)
        for cache in (self.bottom, self.top):
            cache.batch_select_indices(index)
        return self._replace(bottom_mask=self.bottom_mask[index], top_mask=self.top_mask[index])

    def extended(self, mask: Tensor) -> "Caches":
        return self._replace(
            bottom_mask=torch.cat([self.bottom_mask, mask], dim=1), top_mask=torch.cat([self.top_mask, mask], dim=1)
        )


def beam_search(
    lm: SplitLM,
    prompt_mask: Tensor,
    caches: tuple[DynamicCache, DynamicCache],
    combined: Combined,
    *,
    trie: Trie,
    searches: Sequence[Search],
    reweigh: Callable[[Tensor], Tensor] = lambda log_probs: log_probs,
) -> list[list[Title]]:
    """The best titles of each query, best first, at most `num_titles` each. `reweigh` sees the first (B, V).

    `caches` are those of the bottom half, which has read the prompt (B, T) of `prompt_mask`, and of the top half, still
    empty; `combined` is the top half's input. Both caches are consumed.
    """
    bottom, top = caches
    logits = lm.top(combined.states, combined.mask, top, num_logits=1)[:, -1].float()
    log_probs = reweigh(logits.log_softmax(dim=-1))
    state = Caches(bottom, top, prompt_mask, combined.mask)
    nodes = [(index, index, trie.root, 0.0) for index in range(len(searches))]
    while beams := _select(_expand(nodes, log_probs, trie, searches), searches):
        state, log_probs, nodes = _advance(lm, beams, state, searches)
    return [search.result() for search in searches]


Frontier = list[tuple[int, int, Node, float]]  # search, row of log-probabilities, node, score


def _expand(nodes: Frontier, log_probs: Tensor, trie: Trie, searches: Sequence[Search]) -> list[Beam]:
    """The allowed edges out of the frontier; of each node, as many as its search could keep."""
    beams = []
    table = log_probs.numpy(force=True)
    for index, row, node, score in nodes:
        search, children = searches[index], trie.children(node)
        places = search.allowed.among(children)
        scores = score + table[row, children.tokens[places]]
        for best in _largest(scores, search.num_beams):
            if scores[best] > search.bound:
                edge = trie.edge(children, int(places[best]), node.depth)
                beams.append(Beam(index, row, edge, float(scores[best])))
    return beams


def _largest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest; of equal ones the first."""
    if len(scores) > count:
        smallest = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= smallest)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def _select(beams: list[Beam], searches: Sequence[Search]) -> list[Beam]:
    """The best `num_beams` of each search that may still enter its titles. Edges of one token to a leaf finish here."""
    kept: list[Beam] = []
    for index, search in enumerate(searches):
        mine = [beam for beam in beams if beam.search == index]
        for beam in heapq.nlargest(search.num_beams, mine, key=lambda beam: beam.score):
            if beam.score <= search.bound:
                break
            if beam.edge.is_leaf and len(beam.edge.tokens) == 1:
                search.finish(beam.edge.child, beam.score)
            else:
                kept.append(beam)
    return kept


def _advance(
    lm: SplitLM, beams: list[Beam], state: Caches, searches: Sequence[Search]
) -> tuple[Caches, Tensor, Frontier]:
    """Read the tokens of every beam's edge in one step: score the forced ones, finish leaves, return the frontier."""
    width = max(len(beam.edge.tokens) for beam in beams)
    tokens = torch.zeros(len(beams), width, dtype=torch.long)
    mask = torch.zeros(len(beams), width, dtype=torch.long)
    for row, beam in enumerate(beams):
        tokens[row, : len(beam.edge.tokens)] = torch.tensor(beam.edge.tokens)
        mask[row, : len(beam.edge.tokens)] = 1
    tokens, mask = tokens.to(lm.device), mask.to(lm.device)
    state = state.select([beam.parent for beam in beams]).extended(mask)
    states = lm.bottom(tokens, state.bottom_mask, state.bottom)
    log_probs = lm.top(states, state.top_mask, state.top).float().log_softmax(dim=-1)
    forced = log_probs[:, :-1].gather(2, tokens[:, 1:, None])[..., 0] * mask[:, 1:]
    scores = [beam.score + extra for beam, extra in zip(beams, forced.sum(dim=1).tolist(), strict=True)]
    frontier: Frontier = []
    for row, (beam, score) in enumerate(zip(beams, scores, strict=True)):
        if beam.edge.is_leaf:
            searches[beam.search].finish(beam.edge.child, score)
        else:
            frontier.append((beam.search, row, beam.edge.child, score))
    last = mask.sum(dim=1) - 1
    return state, log_probs[torch.arange(len(beams), device=lm.device), last], frontier
