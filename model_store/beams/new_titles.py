"""Scores of titles that came after training.

The model has learned the titles of training by heart. Any token that leaves them is unlikely, and the further tokens of
a new title are unlikely whatever the reader likes: as a sum of its tokens' log-probabilities a new title would be the
less likely the longer it is. The model does know what it expects up to the node where the new title leaves the titles
of training, such as "Uncle Bramble ". So the titles below this node that may be shown, new ones and others, share the
probability of the node, and a new title gets an equal share:

    p(new title) = p(node) / number of allowed titles below the node

Its length and its wording do not count. Titles of training are scored as without new ones.

A reader who has had the neighbours of a new title, such as the other volumes, is a case of its own: the model has
learned that nobody comes back to them, so the node is unlikely, and after the last volume it is over. What the reader
was offered before, and what readers of another volume were offered, tells more. So the model is asked twice again:

    without   the newest neighbour in the window: something before it led there, as in the bookshop, where a series goes
              on after a cue
    as if     the reader had had one of the neighbours only: the one before the newest, or, where there is none, the one
              of training in the catalogue row before the newest

In these answers, titles of training that may still be shown keep their probability, and new titles share the rest of
the node: what the model gives to neighbours that the reader has had. A new title gets the highest of all scores. Each
question is one more prompt in the batch, for at most `MOST_ASKED_AGAIN` nodes a query. A node with more than
`MOST_NEIGHBOURS` titles below says nothing of neighbours.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.beams.trie import AllowedItems, Children, Node, ScoredTitle, Trie

MOST_ASKED_AGAIN, MOST_NEIGHBOURS = 2, 100
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


Title = Sequence[int]  # its tokens


class AskAgain(NamedTuple):
    """After this `window` of titles, oldest first, what would new titles below `node` get?"""

    window: list[Title]
    node: Node


def asked_again(trie: Trie, allowed: AllowedItems, window: Sequence[Title]) -> list[AskAgain]:
    """For a `window` of titles, oldest first: two questions about each of the nodes with the fewest titles below."""
    if trie.is_new is None:
        return []
    places: dict[Node, list[int]] = {}
    for place, tokens in enumerate(window):
        node = branch_of(trie, allowed, tokens)
        if node is not None and node.stop - node.start <= MOST_NEIGHBOURS:
            places.setdefault(node, []).append(place)
    smallest = sorted(places, key=lambda node: (node.stop - node.start, -places[node][-1]))
    found = []
    for node in smallest[:MOST_ASKED_AGAIN]:
        newest = places[node][-1]
        found.append(AskAgain([*window[:newest], *window[newest + 1 :]], node))
        found.append(AskAgain(_as_if(trie, node, window, places[node]), node))
    return found


def _as_if(trie: Trie, node: Node, window: Sequence[Title], places: Sequence[int]) -> list[Title]:
    """The window with one neighbour, at the place of the newest, instead of those at `places`."""
    had = [window[place] for place in places]
    other = had[-2] if len(had) > 1 else _beside(trie, node, had[-1])
    kept = {places[-1]: other} if other is not None else {}
    return [kept.get(place, title) for place, title in enumerate(window) if place in kept or place not in places]


def _beside(trie: Trie, node: Node, title: Title) -> Title | None:
    """Of the titles of training below `node`, the one in the catalogue row before this title, or else after it."""
    assert trie.is_new is not None
    rows = trie.order[node.start : node.stop]
    trained = sorted(rows[~trie.is_new[rows]].tolist())
    titles = [trie.paths.sequence(int(trie.paths.places[row])) for row in trained]
    place = titles.index(tuple(title)) if tuple(title) in titles else len(titles)
    others = [*titles[:place][::-1], *titles[place:]]
    return next((other for other in others if other != tuple(title)), None)


def shares_of_rest(trie: Trie, found: Sequence[ScoredTitle], num_below: int) -> list[ScoredTitle]:
    """Of the titles below a node, the new ones with equal shares of what the others leave of its probability.

    `num_below`: the number of titles among which `found` shared the probability of the node.
    """
    assert trie.is_new is not None
    new = [title for title in found if trie.is_new[trie.order[title.node.start]]]
    if not new:
        return []
    of_node = num_below * math.exp(max(title.score for title in new))
    rest = of_node - sum(math.exp(title.score) for title in found if title not in new)
    return [ScoredTitle(title.node, math.log(rest / len(new))) for title in new] if rest > 0 else []


def branch_of(trie: Trie, allowed: AllowedItems, tokens: Title) -> Node | None:
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
