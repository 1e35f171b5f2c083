"""Scores of titles that came after training.

The model has learned the titles of training by heart. Any token that leaves them is unlikely, and the further tokens of
a new title are unlikely whatever the reader likes: as a sum of its tokens' log-probabilities a new title would be the
less likely the longer it is. The model does know what it expects up to the node where the new title leaves the titles
of training, such as "Uncle Bramble ". So the titles below this node that may be shown, new ones and others, share the
probability of the node, and a new title gets an equal share:

    p(new title) = p(node) / number of allowed titles below the node

Its length and its wording do not count. Titles of training are scored as without new ones.

A reader who has had the neighbours of a new title, such as the other volumes, is a case of its own: the model has
learned that nobody comes back to them, so the node is unlikely. What the reader would have been offered tells more: the
newest of these neighbours is taken out of the window, the model is asked again, and the new title takes its place. It
gets the higher of both scores. Such a question is one more prompt in the batch, at most `MOST_ASKED_AGAIN` a query.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.beams.trie import AllowedItems, Children, Node, Trie

MOST_ASKED_AGAIN = 2
_MOST_LISTED = 4096  # rows that are looked through at once


def new_children(trie: Trie, children: Children, places: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """`places` of children with titles of training below, and those without."""
    is_new = trie.without_trained(children, places)
    return places[~is_new], places[is_new]


def share_below(trie: Trie, allowed: AllowedItems, node: Node, score: float) -> float:
    """The score of each new title that leaves the titles of training at `node`, whose own score is `score`."""
    return score - math.log(max(allowed.count(node), 1))


def leaves_below(trie: Trie, allowed: AllowedItems, node: Node, most: int) -> list[Node]:
    """Allowed new titles that leave the titles of training at `node`: the newest, at most `most`."""
    children = trie.children(node)
    places = new_children(trie, children, allowed.among(children))[1]
    starts, stops = children.starts[places], children.stops[places]
    if int((stops - starts).sum()) <= _MOST_LISTED:
        spans = [trie.order[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        rows = np.concatenate([np.empty(0, dtype=np.int32), *spans])
        rows = np.sort(rows[allowed.has(rows)])[::-1]
    else:
        rows = _newest(trie, allowed, starts, stops, most)
    return list(dict.fromkeys(trie.leaf_of(row) for row in rows[: 4 * most].tolist()))[:most]


class AskAgain(NamedTuple):
    """Without the title number `place` of the window, what would new titles below `node` get?"""

    place: int
    node: Node


def asked_again(trie: Trie, allowed: AllowedItems, window: Sequence[Sequence[int]]) -> list[AskAgain]:
    """For a `window` of titles as tokens, oldest first: the nodes with the fewest titles below, each asked once."""
    if trie.is_new is None:
        return []
    found: dict[Node, AskAgain] = {}
    for place, tokens in enumerate(window):
        node = branch_of(trie, allowed, tokens)
        if node is not None:
            found[node] = AskAgain(place, node)
    return sorted(found.values(), key=lambda each: (each.node.stop - each.node.start, -each.place))[:MOST_ASKED_AGAIN]


def branch_of(trie: Trie, allowed: AllowedItems, tokens: Sequence[int]) -> Node | None:
    """The deepest node on the way of a title at which allowed new titles leave the titles of training.

    None if there is none but the root, where titles have nothing in common.
    """
    node, found = trie.root, None
    while True:
        children = trie.children(node)
        if node.depth and len(new_children(trie, children, allowed.among(children))[1]):
            found = node
        place = (
            int(children.tokens.searchsorted(tokens[node.depth])) if node.depth < len(tokens) else len(children.tokens)
        )
        if place == len(children.tokens) or children.tokens[place] != tokens[node.depth]:
            return found
        edge = trie.edge(children, place, node.depth)
        if edge.is_leaf or tuple(tokens[node.depth : edge.child.depth]) != edge.tokens:
            return found
        node = edge.child


def _newest(
    trie: Trie, allowed: AllowedItems, starts: NDArray[np.int64], stops: NDArray[np.int64], most: int
) -> NDArray[np.int64]:
    """As `leaves_below`, without listing all rows: looks through the newest first."""
    found: list[NDArray[np.int64]] = []
    last = len(trie.order)
    while last > 0 and sum(map(len, found)) < most:
        rows = np.arange(last - 1, max(last - _MOST_LISTED, 0) - 1, -1)
        places = trie.paths.places[rows]
        above = starts.searchsorted(places, side="right") - 1
        is_below = (above >= 0) & (places < stops[above])
        found.append(rows[is_below & allowed.has(rows)])
        last -= len(rows)
    return np.concatenate(found)
