"""Each window runs through the bottom half once, and answers do not depend on cache hits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.answers import Answer, Query
from model_store.bundle import Bundle
from model_store.catalogue.items import Item
from model_store.inference import encode, recommend
from model_store.lm.split_lm import SplitLM
from model_store.lm.window_cache import WindowCache, run_bottom
from tests.conftest import ARCHITECTURES, BOTH_VOCABULARIES, ITEMS_ONLY, TITLES, make_model

PROMPTS = [[5, 6, 7, 8, 9], [20], [30, 31, 32]]
LARGE = 2**30


def windows_of(bundle: Bundle, max_bytes: int = LARGE) -> WindowCache:
    return WindowCache(max_bytes, keeps_keys_values=bundle.manifest.vocabulary == "titles")


def count_reads(lm: SplitLM, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """A list that gets the shape of every batch that the bottom half reads."""
    shapes: list[torch.Size] = []
    bottom = lm.bottom

    def counted(tokens: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        shapes.append(tokens.shape)
        return bottom(tokens, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(lm, "bottom", counted)
    return shapes


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cached_output_equals_a_fresh_one(architecture: str) -> None:
    lm = SplitLM(make_model(architecture), 2)
    windows = WindowCache(LARGE, keeps_keys_values=True)
    windows.run_bottom(lm, [PROMPTS[2]])
    fresh = run_bottom(lm, PROMPTS)
    for _ in range(2):
        kept = windows.run_bottom(lm, PROMPTS)
        assert kept.mask.equal(fresh.mask)
        real = fresh.mask == 1
        assert torch.allclose(kept.states[real], fresh.states[real], atol=1e-5), "other states"
        assert len(kept.cache.layers) == len(fresh.cache.layers) == 2
        for mine, theirs in zip(kept.cache.layers, fresh.cache.layers, strict=True):
            for name in ("keys", "values"):
                one, other = getattr(mine, name), getattr(theirs, name)
                assert one.shape == other.shape
                assert torch.allclose(one.transpose(1, 2)[real], other.transpose(1, 2)[real], atol=1e-5), (
                    f"other {name}"
                )


def query(bundle: Bundle, titles: list[str], num_memories: int) -> Query:
    memory = encode(bundle.lm, [bundle.prompt.tokens([title]) for title in TITLES[:6]])[:num_memories]
    return Query(bundle.prompt.tokens(titles), memory, np.ones(len(TITLES), dtype=bool), 12)


def check_same(answer: Answer, expected: Answer) -> None:
    assert [item.row for item in answer.items] == [item.row for item in expected.items], "a cache hit changes the list"
    for one, other in zip(answer.items, expected.items, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4), "a cache hit changes a score"
    assert answer.chosen == expected.chosen and np.allclose(answer.weights, expected.weights, atol=1e-5)


@BOTH_VOCABULARIES
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_answers_do_not_depend_on_cache_hits(make_bundle: Callable[..., Path], architecture: str) -> None:
    bundle = Bundle.open(make_bundle(architecture=architecture))
    queries = [query(bundle, TITLES[:3], 3), query(bundle, [], 0), query(bundle, TITLES[5:6], 6)]
    expected = recommend(bundle, queries)
    windows = windows_of(bundle)
    encode(bundle.lm, [queries[2].prompt], windows)
    for batch in ([0, 1, 2], [2, 1], [0], [1, 1, 0], [2, 0, 1]):
        for answer, place in zip(recommend(bundle, [queries[place] for place in batch], windows), batch, strict=True):
            check_same(answer, expected[place])


@BOTH_VOCABULARIES
def test_a_request_after_an_event_runs_only_the_top_half(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    windows, request = windows_of(bundle), query(bundle, TITLES[:3], 2)
    state = encode(bundle.lm, [request.prompt], windows)
    shapes = count_reads(bundle.lm, monkeypatch)
    recommend(bundle, [request], windows)
    prompts_read = [shape for shape in shapes if shape == (1, len(request.prompt))]
    assert not prompts_read, "the window ran through the bottom half again"
    assert encode(bundle.lm, [request.prompt], windows).tobytes() == state.tobytes()
    assert (windows.num_hits, windows.num_misses) == (2, 1)


def test_missing_windows_run_together_and_equal_ones_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = SplitLM(make_model("llama"), 2)
    windows = WindowCache(LARGE, keeps_keys_values=False)
    shapes = count_reads(lm, monkeypatch)
    states = encode(lm, [[5, 6], [7], [5, 6], [8, 9]], windows)
    assert shapes == [(3, 2)] and states[0].tobytes() == states[2].tobytes()
    encode(lm, [[7], [1, 2, 3], [5, 6]], windows)
    assert shapes == [(3, 2), (1, 3)], "a cached window ran again"


def test_the_most_recently_used_windows_are_kept_within_the_limit() -> None:
    lm = SplitLM(make_model("llama"), 2)
    windows = WindowCache(LARGE, keeps_keys_values=True)
    encode(lm, [[1, 2, 3]], windows)
    one = windows.num_bytes
    assert one == 4 * 3 * (32 + 2 * 2 * 2 * 8), "not the states, keys and values of two layers for three columns"
    windows = WindowCache(2 * one, keeps_keys_values=True)
    for window in ([1, 2, 3], [4, 5, 6], [1, 2, 3], [7, 8, 9]):
        encode(lm, [window], windows)
        assert windows.num_bytes <= 2 * one, "more bytes than allowed"
    assert len(windows) == 2 and windows.num_misses == 3
    encode(lm, [[1, 2, 3], [7, 8, 9]], windows)
    assert windows.num_misses == 3, "the least recently used window was not the one dropped"
    encode(lm, [[9] * 20], windows)
    assert windows.num_bytes <= 2 * one, "a window larger than the limit was kept"


def test_a_limit_of_zero_keeps_nothing() -> None:
    lm = SplitLM(make_model("llama"), 2)
    windows = WindowCache(0, keeps_keys_values=True)
    assert encode(lm, PROMPTS, windows).tobytes() == encode(lm, PROMPTS).tobytes()
    assert len(windows) == windows.num_bytes == 0


def test_a_window_does_not_keep_its_batch_in_memory() -> None:
    lm = SplitLM(make_model("llama"), 2)
    windows = WindowCache(LARGE, keeps_keys_values=True)
    encode(lm, [[1], [2] * 100], windows)
    small = windows._windows[(1,)]
    held = [tensor.untyped_storage().nbytes() for tensor in (small.states, *small.keys_values)]
    assert sum(held) == small.num_bytes, "more memory is held than is counted"


@ITEMS_ONLY
def test_added_titles_do_not_invalidate_windows(bundle: Bundle) -> None:
    windows = windows_of(bundle)
    prompts = [bundle.prompt.tokens(TITLES[:3]), bundle.prompt.tokens([TITLES[0], "A brand new title"])]
    encode(bundle.lm, prompts, windows)
    bundle.catalogue = bundle.catalogue.with_items([Item("new", "A brand new title"), Item("newer", "Another one")])
    bundle.index.put(np.array([20, 21]), np.ones((2, 32), dtype=np.float32))
    for prompt in prompts:
        request = Query(prompt, np.zeros((0, 32), np.float16), np.ones(22, dtype=bool), 22)
        check_same(recommend(bundle, [request], windows)[0], recommend(bundle, [request])[0])
    assert windows.num_misses == 2, "no window was cached, so the test shows nothing"
