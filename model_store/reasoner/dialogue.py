"""The dialogue of the language model: what it reads, and what it may write.

    A person asks for something. …                          the same for all: its keys and values are kept
    Query: the next of the series my sister liked
    Aspects: a comfort; b sea                               those of global memory that are near the query
    Need: b                                                 written by the model: at most three letters
    Memory:                                                 what these aspects fetch of the user's memory
    A Salt Road 1: The Long Tide: sea (asked for: …)
    Used: A                                                 written: at most three letters
    Ideal: Salt Road 2                                      written: free text in one line

Only offered letters can be written, so the format cannot fail; whatever a query, a title or a memory says, it can
change the ranking and nothing else. Texts are tokenised one by one, as plain text: they bring neither special tokens
nor lines of their own. Needs a tokenizer in which a space and a letter are one token, as byte-level ones are.
"""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from model_store.words.aspects import Aspect
from model_store.words.reasoning import NUM_CHOSEN, NUM_SHOWN
from model_store.words.selector import MAX_CHOSEN

HEAD = (
    "A person asks for something. Name the aspects that matter, say which memories of the person help, "
    "and describe the ideal item.\n"
)
NUM_READ = 3  # memories
MAX_NEED, MAX_USED = NUM_CHOSEN, MAX_CHOSEN
MAX_IDEAL_TOKENS = 24
_MAX_QUERY_TOKENS, _MAX_ASPECT_TOKENS, _MAX_MEMORY_TOKENS = 48, 6, 28
ASPECT_LETTERS, MEMORY_LETTERS = "abcdefgh"[:NUM_SHOWN], "ABC"[:NUM_READ]


def distinct(aspects: Sequence[Aspect]) -> list[Aspect]:
    """The aspects with different names, because the model reads names only; of equal names the first."""
    first: dict[str, Aspect] = {}
    for aspect in aspects:
        first.setdefault(aspect.name, aspect)
    return list(first.values())


class Letters(NamedTuple):
    """Tokens of a space and a letter, in order, and of the end of a line."""

    aspects: list[int]
    memories: list[int]
    end: int


class Format:
    """Texts as tokens. Immutable."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.letters = Letters(
            [self._single(f" {letter}") for letter in ASPECT_LETTERS],
            [self._single(f" {letter}") for letter in MEMORY_LETTERS],
            self._single("\n"),
        )
        self.head = self._tokens(HEAD)
        self._parts = {name: self._tokens(name) for name in ("Query:", "Aspects:", "Need:", "Memory:", "Used:", ";")}
        self.ideal = self._tokens("Ideal:")
        vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        new_line = vocabulary[self.letters.end]
        self.ends = [token for token, text in enumerate(vocabulary) if text is not None and new_line in text]
        self.ends = sorted({*self.ends, *tokenizer.all_special_ids})

    def question(self, query: str, aspects: Sequence[str]) -> list[int]:
        """From the head to "Need:"; the head is not included."""
        named: list[int] = []
        for letter, aspect in zip(self.letters.aspects, aspects, strict=False):
            named += [*(self._parts[";"] if named else []), letter, *self._text(aspect, _MAX_ASPECT_TOKENS)]
        lines = [("Query:", self._text(query, _MAX_QUERY_TOKENS)), ("Aspects:", named)]
        tokens = [token for name, text in lines for token in (*self._parts[name], *text, self.letters.end)]
        return tokens + self._parts["Need:"]

    def memories(self, texts: Sequence[str]) -> list[int]:
        """From the end of the line of needs, which is not included, to "Used:"."""
        tokens = [*self._parts["Memory:"], self.letters.end]
        for letter, text in zip(self.letters.memories, texts, strict=False):
            tokens += [letter, *self._text(text, _MAX_MEMORY_TOKENS), self.letters.end]
        return tokens + self._parts["Used:"]

    def written(self, text: str) -> list[int]:
        """The tokens of an ideal item, without the end of its line."""
        return self._text(text, MAX_IDEAL_TOKENS - 1)

    def read(self, tokens: Sequence[int]) -> str:
        """The text of what the model wrote as the ideal item."""
        return " ".join(str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).split())

    def _text(self, text: str, limit: int) -> list[int]:
        line = " ".join(text.split())
        return self._tokens(f" {line}")[:limit] if line else []

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return found

    def _single(self, text: str) -> int:
        tokens = self._tokens(text)
        if len(tokens) != 1:
            raise ValueError(f"the tokenizer has no token for {text!r}: this model cannot reason here")
        return tokens[0]
