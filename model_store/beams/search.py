"""Constrained beam search: the most likely catalogue titles after a prompt (D3, arXiv 2406.14900).

The score of a title is the sum of its tokens' log-probabilities under the whole vocabulary, without length
normalisation; forced tokens are scored, but consumed in one step with the choice before them. A beam is a trie node; it
advances by whole edges, so beams of one step may differ in length. Since scores only fall, a beam that is already worse
than the k-th finished title is dropped, and the search ends when none is left. The last token of a title is scored, but
never read. Knows no text and no memory.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from model_store.beams.tree_attention import Branch, Tree
from model_store.beams.trie import Allowed, Children, Edge, Node, Trie
from model_store.lm.split_lm import SplitLM
from model_store.memory.combine import TopInput

# Logits of one product with the head, and of one softmax, whose result then stays in a processor's cache.
_MAX_LOGITS, _MAX_CACHED_LOGITS = 2**25, 2**19
_MAX_SORTED = 500  # scores that are sorted sooner than the largest of them are found


class Title(NamedTuple):
    """A finished leaf and its log-probability."""

    node: Node
    score: float


class Exits(NamedTuple):
    """The allowed edges out of some nodes, which ascend."""

    children: Children  # of all the nodes
    places: NDArray[np.int64]  # (A,) of the allowed children
    ends: NDArray[np.int64]  # (F,) of each node: how many of `places` lead out of the nodes up to it
    depths: NDArray[np.int64]  # (F,) of the nodes

    @property
    def tokens(self) -> NDArray[np.int32]:
        """(A,) the first of each edge."""
        return self.children.tokens[self.places]

    def nodes_of(self, edges: NDArray[np.int64]) -> NDArray[np.int64]:
        """Out of which node each edge leads."""
        return self.ends.searchsorted(edges, side="right")


class Forks(NamedTuple):
    """The nodes that a search has reached, and how it may go on."""

    exits: Exits
    parents: NDArray[np.int64]  # (F,) places of their last tokens among what was read last
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


class Reached(NamedTuple):
    """The nodes to which the beams of one query have led."""

    query: int
    exits: Exits
    beams: NDArray[np.int64]  # (F,) places of the beams
    edge_beams: NDArray[np.int64]  # (A,) the one before each edge


class Asked(NamedTuple):
    """Tokens whose probabilities are wanted, each after one of the tokens that were read."""

    rows: NDArray[np.int64]  # (W,) places of those
    tokens: NDArray[np.integer]  # (W,)


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
        add = heapq.heappush if len(self.titles) < self.num_titles else heapq.heappushpop
        add(self.titles, (score, node))

    def result(self) -> list[Title]:
        return [Title(node, score) for score, node in sorted(self.titles, key=lambda pair: (-pair[0], pair[1]))]


def beam_search(
    lm: SplitLM,
    prompt_mask: Tensor,
    caches: tuple[DynamicCache, DynamicCache],
    combined: TopInput,
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
    forks = {query: _root(trie, search, query, log_probs) for query, search in enumerate(searches)}
    tree = Tree(lm, caches, (prompt_mask, combined.mask))
    while beams := [beam for query, found in forks.items() for beam in _choose(query, searches[query], found, trie)]:
        forks = _advance(lm, tree, beams, trie, searches)
    return [search.result() for search in searches]


def _exits(trie: Trie, search: Search, nodes: Sequence[Node]) -> Exits:
    """`nodes` ascend, and none lies below another."""
    parts = [trie.children(node) for node in nodes]
    children = Children.joined(parts)
    places = search.allowed.among(children)
    ends = places.searchsorted(np.cumsum([len(part.starts) for part in parts]))
    return Exits(children, places, ends, np.array([node.depth for node in nodes]))


def _root(trie: Trie, search: Search, query: int, log_probs: Tensor) -> Forks:
    """`log_probs` (B, V) never leave the device whole: only those of the allowed tokens do."""
    exits = _exits(trie, search, [trie.root])
    tokens = torch.from_numpy(exits.tokens).to(log_probs.device)
    scores = log_probs[query].index_select(0, tokens).numpy(force=True)
    return Forks(exits, np.array([query]), scores)


def _choose(query: int, search: Search, forks: Forks, trie: Trie) -> list[Beam]:
    """The best `num_beams` edges that may still enter the titles. Edges of one token to a leaf finish here."""
    exits = forks.exits
    best = _largest(forks.scores, search.num_beams)
    nodes = exits.nodes_of(best)
    columns = forks.scores[best], exits.places[best], forks.parents[nodes], exits.depths[nodes]
    kept: list[Beam] = []
    for score, place, parent, depth in zip(*(column.tolist() for column in columns), strict=True):
        if score <= search.bound:
            break
        edge = trie.edge(exits.children, place, depth)
        if edge.is_leaf and len(edge.tokens) == 1:
            search.finish(edge.child, score)
        else:
            kept.append(Beam(query, parent, depth, edge, score))
    return kept


def _largest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest; of equal ones the first."""
    if len(scores) > max(count, _MAX_SORTED):
        smallest = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= smallest)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def _advance(
    lm: SplitLM, tree: Tree, beams: Sequence[Beam], trie: Trie, searches: Sequence[Search]
) -> dict[int, Forks]:
    """Read every beam's edge in one step: score its forced tokens, finish leaves, return the new forks by query.

    Every token that is read is asked for something: how likely is the forced token after it, or all the allowed ones.
    """
    branches = [beam.branch for beam in beams]
    hidden = tree.read(branches)
    last = np.cumsum([len(branch.tokens) for branch in branches]) - 1  # (n,) of each beam: its last row of `hidden`
    reached = _reached(trie, beams, searches)
    forced = _forced(beams, last)
    ahead = [Asked(last[found.edge_beams], found.exits.tokens) for found in reached]
    forced_log_probs, *log_probs = _log_probs(lm, hidden, [forced, *ahead])
    scores = np.array([beam.score for beam in beams])
    np.add.at(scores, last.searchsorted(forced.rows), forced_log_probs)
    for beam, score in zip(beams, scores.tolist(), strict=True):
        if beam.edge.is_leaf:
            searches[beam.query].finish(beam.edge.child, score)
    rounded = scores.astype(np.float32)
    return {
        found.query: Forks(found.exits, last[found.beams], rounded[found.edge_beams] + part)
        for found, part in zip(reached, log_probs, strict=True)
    }


def _reached(trie: Trie, beams: Sequence[Beam], searches: Sequence[Search]) -> list[Reached]:
    """Of each query that goes on. The beams of a query stand together."""
    going_on = [place for place, beam in enumerate(beams) if not beam.edge.is_leaf]
    found = []
    for query, group in groupby(going_on, lambda place: beams[place].query):
        places = sorted(group, key=lambda place: beams[place].edge.child)
        exits = _exits(trie, searches[query], [beams[place].edge.child for place in places])
        nodes, at = exits.nodes_of(np.arange(len(exits.places))), np.array(places)
        found.append(Reached(query, exits, at, at[nodes]))
    return found


def _forced(beams: Sequence[Beam], last: NDArray[np.int64]) -> Asked:
    """All tokens of the edges but the first of each; `last` (n,) says where the last that was read of a beam stands.

    They are asked of all that was read, except where a beam comes to a node: allowed tokens are asked there.
    """
    goes_on = [not beam.edge.is_leaf for beam in beams]
    tokens = [token for beam in beams for token in beam.edge.tokens[1:]]
    return Asked(np.delete(np.arange(last[-1] + 1), last[goes_on]), np.array(tokens, dtype=np.int64))


def _log_probs(lm: SplitLM, hidden: Tensor, asked: Sequence[Asked]) -> list[NDArray[np.float32]]:
    """(W,) for each (W,) that is asked of the rows of `hidden` (C, D).

    In blocks: no table of all rows and the whole vocabulary is ever made, let alone copied to another device.
    """
    rows, tokens = map(np.concatenate, zip(*asked, strict=True))
    order = np.argsort(rows, kind="stable")
    sorted_rows = torch.from_numpy(rows[order]).to(lm.device)
    wanted = torch.from_numpy(tokens[order]).to(lm.device)
    stops = np.cumsum(np.bincount(rows, minlength=len(hidden)))
    found, start = torch.empty(len(tokens), dtype=torch.float32, device=lm.device), 0
    for first, logits in _head_in_blocks(lm, hidden):
        stop = int(stops[first + len(logits) - 1])
        found[start:stop] = logits.log_softmax(dim=-1)[sorted_rows[start:stop] - first, wanted[start:stop]]
        start = stop
    log_probs = np.empty(len(tokens), dtype=np.float32)
    log_probs[order] = found.numpy(force=True)
    return np.split(log_probs, np.cumsum([len(part.rows) for part in asked])[:-1])


def _head_in_blocks(lm: SplitLM, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The first row of each block, and its logits in fp32."""
    size, first = max(1, _MAX_LOGITS // lm.vocab_size), 0
    for part in hidden.split(size):
        logits = lm.head(part)
        small = max(1, _MAX_CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
        for block in logits.split(small):
            yield first, block.float()
            first += len(block)
