"""One token per title: known titles keep their tokens, added titles get the next ones in order of first use."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import BundleCorrupt
from model_store.manifest import PromptSpec
from model_store.text.prompt import ItemPrompt
from model_store.text.vocabulary import BEGIN, TITLES_FILE, ItemVocabulary
from tests.conftest import TITLES, make_tokenizer

TOKENIZER = make_tokenizer(TITLES)


@given(st.lists(st.sampled_from(TITLES), unique=True), st.lists(st.text("abc", min_size=1)))
def test_every_title_has_one_token_of_its_own(known: list[str], added: list[str]) -> None:
    vocabulary = ItemVocabulary(known, TOKENIZER)
    assert [vocabulary.token(title) for title in known] == list(range(1, 1 + len(known))), (
        "known titles have other tokens"
    )
    tokens = {title: vocabulary.token(title) for title in [*known, *added]}
    assert sorted(tokens.values()) == list(range(1, len(vocabulary))), (
        "a token is shared, skipped or that of the beginning"
    )
    assert all(vocabulary.token(title) == token for title, token in tokens.items()), "a token changed"


class SlowHash(str):
    """A string that lets other threads run during every look-up."""

    def __hash__(self) -> int:
        time.sleep(1e-5)
        return super().__hash__()


def test_threads_agree_on_the_tokens_of_added_titles() -> None:
    vocabulary = ItemVocabulary(TITLES, TOKENIZER)
    added = [SlowHash(f"added {number}") for number in range(50)]
    start = Barrier(8)

    def ask(_: int) -> list[int]:
        start.wait()
        return [vocabulary.token(title) for title in added]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert all(answer == answers[0] for answer in answers), "a title has two tokens"
    assert sorted(answers[0]) == list(range(21, 71)) and len(vocabulary) == 71, "a token is shared or skipped"


def test_a_saved_vocabulary_reads_back_without_added_titles(tmp_path: Path) -> None:
    vocabulary = ItemVocabulary(["Ünder", "b\u2028c", "d"], TOKENIZER)
    vocabulary.token("added")
    vocabulary.save(tmp_path)
    again = ItemVocabulary.load(tmp_path, TOKENIZER)
    assert [again.token(title) for title in ("Ünder", "b\u2028c", "d", "added")] == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [None, "[1", "", "\xff", "7", '{"a": 1}', '["a", 1]', '["a", "a"]', '"text"'])
def test_a_missing_or_broken_list_is_a_corrupt_bundle(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / TITLES_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(BundleCorrupt, match=TITLES_FILE):
        ItemVocabulary.load(tmp_path, TOKENIZER)


def test_pieces_decode_to_the_title() -> None:
    vocabulary = ItemVocabulary(TITLES, TOKENIZER)
    pieces = vocabulary.pieces(2, 4)
    assert [TOKENIZER.decode(each) for each in pieces] == TITLES[1:3], "the pieces of another title"


def test_a_prompt_is_one_token_per_title() -> None:
    prompt = ItemPrompt(ItemVocabulary(TITLES, TOKENIZER), PromptSpec(head="", recent_length=3))
    assert prompt.tokens(TITLES[:5]) == [BEGIN, 3, 4, 5], "not the last three titles"
    assert prompt.tokens([]) == [BEGIN]
    assert prompt.title_tokens("  " + TITLES[0].replace(" ", "\n")) == (1,), (
        "a title is not cleaned before it is looked up"
    )
    assert len(prompt.tokens(TITLES)) == prompt.max_tokens
