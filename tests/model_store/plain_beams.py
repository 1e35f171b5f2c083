"""A simple, slow version of `beam_search` for comparison: every beam has its own row of the KV caches.

Each step copies the cache rows of the selected beams, reads whole edges, padded to the longest, and computes a softmax
for every column.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from model_store.beams.search import Search
from model_store.beams.trie import Node, ScoredTitle, Trie, TrieEdge
from model_store.lm.split_lm import SplitLM
from model_store.memory.combine import TopInput


class Beam(NamedTuple):
    """`score` counts all tokens up to and including the first of `edge`."""

    search: int
    parent: int  # row of the caches
    edge: TrieEdge
    score: float


class Caches(NamedTuple):
    """What both halves have read, one row per beam."""

    bottom: DynamicCache
    top: DynamicCache
    bottom_mask: Tensor
    top_mask: Tensor

    def select(self, rows: list[int]) -> "Caches":
        for cache in (self.bottom, self.top):
            cache.batch_select_indices(torch.tensor(rows))
        return self._replace(bottom_mask=self.bottom_mask[rows], top_mask=self.top_mask[rows])

    def extended(self, mask: Tensor) -> "Caches":
        return self._replace(
            bottom_mask=torch.cat([self.bottom_mask, mask], dim=1), top_mask=torch.cat([self.top_mask, mask], dim=1)
        )


Frontier = list[tuple[int, int, Node, float]]  # search, row of log-probabilities, node, score


def plain_beam_search(
    lm: SplitLM,
    prompt_mask: Tensor,
    caches: tuple[DynamicCache, DynamicCache],
    combined: TopInput,
    *,
    trie: Trie,
    searches: Sequence[Search],
) -> list[list[ScoredTitle]]:
    log_probs = lm.top(combined.states, combined.mask, caches[1], num_logits=1)[:, -1].log_softmax(dim=-1)
    state = Caches(*caches, prompt_mask, combined.mask)
    frontier: Frontier = [(index, index, trie.root, 0.0) for index in range(len(searches))]
    while beams := select(expand(frontier, log_probs, trie, searches), searches):
        state, log_probs, frontier = advance(lm, beams, state, searches)
    return [search.result() for search in searches]


def expand(frontier: Frontier, log_probs: Tensor, trie: Trie, searches: Sequence[Search]) -> list[Beam]:
    beams = []
    for index, row, node, score in frontier:
        children = trie.children(node)
        for place in searches[index].allowed.among(children).tolist():
            edge = trie.edge(children, place, node.depth)
            beams.append(Beam(index, row, edge, score + float(log_probs[row, edge.tokens[0]])))
    return beams


def select(beams: list[Beam], searches: Sequence[Search]) -> list[Beam]:
    kept: list[Beam] = []
    for index, search in enumerate(searches):
        mine = [beam for beam in beams if beam.search == index]
        for beam in heapq.nlargest(search.num_beams, mine, key=lambda beam: beam.score):
            if beam.edge.is_leaf and len(beam.edge.tokens) == 1:
                search.finish(beam.edge.child, beam.score)
            elif beam.score > search.bound:
                kept.append(beam)
    return kept


def advance(
    lm: SplitLM, beams: list[Beam], state: Caches, searches: Sequence[Search]
) -> tuple[Caches, Tensor, Frontier]:
    width = max(len(beam.edge.tokens) for beam in beams)
    tokens = torch.zeros(len(beams), width, dtype=torch.long)
    mask = torch.zeros(len(beams), width, dtype=torch.long)
    for row, beam in enumerate(beams):
        tokens[row, : len(beam.edge.tokens)] = torch.tensor(beam.edge.tokens)
        mask[row, : len(beam.edge.tokens)] = 1
    state = state.select([beam.parent for beam in beams]).extended(mask)
    states = lm.bottom(tokens, state.bottom_mask, state.bottom)
    log_probs = lm.top(states, state.top_mask, state.top).log_softmax(dim=-1)
    forced = log_probs[:, :-1].gather(2, tokens[:, 1:, None])[..., 0] * mask[:, 1:]
    frontier: Frontier = []
    for row, beam in enumerate(beams):
        score = beam.score + float(forced[row].sum())
        if beam.edge.is_leaf:
            searches[beam.search].finish(beam.edge.child, score)
        else:
            frontier.append((beam.search, row, beam.edge.child, score))
    return state, log_probs[torch.arange(len(beams)), mask.sum(dim=1) - 1], frontier
