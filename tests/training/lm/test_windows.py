"""The last K events are the prompt, the M before them are the memory, and no later event is used."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.small import diary, small_windows
from training.data.splits import Target
from training.lm.windows import Windows, token_batches
from training.run.recipes import RECIPES

SPLIT = diary(lengths=(130, 12))


@pytest.fixture(scope="module")
def windows() -> Windows:
    return small_windows(SPLIT)


@pytest.mark.parametrize("recipe", RECIPES)
def test_by_default_a_target_uses_its_last_hundred_events(recipe: str) -> None:
    settings = RECIPES[recipe]
    windows = small_windows(SPLIT, recent_length=settings.recent_length, max_memory=settings.max_memory)
    positions = windows.memory_positions(Target(0, 125))
    assert settings.recent_length == 10
    assert positions.tolist() == list(range(25, 115)), "the last 100: 10 recent, 90 memory"


@given(position=st.integers(0, 129), recent_length=st.integers(1, 12), max_memory=st.integers(0, 100))
def test_prompt_and_memory_cover_the_newest_events_without_overlap(
    position: int, recent_length: int, max_memory: int
) -> None:
    windows = small_windows(SPLIT, recent_length=recent_length, max_memory=max_memory)
    memory = windows.memory_positions(Target(0, position)).tolist()
    recent = list(range(max(0, position - recent_length), position))
    past = list(range(position))
    assert memory + recent == past[max(0, len(past) - recent_length - max_memory) :], "the newest events, without a gap"
    titles = windows.titles(SPLIT.histories[0].items[recent])
    assert windows.example(Target(0, position)).prompt == windows.prompt.tokens(titles)


def test_an_example_has_the_prompt_of_serving(windows: Windows) -> None:
    example = windows.example(Target(0, 9))
    prompt = "Chosen:\n" + "".join(title + "\n" for title in SPLIT.titles[6:9])
    assert windows.prompt.tokenizer.decode(example.prompt) == "<s>" + prompt
    assert windows.prompt.tokenizer.decode(list(example.answer)) == SPLIT.titles[9] + "\n"
    assert example.memory_positions.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_prompt_of_a_user_without_history_is_the_head(windows: Windows) -> None:
    example = windows.example(Target(1, 0))
    assert example.prompt == windows.prompt.head
    assert example.memory_positions.tolist() == []


def test_windows_contain_one_user_only(windows: Windows) -> None:
    prompt = windows.prompt_ending_at(1, 1)
    assert prompt == windows.prompt.tokens(SPLIT.titles[130:132])


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_token_batches_contain_every_row_once_and_fit(lengths: list[int], max_tokens: int) -> None:
    batches = list(token_batches(lengths, max_tokens))
    assert sorted(np.concatenate([[], *batches]).tolist()) == list(range(len(lengths))), (
        "a row is missing or occurs twice"
    )
    for batch in batches:
        padded = len(batch) * max(lengths[row] for row in batch)
        assert padded <= max_tokens or len(batch) == 1, f"{padded} padded tokens"
