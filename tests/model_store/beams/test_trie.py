"""A walk over the trie gives exactly the allowed titles of the catalogue."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.beams import paths as paths_module
from model_store.beams import trie as module
from model_store.beams.paths import Paths
from model_store.beams.trie import AllowedItems, Children, Node, Trie, TrieEdge

END = 0
titles = st.lists(st.integers(1, 3), max_size=5).map(lambda tokens: (*tokens, END))
single = st.tuples(st.integers(1, 9))  # item tokens: one each, no terminator
catalogues = st.one_of(st.lists(titles, max_size=25), st.lists(single, max_size=25))


def edges_of(trie: Trie, node: Node, allowed: AllowedItems | None = None) -> list[TrieEdge]:
    children = trie.children(node)
    return [trie.edge(children, int(place), node.depth) for place in (allowed or trie.allow()).among(children)]


def leaves(trie: Trie, allowed: AllowedItems) -> Iterator[tuple[tuple[int, ...], Node]]:
    """Every generable token sequence with its leaf."""
    stack: list[tuple[tuple[int, ...], Node]] = [((), trie.root)]
    while stack:
        tokens, node = stack.pop()
        for edge in edges_of(trie, node, allowed):
            path = (*tokens, *edge.tokens)
            assert edge.child.depth == len(path), "a node's depth is not the number of tokens before it"
            if edge.is_leaf:
                assert edges_of(trie, edge.child) == [], "a leaf has children"
                yield path, edge.child
            else:
                stack.append((path, edge.child))


@given(catalogues, st.data())
def test_a_walk_yields_exactly_the_allowed_rows(sequences: list[tuple[int, ...]], data: st.DataObject) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(sequences), max_size=len(sequences)))
    trie = Trie(sequences)
    allowed = trie.allow(np.array(flags, dtype=bool))
    walked = {path: set(allowed.rows(leaf).tolist()) for path, leaf in leaves(trie, allowed)}
    expected: dict[tuple[int, ...], set[int]] = {}
    for row in np.flatnonzero(flags).tolist():
        expected.setdefault(sequences[row], set()).add(row)
    assert walked == expected, "the walk and the allowed rows differ, or equal titles do not share a leaf"


@given(catalogues)
def test_no_title_is_a_prefix_of_another(sequences: list[tuple[int, ...]]) -> None:
    trie = Trie(sequences)
    paths = sorted(path for path, _ in leaves(trie, trie.allow()))
    assert len(paths) == len(set(paths)), "one title has two leaves"
    for first, second in pairwise(paths):
        assert second[: len(first)] != first, f"{first} is a prefix of {second}"


@given(catalogues)
def test_forced_tokens_are_taken_in_one_step(sequences: list[tuple[int, ...]]) -> None:
    trie = Trie(sequences)
    stack = [trie.root]
    while stack:
        edges = edges_of(trie, stack.pop())
        assert len({edge.tokens[0] for edge in edges}) == len(edges), "two edges of a node start with the same token"
        for edge in edges:
            num_children = len(edges_of(trie, edge.child))
            assert num_children == 0 if edge.is_leaf else num_children > 1, "a forced token was left for the next step"
            stack.append(edge.child)


def nested(sequences: list[tuple[int, ...]]) -> dict[int, object]:
    """The trie as nested dictionaries, token → subtree."""
    root: dict[int, object] = {}
    for sequence in sequences:
        node = root
        for token in sequence:
            child = node.setdefault(token, {})
            assert isinstance(child, dict)
            node = child
    return root


@given(catalogues)
def test_the_trie_equals_one_of_nested_dictionaries(sequences: list[tuple[int, ...]]) -> None:
    trie = Trie(sequences)
    stack: list[tuple[Node, object]] = [(trie.root, nested(sequences))]
    while stack:
        node, plain = stack.pop()
        assert isinstance(plain, dict)
        edges = edges_of(trie, node)
        assert {edge.tokens[0] for edge in edges} == set(plain), "a node has other children"
        for edge in edges:
            inner: object = plain
            for token in edge.tokens:
                assert isinstance(inner, dict) and token in inner, "a forced token is not the only child"
                inner = inner[token]
            stack.append((edge.child, inner))


@settings(deadline=None)
@given(catalogues.filter(bool), st.data())
def test_a_trie_of_changed_titles_equals_one_from_scratch(
    sequences: list[tuple[int, ...]], data: st.DataObject
) -> None:
    """After any changes, each of which is spliced into the blocks of the paths before it."""
    current = list(sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths_module, "_SORT_SHARE", 0)
        patch.setattr(paths_module, "_BLOCK", 2)
        paths = Paths.of(current)
        for row in data.draw(st.lists(st.integers(0, 30), max_size=6)):
            row, tokens = min(row, len(current)), data.draw(titles)
            current[row:] = [tokens, *current[row + 1 :]]
            paths = paths.replaced(np.array([row]), [tokens])
    changed, built = Trie(paths), Trie(current)
    stack = [(changed.root, built.root)]
    while stack:
        nodes = stack.pop()
        assert nodes[0] == nodes[1], "a node is elsewhere"
        found, expected = (trie.children(node) for trie, node in zip((changed, built), nodes, strict=True))
        assert [part.tolist() for part in found] == [part.tolist() for part in expected], f"children of {nodes[0]}"
        edges = edges_of(changed, nodes[0]), edges_of(built, nodes[1])
        assert edges[0] == edges[1], f"edges of {nodes[0]}"
        stack += [(first.child, second.child) for first, second in zip(*edges, strict=True)]
    for row, tokens in enumerate(current):
        leaf = changed.leaf_of(row)
        assert leaf == built.leaf_of(row) and row in changed.order[leaf.start : leaf.stop] and leaf.depth == len(tokens)


masks = st.lists(st.lists(st.booleans(), min_size=25, max_size=25), min_size=1, max_size=8)


@pytest.mark.parametrize("few", [0, 3, 25], ids=["all counted", "some", "none counted"])
@settings(deadline=None)
@given(sequences=catalogues, flags=masks)
def test_counting_and_correcting_another_count_agree(
    few: int, sequences: list[tuple[int, ...]], flags: list[list[bool]]
) -> None:
    """For any masks before, whose counts are kept."""
    trie = Trie(sequences)
    nodes = [trie.root]
    for node in nodes:
        nodes += [edge.child for edge in edges_of(trie, node)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW_ROWS", few)
        for wanted in ([True] * 25, *flags):
            mask = np.array(wanted[: len(sequences)], dtype=bool)
            allowed = trie.allow(mask)
            for node in nodes:
                children = trie.children(node)
                pairs = zip(children.starts.tolist(), children.stops.tolist(), strict=True)
                ranges = [trie.order[start:stop] for start, stop in pairs]
                expected = [place for place, rows in enumerate(ranges) if mask[rows].any()]
                assert allowed.among(children).tolist() == expected, f"{mask} below {node}"
                below = trie.order[node.start : node.stop]
                assert allowed.rows(node).tolist() == below[mask[below]].tolist()


@pytest.mark.parametrize("few", [0, 3], ids=["counted", "corrected"])
@settings(deadline=None)
@given(data=st.data(), sequences=catalogues)
def test_children_of_several_nodes_are_allowed_as_those_of_each_node(
    few: int, data: st.DataObject, sequences: list[tuple[int, ...]]
) -> None:
    """Also if items between the nodes are allowed."""
    trie = Trie(sequences)
    above = [edge.child for edge in edges_of(trie, trie.root) if not edge.is_leaf]
    nodes = [node for node in above if data.draw(st.booleans())] or [trie.root]
    size = len(sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW_ROWS", few)
        allowed = trie.allow(np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))))
    parts = [trie.children(node) for node in nodes]
    joined = Children.joined(parts)
    found = allowed.among(joined)
    expected = np.concatenate([part.starts[allowed.among(part)] for part in parts])
    assert joined.starts[found].tolist() == expected.tolist(), f"below {nodes}"


def test_edges_are_cached_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit the cache would grow with every edge that was ever used."""
    monkeypatch.setattr(module, "_MAX_EDGES", 2)
    trie = Trie([(10, 11, 3), (12, 13, 3), (14, 15, 3)])
    children = trie.children(trie.root)
    first = trie.edge(children, 0, 0)
    assert trie.edge(children, 0, 0) is first
    for place in (1, 2):
        trie.edge(children, place, 0)
    assert trie.edge(children, 0, 0) is not first, "more edges are cached than allowed"


@given(catalogues)
def test_without_a_mask_all_items_are_allowed_after_any_other_mask(sequences: list[tuple[int, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW_ROWS", 0)
        trie = Trie(sequences)
        for number in range(6):
            trie.allow(np.arange(len(sequences)) % 7 == number)
    assert sorted(trie.allow().rows(trie.root).tolist()) == list(range(len(sequences)))


def test_a_title_that_is_the_beginning_of_another_is_found() -> None:
    trie = Trie([(1, END), (1, 2, END), (1, 2, 3, END)])
    assert {path for path, _ in leaves(trie, trie.allow())} == {(1, END), (1, 2, END), (1, 2, 3, END)}
    (edge,) = edges_of(trie, trie.root)
    assert edge.tokens == (1,) and not edge.is_leaf, "the shared beginning is not one edge"


def test_an_empty_catalogue_has_no_edges() -> None:
    trie = Trie([])
    assert edges_of(trie, trie.root) == []


def test_a_branch_without_allowed_items_is_not_followed() -> None:
    trie = Trie([(1, END), (2, END)])
    allowed = trie.allow(np.array([False, True]))
    assert [edge.tokens for edge in edges_of(trie, trie.root, allowed)] == [(2, END)]
    assert allowed.rows(trie.root).tolist() == [1]
