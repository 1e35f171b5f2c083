"""Prompts: from the titles of a history to tokens.

A prompt is `head`, then each title followed by `terminator`; the answer is a title followed by `terminator`. Each title
is tokenised on its own and the tokens are concatenated, so its tokens do not depend on other titles: a window, a packed
training sequence and a path of the trie have the same tokens. Titles are plain text and never give special tokens. The
instruction of the paper is in `head`, also its last sentence, "predict the next item": in this way one window of K + 1
items trains all its titles at once.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model_store.errors import UnsupportedBackbone
from model_store.manifest import PromptSpec
from model_store.text.history import clean_title
from model_store.text.vocabulary import BEGIN, ItemVocabulary

if TYPE_CHECKING:  # at run time the import would load torch
    from transformers import PreTrainedTokenizerBase

_TITLES_PER_CALL = 50_000


class Prompt:
    """Tokens of prompts and titles, with the title vocabulary. Thread-safe; the tokens of titles are cached."""

    has_stable_tokens = True  # the tokens of a title are the same in every process

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", spec: PromptSpec) -> None:
        """Raises UnsupportedBackbone if the tokenizer has no token for the terminator."""
        self.spec = spec
        self.tokenizer = tokenizer
        beginning = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        self.head = beginning + self._encode(spec.head)
        self.terminator = self._encode(spec.terminator)
        if not self.terminator:  # a title could be a prefix of another, and could then not be generated
            raise UnsupportedBackbone(f"the tokenizer has no token for the terminator {spec.terminator!r}")
        self.longest_title = spec.max_title_tokens + len(self.terminator)
        self.title_tokens = lru_cache(maxsize=200_000)(self._title_tokens)

    def _encode(self, text: str) -> list[int]:
        """Tokens of plain text. The text of special tokens is split like any other text."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) if text else []

    def _title_tokens(self, title: str) -> tuple[int, ...]:
        """The tokens of one title, cut to `max_title_tokens`, with the terminator."""
        return (*self._encode(clean_title(title))[: self.spec.max_title_tokens], *self.terminator)

    def tokens_of_titles(self, titles: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The tokens of many titles in one array, and the number of tokens of each title (N,)."""
        parts = [
            self._tokenise(titles[start : start + _TITLES_PER_CALL])
            for start in range(0, len(titles), _TITLES_PER_CALL)
        ]
        flat = [np.empty(0, dtype=np.int32), *(flat for flat, _ in parts)]
        return np.concatenate(flat), np.concatenate([np.empty(0, dtype=np.int64), *(counts for _, counts in parts)])

    def _tokenise(self, titles: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        encoded = self.tokenizer(
            [clean_title(title) for title in titles],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        rows = [[*pieces[: self.spec.max_title_tokens], *self.terminator] for pieces in encoded["input_ids"]]
        counts = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(counts.sum())), counts

    def tokens(self, titles: Sequence[str]) -> list[int]:
        """The prompt of the last `recent_length` of `titles`, oldest first. Without titles it is the head."""
        recent = titles[-self.spec.recent_length :]
        return [*self.head, *(token for title in recent for token in self.title_tokens(title))]

    def titles_in(self, prompt: Sequence[int]) -> list[tuple[int, ...]]:
        """The titles of a prompt that `tokens` made, each as its tokens with the terminator."""
        found, start, size = list[tuple[int, ...]](), len(self.head), len(self.terminator)
        for stop in range(start + size, len(prompt) + 1):
            if list(prompt[stop - size : stop]) == self.terminator and stop - size >= start:
                found.append(tuple(prompt[start:stop]))
                start = stop
        return found

    @property
    def max_tokens(self) -> int:
        """The largest possible number of tokens of a prompt."""
        return len(self.head) + self.spec.recent_length * self.longest_title


class ItemPrompt(Prompt):
    """Prompts with the item vocabulary: a title is one token. There is no terminator and no instruction text."""

    has_stable_tokens = False  # an added title gets its token when it is first looked up

    def __init__(self, vocabulary: ItemVocabulary, spec: PromptSpec) -> None:
        self.spec = spec
        self.tokenizer = vocabulary.tokenizer
        self.vocabulary = vocabulary
        self.head, self.terminator = [BEGIN], []
        self.longest_title = 1
        self.title_tokens = lru_cache(maxsize=200_000)(self._title_tokens)

    def _title_tokens(self, title: str) -> tuple[int, ...]:
        return (self._token(title),)

    def _token(self, title: str) -> int:
        """The token of `title`. Looked up before cleaning, which takes ten times as long: known titles are clean."""
        known = self.vocabulary.known(title)
        return self.vocabulary.token(clean_title(title)) if known is None else known

    def tokens_of_titles(self, titles: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        flat = np.fromiter(map(self._token, titles), dtype=np.int32, count=len(titles))
        return flat, np.ones(len(titles), dtype=np.int64)
