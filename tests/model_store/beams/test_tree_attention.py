"""Tree attention gives the same titles and scores as a search with one cache row for each beam."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import DynamicCache

from model_store.beams.search import Search, beam_search
from model_store.beams.tree_attention import Branch, TokenTree
from model_store.beams.trie import ScoredTitle, Trie
from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from model_store.memory.combine import combine
from tests.conftest import ARCHITECTURES, make_model
from tests.model_store.plain_beams import plain_beam_search

END = 3
Sequences = Sequence[tuple[int, ...]]
# A title without words, forced tokens, prefixes of others, and the same title twice.
MIXED = [(*(10 + int(digit) for digit in word), END) for word in ("0", "01", "0123", "01", "2", "23453", "2346", "9")]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20], [30, 31, 32, 33]]
LLAMA = SplitLM(make_model("llama"), 2)


def both_ways(
    lm: SplitLM,
    titles: Sequences,
    prompts: Sequence[list[int]],
    *,
    num_beams: int,
    num_titles: Sequence[int],
    num_memories: Sequence[int] | None = None,
    placement: str = "insert",
    allowed: NDArray[np.bool_] | None = None,
) -> list[list[list[ScoredTitle]]]:
    """The results with tree attention, then those of the plain search."""
    trie, (tokens, mask) = Trie(titles), pad(prompts)
    counts = num_memories or [0] * len(prompts)
    memory = torch.randn(len(prompts), max(counts), lm.hidden_size, generator=torch.Generator().manual_seed(0))
    memory_mask = (torch.arange(max(counts)) < torch.tensor(counts)[:, None]).long()
    found = []
    for way in (beam_search, plain_beam_search):
        caches = lm.new_caches()
        searches = [Search(trie.allow(allowed), wanted, num_beams) for wanted in num_titles]
        with torch.inference_mode():
            states = lm.bottom(tokens, mask, caches[0])
            combined = combine(states, mask, memory, memory_mask, placement)
            found.append(way(lm, mask, caches, combined, trie=trie, searches=searches))
    return found


def check_same(columns: list[list[ScoredTitle]], rows: list[list[ScoredTitle]]) -> None:
    for query, (fast, plain) in enumerate(zip(columns, rows, strict=True)):
        assert [title.node for title in fast] == [title.node for title in plain], f"other titles for query {query}"
        scores = [title.score for title in plain]
        assert [title.score for title in fast] == pytest.approx(scores, abs=1e-4), f"other scores for query {query}"


@pytest.mark.parametrize("placement", ["insert", "prepend"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_the_same_as_the_plain_search(architecture: str, placement: str) -> None:
    """No token sees more than the eight tokens of a sliding window, where the architecture has one."""
    lm = SplitLM(make_model(architecture), 2)
    titles, short = [title[-3:] for title in MIXED], [[5, 6], [20], [30, 31]]
    found = both_ways(lm, titles, short, num_beams=4, num_titles=[8, 3, 8], num_memories=[1, 0, 1], placement=placement)
    check_same(*found)


@pytest.mark.parametrize("num_beams", [1, 2, 3, 50])
@pytest.mark.parametrize("num_titles", [1, 3, 50])
@pytest.mark.parametrize("num_memories", [None, [2, 0, 1]])
def test_any_number_of_beams_gives_the_same(num_beams: int, num_titles: int, num_memories: list[int] | None) -> None:
    check_same(
        *both_ways(LLAMA, MIXED, PROMPTS, num_beams=num_beams, num_titles=[num_titles] * 3, num_memories=num_memories)
    )


def test_a_query_that_ends_early_does_not_affect_the_others() -> None:
    """The first query wants one title and ends early; the last one continues to the end of the longest title."""
    titles = [(10, END), (11, 12, 13, 14, END), (11, 12, 13, 15, END), (11, 12, 16, 17, 18, END), (11, 12, 16, 17, END)]
    for num_titles in ([1, 5, 5], [5, 1, 5], [5, 5, 1], [1, 1, 5]):
        check_same(*both_ways(LLAMA, titles, PROMPTS, num_beams=5, num_titles=num_titles))


def test_only_allowed_titles_are_found_as_in_the_plain_search() -> None:
    columns, rows = both_ways(
        LLAMA, MIXED, PROMPTS, num_beams=4, num_titles=[4] * 3, allowed=np.arange(len(MIXED)) % 3 == 0
    )
    check_same(columns, rows)
    assert all(columns), "a query has no titles, so the test shows nothing"
    assert both_ways(LLAMA, MIXED, PROMPTS[:1], num_beams=4, num_titles=[4], allowed=np.zeros(len(MIXED), bool)) == [
        [[]],
        [[]],
    ]


digits = st.lists(st.integers(10, 13), max_size=5).map(lambda title: (*title, END))
prompts = st.lists(st.lists(st.integers(20, 60), min_size=1, max_size=9), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.lists(digits, min_size=1, max_size=25), prompts, st.integers(1, 8))
def test_random_catalogues_give_the_same_as_the_plain_search(
    data: st.DataObject, titles: list[tuple[int, ...]], asked: list[list[int]], num_beams: int
) -> None:
    each = st.lists(st.integers(1, 9), min_size=len(asked), max_size=len(asked))
    num_titles, num_memories = data.draw(each), [count // 3 for count in data.draw(each)]
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(titles), max_size=len(titles))))
    placement = data.draw(st.sampled_from(["insert", "prepend"]))
    found = both_ways(
        LLAMA,
        titles,
        asked,
        num_beams=num_beams,
        num_titles=num_titles,
        num_memories=num_memories,
        placement=placement,
        allowed=allowed,
    )
    check_same(*found)


@torch.inference_mode()
def test_a_token_sees_its_ancestors_and_no_other_token() -> None:
    """Its state equals the state at the end of the sequence of its ancestors and itself."""
    tokens, mask = pad(PROMPTS[:2])
    caches = LLAMA.new_caches()
    LLAMA.top_hidden(LLAMA.bottom(tokens, mask, caches[0]), mask, caches[1])
    tree = TokenTree(LLAMA, caches, (mask, mask))
    tree.read([Branch(0, 0, 0, [40, 41]), Branch(1, 1, 0, [50]), Branch(0, 0, 0, [42])])
    last = tree.read([Branch(0, 3, 1, [43, 44]), Branch(0, 1, 2, [45]), Branch(1, 2, 1, [46])])
    whole = [[*PROMPTS[0], 42, 43], [*PROMPTS[0], 42, 43, 44], [*PROMPTS[0], 40, 41, 45], [*PROMPTS[1], 50, 46]]
    for state, sequence in zip(last, whole, strict=True):
        alone = torch.tensor([sequence])
        ones = torch.ones_like(alone)
        expected = LLAMA.top_hidden(LLAMA.bottom(alone, ones), ones)[0, -1]
        assert torch.allclose(state, expected, atol=1e-4), f"{sequence} has another state"


@torch.inference_mode()
def test_a_finished_query_is_removed_from_the_caches() -> None:
    tokens, mask = pad(PROMPTS)
    caches = LLAMA.new_caches()
    LLAMA.top_hidden(LLAMA.bottom(tokens, mask, caches[0]), mask, caches[1])
    tree = TokenTree(LLAMA, caches, (mask, mask))
    tree.read([Branch(0, 0, 0, [40]), Branch(2, 2, 0, [41])])
    assert [rows_and_columns(cache) for cache in caches] == [(2, tokens.shape[1] + 1)] * 2
    assert tree.read([Branch(2, 1, 1, [42, 43])]).shape == (2, 32)
    held = [rows_and_columns(cache) for cache in caches]
    assert held == [(1, tokens.shape[1] + 1 + 2)] * 2, "a finished query is still computed"


def rows_and_columns(cache: DynamicCache) -> tuple[int, int]:
    layer: Any = cache.layers[0]
    return layer.keys.shape[0], layer.keys.shape[2]
