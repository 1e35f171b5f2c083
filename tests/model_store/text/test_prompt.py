"""The tokens of a title depend on its visible text only, not on other titles, and contain no special tokens."""

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken

from model_store.errors import UnsupportedBackbone
from model_store.manifest import PromptSpec
from model_store.text.prompt import Prompt
from tests.conftest import TITLES, make_tokenizer

SPECIAL = ("<s>", "<|im_start|>", "<|endoftext|>")


def make_prompt(**spec: object) -> Prompt:
    tokenizer = make_tokenizer(TITLES)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(text) for text in SPECIAL[1:]]})
    return Prompt(tokenizer, PromptSpec.model_validate({"head": "Chosen:\n", "recent_length": 3, **spec}))


PROMPT = make_prompt()
titles = st.lists(st.one_of(st.sampled_from([*TITLES, *SPECIAL, ""]), st.text(max_size=12)), max_size=5)


@given(titles)
def test_a_prompt_is_the_head_and_the_tokens_of_each_title(history: list[str]) -> None:
    expected = [*PROMPT.head]
    for title in history[-3:]:
        expected += PROMPT.title_tokens(title)
    assert PROMPT.tokens(history) == expected, "the tokens of a title depend on other titles"
    assert len(expected) <= PROMPT.max_tokens, "a prompt is longer than max_tokens"


@given(st.text(max_size=20))
def test_the_terminator_is_at_the_end_of_a_title_only(title: str) -> None:
    tokens = PROMPT.title_tokens(title)
    assert list(tokens[-len(PROMPT.terminator) :]) == PROMPT.terminator
    assert not set(PROMPT.terminator) & set(tokens[: -len(PROMPT.terminator)]), (
        "a title contains a token of the terminator"
    )


@given(st.sampled_from(SPECIAL), st.text(max_size=5), st.text(max_size=5))
def test_special_tokens_in_a_title_become_plain_text(special: str, before: str, after: str) -> None:
    tokens = PROMPT.title_tokens(before + special + after)
    assert not set(tokens) & set(PROMPT.tokenizer.all_special_ids), f"a title contains the special token {special}"


def test_the_text_of_special_tokens_in_a_title_is_kept() -> None:
    for special in SPECIAL:
        assert PROMPT.tokenizer.decode(list(PROMPT.title_tokens(f"a {special} b"))) == f"a {special} b\n"


def test_a_long_title_is_cut_before_its_terminator() -> None:
    tokens = make_prompt(max_title_tokens=4).title_tokens("Silent Teapot " * 20)
    assert len(tokens) == 4 + len(PROMPT.terminator)
    assert list(tokens[4:]) == PROMPT.terminator, "the terminator was cut off"


def test_a_prompt_has_only_the_recent_titles() -> None:
    assert PROMPT.tokens(TITLES) == PROMPT.tokens(TITLES[-3:]) != PROMPT.tokens(TITLES[-4:-1])
    assert PROMPT.tokens(TITLES[:2]) != PROMPT.tokens(TITLES[1::-1]), "the order of the titles does not matter"


def test_the_prompt_of_an_empty_history_is_the_head() -> None:
    assert PROMPT.tokens([]) == PROMPT.head
    assert PROMPT.tokenizer.decode(PROMPT.head) == "<s>Chosen:\n", "the head has other tokens than the text and BOS"


@pytest.mark.parametrize("text", ["Red\nMoon", "Red\r\n Moon", "Red\x00Moon", "\tRed  Moon ", "Red\u2028Moon"])
def test_control_characters_are_spaces(text: str) -> None:
    assert PROMPT.title_tokens(text) == PROMPT.title_tokens("Red Moon")


def test_the_text_of_a_prompt() -> None:
    assert PROMPT.tokenizer.decode(PROMPT.tokens(["Red Moon", "Blue Tea"])) == "<s>Chosen:\nRed Moon\nBlue Tea\n"


def test_a_terminator_without_tokens_is_refused() -> None:
    tokenizer: transformers.PreTrainedTokenizerFast = make_tokenizer(TITLES)
    with pytest.raises(UnsupportedBackbone, match="terminator"):
        Prompt(tokenizer, PromptSpec().model_copy(update={"terminator": ""}))


@pytest.mark.parametrize("terminator", ["", " ;", "</s>"])
def test_a_terminator_that_a_title_could_contain_is_refused(terminator: str) -> None:
    with pytest.raises(ValidationError, match="terminator"):
        PromptSpec(terminator=terminator)
