"""With enough beams the search is exact: teacher forcing through the whole model gives the same scores and order."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import transformers

from model_store.beams.search import Search, beam_search
from model_store.beams.trie import ScoredTitle, Trie
from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from model_store.memory.combine import TopInput, combine
from tests.conftest import make_model

END = 3
WORDS = ("0", "01", "012", "0123", "0132", "02", "1", "1231", "1232", "2", "22", "222")
TITLES = [
    (*(10 + int(digit) for digit in word), END) for word in WORDS
]  # some are prefixes of others, some have forced tokens
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21], [30, 31, 32, 33]]
WITHOUT_WINDOW = ("llama", "qwen2", "qwen3", "gemma", "phi3", "olmo2", "gpt_neox")  # no sliding attention


def search(
    lm: SplitLM,
    prompts: Sequence[list[int]],
    *,
    num_beams: int = 50,
    num_titles: int = 50,
    rows: list[int] | None = None,
) -> list[list[ScoredTitle]]:
    trie = Trie(TITLES)
    tokens, mask = pad(prompts)
    caches = lm.new_caches()
    flags = None if rows is None else np.isin(np.arange(len(TITLES)), rows)
    searches = [Search(trie.allow(flags), num_titles, num_beams) for _ in prompts]
    with torch.inference_mode():
        states = lm.bottom(tokens, mask, caches[0])
        return beam_search(lm, mask, caches, TopInput(states, mask), trie=trie, searches=searches)


def named(titles: list[ScoredTitle]) -> dict[tuple[int, ...], float]:
    order = Trie(TITLES).order
    return {TITLES[order[title.node.start]]: title.score for title in titles}


@torch.inference_mode()
def forced_score(model: transformers.PreTrainedModel, prompt: list[int], title: tuple[int, ...]) -> float:
    log_probs = model(input_ids=torch.tensor([[*prompt, *title]])).logits[0].log_softmax(dim=-1)
    return sum(float(log_probs[len(prompt) - 1 + place, token]) for place, token in enumerate(title))


@pytest.mark.parametrize("architecture", WITHOUT_WINDOW)
def test_scores_are_those_of_teacher_forcing(architecture: str) -> None:
    whole, lm = make_model(architecture), SplitLM(make_model(architecture), 2)
    for prompt, found in zip(PROMPTS, search(lm, PROMPTS), strict=True):
        expected = {title: forced_score(whole, prompt, title) for title in TITLES}
        assert named(found) == pytest.approx(expected, abs=1e-3), (
            f"{architecture}: the scores of the beams differ from those of the model"
        )
        best_first = sorted(TITLES, key=lambda title: -expected[title])
        assert list(named(found)) == best_first, f"{architecture}: not ordered by score"


@pytest.mark.parametrize("num_beams", [1, 3, 50])
def test_a_batch_gives_the_results_of_its_queries_alone(num_beams: int) -> None:
    lm = SplitLM(make_model("llama"), 2)
    together = search(lm, PROMPTS, num_beams=num_beams, num_titles=num_beams)
    for prompt, batched in zip(PROMPTS, together, strict=True):
        alone = search(lm, [prompt], num_beams=num_beams, num_titles=num_beams)[0]
        assert [title.node for title in batched] == [title.node for title in alone], "the batch changes an order"
        assert named(batched) == pytest.approx(named(alone), abs=1e-4), "the batch changes a score"


@pytest.mark.parametrize("num_titles", range(1, len(TITLES)))
def test_a_search_for_few_titles_finds_the_best_ones(num_titles: int) -> None:
    lm = SplitLM(make_model("llama"), 2)
    for few, everything in zip(search(lm, PROMPTS, num_titles=num_titles), search(lm, PROMPTS), strict=True):
        assert [title.node for title in few] == [title.node for title in everything[:num_titles]], (
            "a better title was lost"
        )


def test_asking_for_more_titles_than_exist_gives_all_titles() -> None:
    found = search(SplitLM(make_model("llama"), 2), PROMPTS[:1], num_titles=1000, num_beams=1000)[0]
    assert set(named(found)) == set(TITLES)


@pytest.mark.parametrize("num_beams", [1, 2, 50])
def test_items_that_are_not_allowed_are_never_generated(num_beams: int) -> None:
    allowed = [0, 3, 5]
    for found in search(SplitLM(make_model("llama"), 2), PROMPTS, rows=allowed, num_beams=num_beams):
        assert found and set(named(found)) <= {TITLES[row] for row in allowed}, "an excluded title was generated"


def test_without_allowed_items_there_are_no_titles() -> None:
    assert search(SplitLM(make_model("llama"), 2), PROMPTS, rows=[]) == [[], [], []]


@pytest.mark.parametrize("placement", ["prepend", "insert"])
@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt_neox"])
def test_memory_is_read_as_part_of_the_sequence(architecture: str, placement: str) -> None:
    """The second query has less memory than the first, so there is padding between its tokens."""
    lm = SplitLM(make_model(architecture), 2)
    memory = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(0))
    memory_mask = torch.tensor([[1, 1], [0, 1]])
    tokens, mask = pad(PROMPTS[:2])
    caches, trie = lm.new_caches(), Trie(TITLES)
    searches = [Search(trie.allow(), 50, 50) for _ in range(2)]
    with torch.inference_mode():
        combined = combine(lm.bottom(tokens, mask, caches[0]), mask, memory, memory_mask, placement)
        results = beam_search(lm, mask, caches, combined, trie=trie, searches=searches)
        for row, found in enumerate(results):
            chosen = memory[row][memory_mask[row] == 1]
            expected = {title: explicit_score(lm, PROMPTS[row], title, chosen, placement) for title in TITLES}
            assert named(found) == pytest.approx(expected, abs=1e-3), f"{placement}: wrong scores for query {row}"


def explicit_score(
    lm: SplitLM, prompt: list[int], title: tuple[int, ...], memory: torch.Tensor, placement: str
) -> float:
    tokens = torch.tensor([[*prompt, *title]])
    states = lm.bottom(tokens, torch.ones_like(tokens))[0]
    cut = 0 if placement == "prepend" else len(prompt) - 1
    sequence = torch.cat([states[:cut], memory, states[cut:]])[None]
    log_probs = lm.top(sequence, torch.ones(sequence.shape[:2], dtype=torch.long))[0].log_softmax(dim=-1)
    start = len(prompt) + len(memory) - 1
    return sum(float(log_probs[start + place, token]) for place, token in enumerate(title))


def test_a_sliding_window_longer_than_the_sequences_changes_no_score() -> None:
    whole = make_model("mistral", sliding_window=20)
    lm = SplitLM(make_model("mistral", sliding_window=20), 2)
    for prompt, found in zip(PROMPTS, search(lm, PROMPTS), strict=True):
        expected = {title: forced_score(whole, prompt, title) for title in TITLES}
        assert named(found) == pytest.approx(expected, abs=1e-3)


# --- item tokens: every title is one token, without a terminator -------------------------------------------------

SINGLE = [(token,) for token in (40, 12, 7, 12, 399, 55)]


@pytest.mark.parametrize("num_titles", [1, 3, 50])
@pytest.mark.parametrize("num_beams", [1, 3, 50])
def test_titles_of_one_token_need_no_second_step(num_titles: int, num_beams: int) -> None:
    whole, lm, trie = make_model("llama"), SplitLM(make_model("llama"), 2), Trie(SINGLE)
    tokens, mask = pad(PROMPTS)
    caches = lm.new_caches()
    searches = [Search(trie.allow(), num_titles, num_beams) for _ in PROMPTS]
    with torch.inference_mode():
        states = lm.bottom(tokens, mask, caches[0])
        results = beam_search(lm, mask, caches, TopInput(states, mask), trie=trie, searches=searches)
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == tokens.shape[1], "a second step was run"
    for prompt, found in zip(PROMPTS, results, strict=True):
        expected = {title: forced_score(whole, prompt, title) for title in SINGLE}
        best_first = sorted(expected, key=lambda title: -expected[title])[: min(num_titles, num_beams)]
        names = [SINGLE[trie.order[title.node.start]] for title in found]
        assert names == best_first, "not in the order of the head, or one title twice"
        assert [title.score for title in found] == pytest.approx([expected[name] for name in names], abs=1e-3)


def test_the_first_step_can_be_adjusted() -> None:
    """The adjusted log-probabilities decide which beams are dropped."""
    lm, trie = SplitLM(make_model("llama"), 2), Trie(SINGLE)
    tokens, mask = pad(PROMPTS[:2])
    adjusted = torch.full((2, 400), -9.0)
    adjusted[0, 7] = adjusted[1, 399] = -0.5
    caches = lm.new_caches()
    with torch.inference_mode():
        states = lm.bottom(tokens, mask, caches[0])
        results = beam_search(
            lm,
            mask,
            caches,
            TopInput(states, mask),
            trie=trie,
            searches=[Search(trie.allow(), 2, 2) for _ in range(2)],
            adjust_first_step=lambda log_probs: adjusted,
        )
    best = [SINGLE[trie.order[found[0].node.start]] for found in results]
    assert best == [(7,), (399,)] and [found[0].score for found in results] == [-0.5, -0.5]
