"""An item, and the file of items: UTF-8, one JSON object a line."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.text.history import clean_title


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


def write_items(items: Iterable[Item], path: Path) -> NDArray[np.int64]:
    """Returns (N + 1,) where in the file each line starts, and the last one ends."""
    sizes = [0]
    with path.open("wb") as file:
        for item in items:
            sizes.append(file.write((json.dumps(vars(item), ensure_ascii=False) + "\n").encode()))
    return np.cumsum(sizes, dtype=np.int64)


def read_items(path: Path) -> list[Item]:
    with path.open("rb") as file:
        return [parse_item(line) for line in file]


def parse_item(line: bytes) -> Item:
    return Item(**json.loads(line))


def clean(item: Item) -> Item:
    """With the title as the prompt will show it. Raises ValueError when nothing visible is left of it."""
    title = clean_title(item.title)
    if not title:
        raise ValueError(f"item {item.item_id!r} has no visible title")
    return replace(item, title=title)
