"""Constrained beam search: the most likely titles of the catalogue after a prompt (D3, arXiv 2406.14900).

The score of a title is the sum of the log-probabilities of its tokens under the whole vocabulary, without length
normalisation; titles that came after training are scored as `new_titles.py` says. A beam follows edges of the trie. The
first token of an edge is a choice, the others are forced: they are
scored too, but read in the same step, so beams of one step may differ in length. Scores only fall along a beam. A beam
whose score is not above the k-th best finished title is therefore dropped, and the search ends when no beam is left.
The last token of a title is scored, but never read.
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

from model_store.beams.new_titles import leaves_below, new_children, share_below
from model_store.beams.tree_attention import Branch, TokenTree
from model_store.beams.trie import AllowedItems, Children, Node, ScoredTitle, Trie, TrieEdge
from model_store.lm.split_lm import SplitLM
from model_store.memory.combine import TopInput

# Numbers in one product with the head, and in one softmax, whose result then fits into the cache of a CPU.
_MAX_LOGITS, _MAX_SOFTMAX_LOGITS = 2**25, 2**19
_MAX_SORTED = 500  # up to so many scores, sorting all is faster than finding the largest first


class NextEdges(NamedTuple):
    """The allowed edges out of some nodes, in the order of the nodes."""

    children: Children  # of all the nodes, allowed or not
    places: NDArray[np.int64]  # (A,) places of the allowed children in `children`
    ends: NDArray[np.int64]  # (F,) number of allowed edges out of the nodes up to and including this one
    depths: NDArray[np.int64]  # (F,) of the nodes

    @property
    def tokens(self) -> NDArray[np.int32]:
        """(A,) the first token of each edge."""
        return self.children.tokens[self.places]

    def nodes_of(self, edges: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of the node out of which each edge leads."""
        return self.ends.searchsorted(edges, side="right")


class Frontier(NamedTuple):
    """The nodes that the beams of one query have reached, and the scores of the edges out of them."""

    edges: NextEdges
    parents: NDArray[np.int64]  # (F,) row of `TokenTree.read`'s last result that holds the last token of each node
    scores: NDArray[np.float32]  # (A,) up to and including the first token of each edge


class Beam(NamedTuple):
    """A selected edge. `score` counts all tokens up to and including the first token of `edge`."""

    query: int
    parent: int
    depth: int
    edge: TrieEdge
    score: float

    @property
    def branch(self) -> Branch:
        """The tokens to read: those of the edge, except the last token of a title."""
        return Branch(self.query, self.parent, self.depth, self.edge.tokens[: -1 if self.edge.is_leaf else None])


class Expansion(NamedTuple):
    """The nodes at the ends of the beams of one query, and the allowed edges out of them."""

    query: int
    edges: NextEdges
    beams: NDArray[np.int64]  # (F,) index of the beam that ends at each node
    edge_beams: NDArray[np.int64]  # (A,) index of the beam before each edge


class NextTokens(NamedTuple):
    """(position, next token) pairs to score."""

    rows: NDArray[np.int64]  # (W,) positions, as rows of the hidden states
    tokens: NDArray[np.integer]  # (W,)


@dataclass
class Search:
    """The search of one query: its allowed items, its limits and the best titles so far."""

    allowed: AllowedItems
    num_titles: int
    num_beams: int
    titles: list[tuple[float, Node]] = field(default_factory=list)  # min-heap of the best `num_titles`

    @property
    def bound(self) -> float:
        """The score that a beam must exceed to enter the titles."""
        return self.titles[0][0] if len(self.titles) >= self.num_titles else -float("inf")

    def finish(self, node: Node, score: float) -> None:
        add = heapq.heappush if len(self.titles) < self.num_titles else heapq.heappushpop
        add(self.titles, (score, node))

    def finish_new(self, trie: Trie, node: Node, score: float) -> None:
        """Titles that leave the titles of training at `node`, whose score is `score`; see `new_titles.py`."""
        if trie.is_new is not None and (share := share_below(trie, self.allowed, node, score)) > self.bound:
            for leaf in leaves_below(trie, self.allowed, node, self.num_titles):
                self.finish(leaf, share)

    def result(self) -> list[ScoredTitle]:
        return [ScoredTitle(node, score) for score, node in sorted(self.titles, key=lambda pair: (-pair[0], pair[1]))]


def beam_search(
    lm: SplitLM,
    prompt_mask: Tensor,
    caches: tuple[DynamicCache, DynamicCache],
    top_input: TopInput,
    *,
    trie: Trie,
    searches: Sequence[Search],
    adjust_first_step: Callable[[Tensor], Tensor] = lambda log_probs: log_probs,
) -> list[list[ScoredTitle]]:
    """The best titles of each query, best first, at most `num_titles` each.

    `caches`: of the bottom half, which has read the prompts (B, T) of `prompt_mask`, and of the top half, still empty.
    Both are changed and cannot be used afterwards. `adjust_first_step` gets the log-probabilities (B, V) of the first
    tokens and returns those to use.
    """
    hidden = lm.top_hidden(top_input.states, top_input.mask, caches[1])[:, -1]
    log_probs = adjust_first_step(lm.head(hidden).float().log_softmax(dim=-1))
    frontiers = {query: _first_frontier(trie, search, query, log_probs) for query, search in enumerate(searches)}
    for search in searches:
        search.finish_new(trie, trie.root, 0.0)
    tree = TokenTree(lm, caches, (prompt_mask, top_input.mask))
    while beams := [
        beam for query, frontier in frontiers.items() for beam in _select_beams(query, searches[query], frontier, trie)
    ]:
        frontiers = _advance(lm, tree, beams, trie, searches)
    return [search.result() for search in searches]


def _next_edges(trie: Trie, search: Search, nodes: Sequence[Node]) -> NextEdges:
    """`nodes` are in ascending order, and none is below another."""
    parts = [trie.children(node) for node in nodes]
    children = Children.joined(parts)
    places = search.allowed.among(children)
    if trie.is_new is not None:
        places, _ = new_children(trie, children, places)
    ends = places.searchsorted(np.cumsum([len(part.starts) for part in parts]))
    return NextEdges(children, places, ends, np.array([node.depth for node in nodes]))


def _first_frontier(trie: Trie, search: Search, query: int, log_probs: Tensor) -> Frontier:
    """The root of the trie. Of `log_probs` (B, V) only the numbers of allowed tokens are copied from the device."""
    edges = _next_edges(trie, search, [trie.root])
    tokens = torch.from_numpy(edges.tokens).to(log_probs.device)
    scores = log_probs[query].index_select(0, tokens).numpy(force=True)
    return Frontier(edges, np.array([query]), scores)


def _select_beams(query: int, search: Search, frontier: Frontier, trie: Trie) -> list[Beam]:
    """The best `num_beams` edges with scores above the bound. Edges of one token to a leaf are finished here."""
    edges = frontier.edges
    best = _top_k(frontier.scores, search.num_beams)
    nodes = edges.nodes_of(best)
    columns = frontier.scores[best], edges.places[best], frontier.parents[nodes], edges.depths[nodes]
    beams: list[Beam] = []
    for score, place, parent, depth in zip(*(column.tolist() for column in columns), strict=True):
        if score <= search.bound:
            break
        edge = trie.edge(edges.children, place, depth)
        if edge.is_leaf and len(edge.tokens) == 1:
            search.finish(edge.child, score)
        else:
            beams.append(Beam(query, parent, depth, edge, score))
    return beams


def _top_k(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest scores, best first; equal scores in order of place."""
    if len(scores) > max(count, _MAX_SORTED):
        smallest = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= smallest)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def _advance(
    lm: SplitLM, tree: TokenTree, beams: Sequence[Beam], trie: Trie, searches: Sequence[Search]
) -> dict[int, Frontier]:
    """Read the edges of all beams in one step: score forced tokens, finish leaves, return the new frontiers by query.

    The model's output after every token that is read is used: for the forced token that follows, or at the end of an
    edge for all allowed tokens.
    """
    branches = [beam.branch for beam in beams]
    hidden = tree.read(branches)
    last = np.cumsum([len(branch.tokens) for branch in branches]) - 1  # (n,) the last row of `hidden` of each beam
    expansions = _expand(trie, beams, searches)
    forced = _forced_tokens(beams, last)
    following = [NextTokens(last[found.edge_beams], found.edges.tokens) for found in expansions]
    forced_log_probs, *log_probs = _log_probs(lm, hidden, [forced, *following])
    scores = np.array([beam.score for beam in beams])
    np.add.at(scores, last.searchsorted(forced.rows), forced_log_probs)
    for beam, score in zip(beams, scores.tolist(), strict=True):
        if beam.edge.is_leaf:
            searches[beam.query].finish(beam.edge.child, score)
    for found in expansions if trie.is_new is not None else ():
        for index in found.beams.tolist():
            searches[found.query].finish_new(trie, beams[index].edge.child, float(scores[index]))
    rounded = scores.astype(np.float32)
    return {
        found.query: Frontier(found.edges, last[found.beams], rounded[found.edge_beams] + part)
        for found, part in zip(expansions, log_probs, strict=True)
    }


def _expand(trie: Trie, beams: Sequence[Beam], searches: Sequence[Search]) -> list[Expansion]:
    """The expansion of each query that has beams without a leaf. `beams` are grouped by query."""
    unfinished = [index for index, beam in enumerate(beams) if not beam.edge.is_leaf]
    expansions = []
    for query, group in groupby(unfinished, lambda index: beams[index].query):
        indices = sorted(group, key=lambda index: beams[index].edge.child)
        edges = _next_edges(trie, searches[query], [beams[index].edge.child for index in indices])
        nodes, node_beams = edges.nodes_of(np.arange(len(edges.places))), np.array(indices)
        expansions.append(Expansion(query, edges, node_beams, node_beams[nodes]))
    return expansions


def _forced_tokens(beams: Sequence[Beam], last: NDArray[np.int64]) -> NextTokens:
    """All tokens of the edges but the first of each; `last` (n,) is the last row of the hidden states of each beam.

    Every row scores one forced token, except the last row of a beam that ends at an inner node.
    """
    is_unfinished = [not beam.edge.is_leaf for beam in beams]
    tokens = [token for beam in beams for token in beam.edge.tokens[1:]]
    return NextTokens(np.delete(np.arange(last[-1] + 1), last[is_unfinished]), np.array(tokens, dtype=np.int64))


def _log_probs(lm: SplitLM, hidden: Tensor, wanted: Sequence[NextTokens]) -> list[NDArray[np.float32]]:
    """Log-probabilities (W,) of each element of `wanted`, from `hidden` (C, D).

    Computed in blocks: a table of all rows and the whole vocabulary would be too large to make or to copy.
    """
    rows, tokens = map(np.concatenate, zip(*wanted, strict=True))
    order = np.argsort(rows, kind="stable")
    sorted_rows = torch.from_numpy(rows[order]).to(lm.device)
    sorted_tokens = torch.from_numpy(tokens[order]).to(lm.device)
    stops = np.cumsum(np.bincount(rows, minlength=len(hidden)))
    found, start = torch.empty(len(tokens), dtype=torch.float32, device=lm.device), 0
    for first, logits in _head_in_blocks(lm, hidden):
        stop = int(stops[first + len(logits) - 1])
        found[start:stop] = logits.log_softmax(dim=-1)[sorted_rows[start:stop] - first, sorted_tokens[start:stop]]
        start = stop
    log_probs = np.empty(len(tokens), dtype=np.float32)
    log_probs[order] = found.numpy(force=True)
    return np.split(log_probs, np.cumsum([len(part.rows) for part in wanted])[:-1])


def _head_in_blocks(lm: SplitLM, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The first row and the float32 logits (R, V) of each block of `hidden` (C, D)."""
    size, first = max(1, _MAX_LOGITS // lm.vocab_size), 0
    for part in hidden.split(size):
        logits = lm.head(part)
        small = max(1, _MAX_SOFTMAX_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
        for block in logits.split(small):
            yield first, block.float()
            first += len(block)
