"""The words of texts, and the text of an item: its title, its attributes, and what people asked when they chose it.

Pure functions over strings; training and serving use the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

MAX_PHRASES = 12  # of the queries that led to an item, in the text that is embedded
# A word is a run of letters and digits. Chinese and Japanese have no spaces between words, so each sign is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


class ItemText(NamedTuple):
    """`phrases`: query → the number of people who chose the item after it, most first."""

    title: str
    attributes: tuple[str, ...] = ()
    phrases: tuple[tuple[str, int], ...] = ()

    @property
    def sentence(self) -> str:
        """The text that is embedded: "title: attributes, phrases"."""
        details = dict.fromkeys((*self.attributes, *(phrase for phrase, _ in self.phrases[:MAX_PHRASES])))
        return f"{self.title}: {', '.join(details)}" if details else self.title

    def terms(self) -> list[str]:
        """The words of BM25: a phrase counts once for each person, and also as a whole."""
        words = [*words_of(self.title), *(word for text in self.attributes for word in words_of(text))]
        for phrase, count in self.phrases:
            words += [*words_of(phrase), whole(phrase)] * count
        return words


def words_of(text: str) -> list[str]:
    """The words of `text`, without regard to case."""
    return _WORD.findall(text.casefold())


def whole(query: str) -> str:
    """The term that stands for the whole query. No word contains its first sign."""
    return "=" + " ".join(words_of(query))


def query_terms(query: str) -> list[str]:
    """The terms of a query: each of its words once, and the whole."""
    return [*dict.fromkeys(words_of(query)), whole(query)]


def item_text(title: str, attributes: Mapping[str, Any], phrases: Sequence[tuple[str, int]] = ()) -> ItemText:
    """The text of an item. Attributes that are neither text nor lists of texts are left out."""
    texts = dict.fromkeys(text for value in attributes.values() for text in _texts(value))
    return ItemText(title, tuple(texts), tuple(sorted(phrases, key=lambda pair: (-pair[1], pair[0]))))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        yield from (text for text in value if isinstance(text, str))
