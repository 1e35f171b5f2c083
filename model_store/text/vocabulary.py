"""The item vocabulary: one token for every distinct title of the catalogue (after CoVE, arXiv 2410.10739).

Token 0 begins a prompt, token 1 + n is the n-th title. A title that comes later gets the next number the first time it
is asked for; its embedding is spelled from the pieces of its text (see `item_embedding.py`), so the numbers of late
titles carry no meaning and may differ between two runs. Knows no tensors.
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
    """Thread-safe. `titles` are clean and all different."""

    def __init__(self, titles: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self._titles = list(titles)
        self._tokens = {title: 1 + row for row, title in enumerate(self._titles)}
        self._lock = Lock()

    @classmethod
    def load(cls, directory: Path, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Raises BundleCorrupt."""
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
        """Tokens, the beginning included."""
        return 1 + len(self._titles)

    def known(self, title: str) -> int | None:
        """The token of a title that has one."""
        return self._tokens.get(title)

    def token(self, title: str) -> int:
        """Of a clean title; a late one gets the next."""
        known = self.known(title)
        if known is not None:
            return known
        with self._lock:
            if title not in self._tokens:
                self._titles.append(title)
                self._tokens[title] = len(self._titles)
            return self._tokens[title]

    def pieces(self, first: int, stop: int) -> list[list[int]]:
        """The pieces of text of the tokens [first, stop), which must not include the beginning."""
        titles = self._titles[first - 1 : stop - 1]
        if not titles:
            return []
        encoded = self.tokenizer(titles, add_special_tokens=False, split_special_tokens=True)
        pieces: list[list[int]] = encoded["input_ids"]
        return pieces
