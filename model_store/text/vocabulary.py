"""The item vocabulary: one token for each distinct title of the catalogue (after CoVE, arXiv 2410.10739).

Token 0 begins a prompt; token 1 + n is the n-th title. A title added later gets the next token when it is first looked
up. Its embedding is computed from its text (see lm/item_embedding.py), so tokens of added titles have no meaning of
their own and may differ between processes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Self

from model_store.errors import BundleCorrupt

if TYPE_CHECKING:  # at run time the import would load torch
    from transformers import PreTrainedTokenizerBase

BEGIN = 0
TITLES_FILE = "titles.json"


class ItemVocabulary:
    """Titles and their tokens. `titles` are clean and all different; `tokenizer` splits them into text pieces.

    Thread-safe.
    """

    def __init__(self, titles: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self._titles = list(titles)
        self._tokens = {title: 1 + row for row, title in enumerate(self._titles)}
        self._lock = Lock()

    @classmethod
    def load(cls, directory: Path, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Read `titles.json` in `directory`. Raises BundleCorrupt."""
        try:
            titles = json.loads((directory / TITLES_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleCorrupt(f"{directory}: no list of titles in {TITLES_FILE}; build the bundle again") from error
        if not isinstance(titles, list) or {type(title) for title in titles} - {str} or len(set(titles)) < len(titles):
            raise BundleCorrupt(f"{directory}: {TITLES_FILE} is not a list of different titles; build the bundle again")
        return cls(titles, tokenizer)

    def save(self, directory: Path) -> None:
        (directory / TITLES_FILE).write_text(json.dumps(self._titles, ensure_ascii=False) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        """The number of tokens, with the one that begins a prompt."""
        return 1 + len(self._titles)

    def titled(self) -> list[tuple[int, str]]:
        """Pairs of a token and its title."""
        return list(enumerate(self._titles, start=1))

    def known(self, title: str) -> int | None:
        """The token of a title, None if it has none yet."""
        return self._tokens.get(title)

    def token(self, title: str) -> int:
        """The token of a clean title. A title without one gets the next free token."""
        known = self.known(title)
        if known is not None:
            return known
        with self._lock:
            if title not in self._tokens:
                self._titles.append(title)
                self._tokens[title] = len(self._titles)
            return self._tokens[title]

    def pieces(self, first: int, stop: int) -> list[list[int]]:
        """The text pieces of the titles of tokens [first, stop). `first` is at least 1."""
        titles = self._titles[first - 1 : stop - 1]
        if not titles:
            return []
        encoded = self.tokenizer(titles, add_special_tokens=False, split_special_tokens=True)
        pieces: list[list[int]] = encoded["input_ids"]
        return pieces
