"""Constrained beam search: the most likely catalogue titles after a prompt (D3, arXiv 2406.14900).

The score of a title is the sum of its tokens' log-probabilities under the whole vocabulary, without length
normalisation; forced tokens are scored, but consumed in one step with the choice before them. A beam is a trie node; it
advances by whole edges, so beams of one step may differ in length. Since scores only fall, a beam that is already worse
than the k-th finished title is dropped, and the search ends when none is left. The last token of a title is scored, but
never read. Knows no text and no memory.
"""

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from model_store.combine import Combined
from model_store.split_lm import SplitLM
from model_store.tree_attention import Branch, Tree
from model_store.trie import Allowed, Children, Edge, Node, Trie

# Logits of one product with the head, and of one softmax, whose result then stays in a processor's cache.
_MAX_LOGITS, _MAX_CACHED_LOGITS = 2**25, 2**19


class Title(NamedTuple):
    """A finished leaf and its log-probability."""

    node: Node
    score: float


class Exits(NamedTuple):
    """The allowed edges out of a node."""

    depth: int
    children: Children
    places: NDArray[np.int64]  # (A,) of the allowed children
    tokens: NDArray[np.int32]  # (A,) their first tokens


class Fork(NamedTuple):
    """A node that a search has reached, and how it may go on."""

    parent: int  # place of its last token among what was read last
    exits: Exits
    scores: NDArray[np.float32]  # (A,) up to and including the first token of each edge


class Beam(NamedTuple):
    """`score` counts all tokens up to and including the first of `edge`."""

    query: int
    parent: int
    depth: int
    edge: Edge
    score: float

    @property
    def branch(self) -> Branch:
        """What must be read of it: nothing comes after the last token of a leaf."""
        return Branch(self.query, self.parent, self.depth, self.edge.tokens[: -1 if self.edge.is_leaf else None])


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
    hidden = lm.top_hidden(combined.states, combined.mask, caches[1])[:, -1]
    log_probs = reweigh(lm.head(hidden).float().log_softmax(dim=-1))
    forks = [[_root(trie, search, query, log_probs)] for query, search in enumerate(searches)]
    tree = Tree(lm, caches, (prompt_mask, combined.mask))
    while beams := [
        beam for query, forked in enumerate(forks) for beam in _choose(query, searches[query], forked, trie)
    ]:
        forks = _advance(lm, tree, beams, trie, searches)
    return [search.result() for search in searches]


def _exits(trie: Trie, search: Search, node: Node) -> Exits:
    children = trie.children(node)
    places = search.allowed.among(children)
    return Exits(node.depth, children, places, children.tokens[places])


def _root(trie: Trie, search: Search, query: int, log_probs: Tensor) -> Fork:
    """`log_probs` (B, V) never leave the device whole: only those of the allowed tokens do."""
    exits = _exits(trie, search, trie.root)
    tokens = torch.from_numpy(exits.tokens).to(log_probs.device)
    return Fork(query, exits, log_probs[query].index_select(0, tokens).numpy(force=True))


def _choose(query: int, search: Search, forks: Sequence[Fork], trie: Trie) -> list[Beam]:
    """The best `num_beams` edges that may still enter the titles. Edges of one token to a leaf finish here."""
    kept: list[Beam] = []
    if not forks:
        return kept
    scores = np.concatenate([fork.scores for fork in forks])
    ends = list(accumulate(len(fork.scores) for fork in forks))
    for best in _largest(scores, search.num_beams).tolist():
        score = float(scores[best])
        if score <= search.bound:
            break
        place = bisect_right(ends, best)
        parent, exits, _ = forks[place]
        edge = trie.edge(exits.children, int(exits.places[best - ends[place]]), exits.depth)
        if edge.is_leaf and len(edge.tokens) == 1:
            search.finish(edge.child, score)
        else:
            kept.append(Beam(query, parent, exits.depth, edge, score))
    return kept


def _largest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest; of equal ones the first."""
    if len(scores) > count:
        smallest = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= smallest)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def _advance(
    lm: SplitLM, tree: Tree, beams: Sequence[Beam], trie: Trie, searches: Sequence[Search]
) -> list[list[Fork]]:
    """Read every beam's edge in one step: score its forced tokens, finish leaves, return the new forks of each search.

    Every token that is read is asked for something: how likely is the forced token after it, or all the allowed ones.
    """
    branches = [beam.branch for beam in beams]
    hidden = tree.read(branches)
    exits = [None if beam.edge.is_leaf else _exits(trie, searches[beam.query], beam.edge.child) for beam in beams]
    tokens: list[int] = []
    counts: list[int] = []  # of each token that was read: how many are asked of it
    for beam, found in zip(beams, exits, strict=True):
        tokens += beam.edge.tokens[1:]
        counts += [1] * (len(beam.edge.tokens) - 1)
        if found:
            tokens += found.tokens.tolist()
            counts.append(len(found.tokens))
    log_probs = _log_probs(lm, hidden, np.array(tokens), np.array(counts))
    forks: list[list[Fork]] = [[] for _ in searches]
    start = last = 0
    for beam, branch, found in zip(beams, branches, exits, strict=True):
        last += len(branch.tokens)
        stop = start + len(beam.edge.tokens) - 1
        score = beam.score + float(log_probs[start:stop].sum())
        if found is None:
            searches[beam.query].finish(beam.edge.child, score)
        else:
            start, stop = stop, stop + len(found.tokens)
            forks[beam.query].append(Fork(last - 1, found, score + log_probs[start:stop]))
        start = stop
    return forks


def _log_probs(
    lm: SplitLM, hidden: Tensor, tokens: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(W,) of `tokens` (W,), of which the first `counts[0]` are asked of the first row of `hidden` (C, D), and so on.

    In blocks: no table of all rows and the whole vocabulary is ever made, let alone copied to another device.
    """
    rows = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(lm.device)
    wanted = torch.from_numpy(tokens).to(lm.device)
    stops = np.cumsum(counts)
    found, start = torch.empty(len(tokens), dtype=torch.float32, device=lm.device), 0
    for first, logits in _head_in_blocks(lm, hidden):
        stop = int(stops[first + len(logits) - 1])
        found[start:stop] = logits.log_softmax(dim=-1)[rows[start:stop] - first, wanted[start:stop]]
        start = stop
    return found.numpy(force=True)


def _head_in_blocks(lm: SplitLM, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The first row of each block, and its logits in fp32."""
    size, first = max(1, _MAX_LOGITS // lm.vocab_size), 0
    for part in hidden.split(size):
        logits = lm.head(part)
        small = max(1, _MAX_CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
        for block in logits.split(small):
            yield first, block.float()
            first += len(block)
