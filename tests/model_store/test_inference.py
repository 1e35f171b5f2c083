"""From prompts to ranked lists: complete, allowed, without repeats, and the same alone as in a batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_store.bundle import Bundle
from model_store.catalogue import Item
from model_store.inference import (
    GENERATED,
    GROUNDED,
    POPULAR,
    Answer,
    Query,
    embed,
    encode,
    pad_memory,
    popular,
    recommend,
    to_float16,
)
from model_store.manifest import GenerationSpec, RetrieverSpec
from tests.conftest import TITLES

EVERYTHING = np.ones(len(TITLES), dtype=bool)


def query(bundle: Bundle, titles: list[str], num_memories: int = 0, num_results: int = 5) -> Query:
    memory = encode(bundle.lm, [bundle.prompt.tokens([TITLES[row]]) for row in range(num_memories)] or [[1]])
    return Query(bundle.prompt.tokens(titles), memory[:num_memories], EVERYTHING, num_results)


def rows(answer: Answer) -> list[int]:
    return [item.row for item in answer.items]


def check_same(batched: Answer, alone: Answer) -> None:
    assert rows(batched) == rows(alone), "a batch changes a list"
    assert [item.source for item in batched.items] == [item.source for item in alone.items]
    assert batched.chosen == alone.chosen, "a batch changes the choice of memories"
    assert np.allclose(batched.weights, alone.weights, atol=1e-5), "a batch changes the retriever's weights"
    assert batched.null_weight == pytest.approx(alone.null_weight, abs=1e-5)
    for one, other in zip(batched.items, alone.items, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3) and one.distance == pytest.approx(
            other.distance, abs=1e-3
        )


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt_neox"])
@pytest.mark.parametrize("placement", ["insert", "prepend"])
def test_a_batch_gives_what_its_rows_give(
    make_bundle: Callable[..., Path], architecture: str, placement: Literal["insert", "prepend"]
) -> None:
    spec = RetrieverSpec(width=16, top_k=2, combine=placement, has_null=placement == "insert")
    bundle = Bundle.open(make_bundle(architecture=architecture, retriever=spec))
    queries = [
        query(bundle, TITLES[:3], 6),
        query(bundle, [], 0, num_results=12),
        query(bundle, ["A long title of its own", TITLES[4]], 1, num_results=1),
        replace(query(bundle, TITLES[5:7], 4), chosen=(0, 3)),
        replace(query(bundle, TITLES[5:7], 4), chosen=()),
    ]
    together = recommend(bundle, queries)
    for one, batched in zip(queries, together, strict=True):
        check_same(batched, recommend(bundle, [one])[0])
    assert together[3].chosen == (0, 3) and together[4].chosen == (), "the caller's choice of memories is ignored"
    assert [len(answer.weights) for answer in together] == [6, 0, 1, 4, 4]


def test_memory_matters_and_its_choice_does(bundle: Bundle) -> None:
    base = query(bundle, TITLES[:3], 6)
    scores = [
        recommend(bundle, [replace(base, chosen=chosen)])[0].items[0].score for chosen in ((), (0,), (5,), (0, 5))
    ]
    assert len(set(scores)) == 4, "some choices of memories do not reach the model"


def test_weights_are_probabilities(bundle: Bundle) -> None:
    answer = recommend(bundle, [query(bundle, TITLES[:3], 6)])[0]
    assert answer.null_weight + answer.weights.sum() == pytest.approx(1, abs=1e-5)
    assert len(answer.chosen) <= 2 and list(answer.chosen) == sorted(answer.chosen)
    assert all(answer.weights[index] > answer.null_weight for index in answer.chosen)
    empty = recommend(bundle, [query(bundle, TITLES[:3])])[0]
    assert empty.null_weight == pytest.approx(1) and empty.chosen == ()


@pytest.fixture(scope="module")
def shared(bundle_path: Path) -> Bundle:
    """For tests with many examples: they only read."""
    return Bundle.open(bundle_path)


@given(st.integers(1, 30), st.sets(st.integers(0, 19)))
def test_lists_are_as_long_as_allowed_items_permit(shared: Bundle, num_results: int, excluded: set[int]) -> None:
    allowed = ~np.isin(np.arange(20), list(excluded))
    answer = recommend(shared, [replace(query(shared, TITLES[:2]), allowed=allowed, num_results=num_results)])[0]
    assert len(answer.items) == min(num_results, int(allowed.sum())), "a list is too short or too long"
    assert len(set(rows(answer))) == len(answer.items), "an item is recommended twice"
    assert not set(rows(answer)) & excluded, "an excluded item is recommended"


def test_generated_come_before_grounded_before_popular(bundle: Bundle) -> None:
    sources = [item.source for item in recommend(bundle, [query(bundle, TITLES[:3], 3, num_results=20)])[0].items]
    order = [GENERATED, GROUNDED, POPULAR]
    assert sources == sorted(sources, key=order.index)
    assert sources.count(GENERATED) == 5, "not as many titles as beams"
    answer = recommend(bundle, [query(bundle, TITLES[:3], 3, num_results=20)])[0]
    scores = [item.score for item in answer.items if item.score is not None]
    distances = [item.distance for item in answer.items if item.source == GROUNDED and item.distance is not None]
    assert scores == sorted(scores, reverse=True) and distances == sorted(distances)


def test_grounded_items_are_the_nearest_to_the_best(bundle: Bundle) -> None:
    items = recommend(bundle, [query(bundle, TITLES[:3], num_results=12)])[0].items
    vectors = bundle.index.vectors(np.arange(20))
    distances = np.linalg.norm(vectors - vectors[items[0].row], axis=1)
    taken = {item.row for item in items if item.source == GENERATED}
    expected = [row for row in np.argsort(distances).tolist() if row not in taken][:7]
    assert [item.row for item in items if item.source == GROUNDED] == expected


def test_items_added_to_an_open_bundle_are_recommended(bundle: Bundle) -> None:
    items = [Item(f"new{row}", f"Blue Moon {row}", popularity=row) for row in range(30)]
    bundle.catalogue = bundle.catalogue.with_items(items)
    bundle.index.put(np.arange(20, 50), bundle.index.vectors(np.zeros(30, dtype=np.int64)))
    allowed = np.ones(50, dtype=bool)
    answer = recommend(bundle, [replace(query(bundle, []), allowed=allowed, num_results=50)])[0]
    assert sorted(rows(answer)) == list(range(50))


def test_nothing_allowed_gives_an_empty_list(bundle: Bundle) -> None:
    assert recommend(bundle, [replace(query(bundle, TITLES[:3]), allowed=~EVERYTHING)])[0].items == []


def test_the_most_popular_allowed_item_stands_for_its_title(make_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(
        make_bundle(titles=["Red Tea", "Blue Moon", "Red Tea", "Red Tea"], generation=GenerationSpec())
    )
    counts = {"i0": 1, "i2": 9, "i3": 9}
    items = [replace(item, popularity=counts.get(item.item_id, 5)) for item in bundle.catalogue.items]
    bundle.catalogue = type(bundle.catalogue)(items, bundle.prompt)
    for allowed, expected in (([1, 1, 1, 1], 2), ([1, 1, 0, 1], 3), ([1, 1, 0, 0], 0)):
        mask = np.array(allowed, dtype=bool)
        answer = recommend(bundle, [Query(bundle.prompt.tokens([]), np.zeros((0, 32), np.float16), mask, 2)])[0]
        generated = {item.row for item in answer.items if item.source == GENERATED}
        assert generated == {expected, 1}, f"with {allowed=} another item than {expected} stands for the title"


def test_popular_orders_by_count(bundle: Bundle) -> None:
    allowed = np.arange(20) >= 4
    assert [item.row for item in popular(bundle, allowed, 3)] == [4, 5, 6]


def test_states_are_stored_as_they_are_computed(bundle: Bundle) -> None:
    prompts = [bundle.prompt.tokens(TITLES[:size]) for size in (1, 3)]
    states = encode(bundle.lm, prompts)
    assert states.dtype == np.float16 and states.shape == (2, 32)
    for state, prompt in zip(states, prompts, strict=True):
        assert np.allclose(state, encode(bundle.lm, [prompt])[0], atol=2e-3, rtol=2e-3), "padding changes a state"
        decoded, _ = bundle.codec.decode(bundle.codec.encode(state, b"12345678"))
        assert decoded.tolist() == state.tolist(), "storing a state rounds it again"
    padded, _ = pad_memory([states], bundle)
    assert padded[0].half().numpy().tolist() == states.tolist(), "reading a stored state rounds it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_float16_cannot_hold_is_clipped(dtype: torch.dtype) -> None:
    states = to_float16(torch.tensor([[1e30, -1e30, 1.0]], dtype=dtype))
    assert states.tolist() == [[65504.0, -65504.0, 1.0]]


def test_memory_is_padded_on_the_right(bundle: Bundle) -> None:
    one, none = np.ones((1, 32), dtype=np.float16), np.zeros((0, 32), dtype=np.float16)
    memory, mask = pad_memory([none, one], bundle)
    assert memory.shape == (2, 1, 32) and mask.tolist() == [[0], [1]]
    assert pad_memory([none], bundle)[0].shape == (1, 1, 32), "a batch without memory has no shape"


def test_titles_embed_alike_alone_and_together(bundle: Bundle) -> None:
    prompts = [bundle.prompt.tokens([title]) for title in TITLES[:5]]
    together = embed(bundle.lm, prompts)
    assert together.dtype == np.float32
    for vector, prompt in zip(together, prompts, strict=True):
        assert np.allclose(vector, embed(bundle.lm, [prompt])[0], atol=1e-4), "padding changes a title's vector"


def test_popular_items_fill_what_grounding_cannot(bundle: Bundle) -> None:
    """A thousand and more nearer items, all excluded, hide the allowed ones from the index."""
    crowd = [Item(f"new{row}", f"Blue Moon {row}") for row in range(1200)]
    bundle.catalogue = bundle.catalogue.with_items(crowd)
    vectors = bundle.index.vectors(np.zeros(1200, dtype=np.int64))
    bundle.index.put(np.arange(20, 1220), vectors)
    allowed = np.arange(1220) < 20
    answer = recommend(bundle, [replace(query(bundle, []), allowed=allowed, num_results=20)])[0]
    assert sorted(rows(answer)) == list(range(20))
    assert POPULAR in {item.source for item in answer.items}
