"""The catalogue: items, their titles as tokens, and which of them may be recommended now.

Rows are positions in `items`; they are the ids of the Faiss index and of the trie. An immutable snapshot: a change
makes a new one, so the engine never sees a half-changed catalogue. Knows neither tensors nor the store.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.history import clean_title
from model_store.prompt import Prompt
from model_store.trie import Trie


@dataclass(frozen=True)
class Item:
    """`popularity` counts interactions in training. Availability is in epoch seconds, None = open."""

    item_id: str
    title: str
    popularity: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    hidden: bool = False
    available_from: int | None = None
    available_until: int | None = None

    def is_available(self, now: float) -> bool:
        starts, ends = self.available_from, self.available_until
        return not self.hidden and (starts is None or starts <= now) and (ends is None or now < ends)


class Catalogue:
    """Items without a title cannot be generated and are refused by `clean` before they come here."""

    def __init__(self, items: Iterable[Item], prompt: Prompt) -> None:
        self.items = list(items)
        self.rows = {item.item_id: row for row, item in enumerate(self.items)}
        self.popularity = np.array([item.popularity for item in self.items], dtype=np.int64)
        self.by_popularity = np.argsort(-self.popularity, kind="stable")
        self.trie = Trie([prompt.title_tokens(item.title) for item in self.items])
        self._prompt = prompt
        self._always_available = np.array([_is_always_available(item) for item in self.items], dtype=bool)

    def __len__(self) -> int:
        return len(self.items)

    def available(self, now: float) -> NDArray[np.bool_]:
        """(N,) bool, a fresh array that the caller may change."""
        mask = self._always_available.copy()
        for row in np.flatnonzero(~mask):
            mask[row] = self.items[row].is_available(now)
        return mask

    def matching(self, attributes: Mapping[str, Any]) -> NDArray[np.bool_]:
        """(N,) bool: items whose every named attribute is (or, if a list, contains) one of the values asked for.

        Values are equal as in JSON: true is not 1. Nested ones equal nothing.
        """
        return np.array([_matches(item.attributes, attributes) for item in self.items], dtype=bool)

    def with_items(self, changes: Iterable[Item]) -> "Catalogue":
        """A new snapshot. Known items keep their row and their popularity; new ones are added at the end."""
        items = list(self.items)
        rows = dict(self.rows)
        for item in changes:
            if (row := rows.get(item.item_id)) is None:
                rows[item.item_id] = len(items)
                items.append(item)
            else:
                items[row] = replace(item, popularity=items[row].popularity)
        return Catalogue(items, self._prompt)


def write_items(items: Iterable[Item], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")


def read_items(path: Path) -> list[Item]:
    with path.open(encoding="utf-8") as file:
        return [Item(**json.loads(line)) for line in file]


def clean(item: Item) -> Item:
    """With the title as the prompt will show it. Raises ValueError when nothing visible is left of it."""
    title = clean_title(item.title)
    if not title:
        raise ValueError(f"item {item.item_id!r} has no visible title")
    return replace(item, title=title)


def _is_always_available(item: Item) -> bool:
    return not item.hidden and item.available_from is None and item.available_until is None


def _matches(attributes: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(_values(attributes.get(name)) & _values(value) for name, value in wanted.items())


def _values(value: Any) -> set[tuple[bool, Any]]:
    values = value if isinstance(value, list) else [value]
    return {(isinstance(each, bool), each) for each in values if isinstance(each, str | int | float)}
