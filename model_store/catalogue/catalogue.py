"""The catalogue: the items, the trie of their titles, and which items may be recommended.

A row is the position of an item in `items`; it is also its id in the Faiss index and in the trie. A catalogue is an
immutable snapshot: a change makes a new one, so nobody sees a half-changed catalogue.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from model_store.beams.trie import Trie
from model_store.catalogue.attributes import Attributes
from model_store.catalogue.columns import Columns, postings_of
from model_store.catalogue.items import Item, ItemList, MappedItems, write_items
from model_store.catalogue.mapped import read_mapped
from model_store.catalogue.postings import Postings
from model_store.errors import BundleCorrupt
from model_store.text.prompt import Prompt

_NUM_COMPARED = 16  # items that are compared with the columns when a catalogue is opened
_AT_ONCE = 4096  # rows of a ranking that are looked at in one step


class Catalogue:
    """A snapshot of all items. Every item has a visible title (see `clean`). Thread-safe."""

    def __init__(self, items: Iterable[Item], prompt: Prompt | None = None, columns: Columns | None = None) -> None:
        """`prompt` turns titles into tokens; without it there is no trie. `columns` of `items`, if already computed."""
        self.items: ItemList = items if isinstance(items, ItemList) else ItemList(list(items))
        self._columns = columns = Columns.of(self.items, prompt) if columns is None else columns
        self._prompt = prompt
        self.rows, self.popularity, self.by_popularity = columns.rows, columns.popularity, columns.by_popularity
        if columns.trie is not None:
            columns.trie.expect(columns.availability.always)

    @property
    def trie(self) -> Trie:
        """Raises ValueError in a catalogue that was made without a prompt."""
        if self._columns.trie is None:
            raise ValueError("this catalogue has no trie: it was opened without a prompt")
        return self._columns.trie

    @classmethod
    def open(cls, items: Path, columns: Path, prompt: Prompt | None = None) -> Self:
        """Map the files that `save` wrote into memory; a million items open in a second.

        Raises BundleCorrupt if they do not belong together.
        """
        try:
            arrays: dict[str, NDArray[Any]] = read_mapped(columns)
            lines = MappedItems(items, arrays["starts"])
            catalogue = cls(ItemList(lines), prompt, Columns.read(arrays, prompt))
            if not catalogue._matches_columns():
                raise ValueError("other items, or another tokenizer")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BundleCorrupt(f"{columns}: not made from {items.name} and lm; build the bundle again") from error
        return catalogue

    def _matches_columns(self) -> bool:
        """Whether a sample of items has the ids and tokens of the columns. To check a million items takes a minute."""
        sample = np.linspace(0, len(self.items) - 1, min(len(self.items), _NUM_COMPARED)).astype(int).tolist()
        items = {row: self.items[row] for row in sample}
        return len(self.items) == len(self.rows) and all(
            self.rows[item.item_id] == row and self._has_tokens_of(row, item) for row, item in items.items()
        )

    def _has_tokens_of(self, row: int, item: Item) -> bool:
        if self._prompt is None:
            return True
        paths = self.trie.paths
        return paths.sequence(paths.places[row]) == self._prompt.title_tokens(item.title)

    def save(self, items: Path, columns: Path) -> None:
        """Write the items and, to another file, their columns. Raises ValueError without a prompt."""
        if self._prompt is None:
            raise ValueError("a catalogue that was opened without a prompt cannot be saved")
        if self.items.changed:  # the postings must cover all items
            Catalogue(list(self.items), self._prompt).save(items, columns)
            return
        starts = write_items(self.items, items)
        titles = [] if self._prompt.has_stable_tokens else [item.title for item in self.items]
        save_file({"starts": starts, **self._columns.arrays(titles, self._prompt)}, columns)

    def __len__(self) -> int:
        return len(self.items)

    def available(self, now: float) -> NDArray[np.bool_]:
        """(N,) bool: items that may be shown at `now` (epoch seconds); a fresh array that the caller may change."""
        return self._columns.availability.at(now)

    @property
    def postings(self) -> Callable[[], Postings]:
        """Makes the index of the attributes of `items.base`, once for all snapshots."""
        return self._columns.postings

    def allowed(
        self,
        now: float,
        *,
        candidates: Iterable[str] | None = None,
        among: NDArray[np.bool_] | None = None,
        without: NDArray[np.int64] | None = None,
    ) -> NDArray[np.bool_]:
        """(N,) bool: items that are available, in `candidates`, in the mask `among`, not in the rows `without`.

        Unknown candidates are ignored.
        """
        availability = self._columns.availability
        allowed = availability.at(now) if len(availability.windowed) else availability.always.copy()
        if candidates is not None:
            wanted = np.zeros(len(self), dtype=bool)
            wanted[[self.rows[item_id] for item_id in candidates if item_id in self.rows]] = True
            allowed &= wanted
        if among is not None:
            allowed &= among
        if without is not None:
            allowed[without] = False
        return allowed

    def ids_from(self, first: int) -> Iterable[str]:
        """The ids of the items from the row `first` on, in order."""
        base, changed = len(self.items.base), self.items.changed
        yield from islice(self.rows, first, base)
        for row in range(max(first, base), len(self)):
            yield changed[row].item_id

    def titles(self, item_ids: Iterable[str]) -> list[str]:
        """The title of each item; "" for an item that the catalogue does not know."""
        rows = [self.rows.get(item_id) for item_id in item_ids]
        found = iter(self.items.at(row for row in rows if row is not None))
        return ["" if row is None else next(found).title for row in rows]

    def most_popular(self, allowed: NDArray[np.bool_], num_results: int) -> list[int]:
        """Rows of the most popular items of `allowed` (N,) bool, best first."""
        return first_allowed(self.by_popularity, allowed, num_results)

    def latest(self, allowed: NDArray[np.bool_], num_results: int, *, since: int = 1) -> list[int]:
        """Rows of the items of `allowed` (N,) bool that came while a service ran, at `since` or later, newest first."""
        rows = self._columns.by_arrival
        stop = bisect_right(range(len(rows)), -since, key=lambda place: -int(self.added_at[rows[place]]))
        return first_allowed(rows[:stop], allowed, num_results)

    def with_at_most(self, num_events: int) -> NDArray[np.int32]:
        """Rows of the items with at most so many events, in training and since then. Costs a binary search."""
        return self.by_popularity[self._columns.first_with_at_most(num_events) :]

    def matching(self, attributes: Mapping[str, Any]) -> NDArray[np.bool_]:
        """(N,) bool: items that have, for every name in `attributes`, one of the values (or the value) given for it.

        An attribute that is a list has all its values. Values are compared as in JSON: true is not 1. Nested values
        match nothing.
        """
        mask = np.ones(len(self), dtype=bool)
        for name, wanted in attributes.items():
            has = np.zeros(len(self), dtype=bool)
            for rows in self._columns.postings().rows(name, wanted):
                has[rows] = True
            has[self._changed_rows] = False
            for rows in self._changed_postings.rows(name, wanted):
                has[rows] = True
            mask &= has
        return mask

    @cached_property
    def attributes(self) -> Attributes:
        """Names and types of the attributes that items have."""
        return self._columns.attributes().joined(self._columns.changed_attributes)

    @cached_property
    def _changed_rows(self) -> NDArray[np.int64]:
        return np.fromiter(self.items.changed, dtype=np.int64, count=len(self.items.changed))

    @cached_property
    def _changed_postings(self) -> Postings:
        return postings_of(self.items.changed)

    @property
    def added_at(self) -> NDArray[np.int64]:
        """(N,) epoch seconds at which items came while a service ran; 0 for those of which it is not known."""
        return self._columns.added_at

    def popularity_of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) interactions in training and since then."""
        found: NDArray[np.float64] = self.popularity[rows] + self._columns.live[rows]
        return found

    def with_live(self, live: NDArray[np.float64]) -> "Catalogue":
        """A new snapshot with other numbers (n,) of events since training, by row; 0 for the rows from n on."""
        padded = np.zeros(len(self))
        padded[: len(live)] = live
        return Catalogue(self.items, self._prompt, self._columns.recounted(padded))

    def with_items(self, changes: Iterable[Item]) -> "Catalogue":
        """A new snapshot with `changes`. Known items keep their row and popularity; new items are added at the end.

        A small change shares or splices the columns: only changed items are tokenised, and nothing is sorted again.
        """
        old: dict[int, Item] = {}
        new: dict[int, Item] = {}
        added: dict[str, int] = {}
        for item in changes:
            row = self.rows.get(item.item_id)
            if row is not None:
                old[row] = self.items[row]
            else:
                row = added.setdefault(item.item_id, len(self) + len(added))
            first = old.get(row, new.get(row))
            new[row] = item if first is None else replace(item, popularity=first.popularity)
        if not new:
            return self
        columns = self._columns.replaced(old, new, self._prompt, self._trained_title)
        return Catalogue(self.items.replaced(new), self._prompt, columns)

    def _trained_title(self, row: int) -> str | None:
        return self.items.base_at(row).title if row < len(self.items.base) else None


def first_allowed(rows: NDArray[np.integer], allowed: NDArray[np.bool_], num_results: int) -> list[int]:
    """The first of `rows` (n,), a ranking, that are in `allowed` (N,) bool; not many more of them are looked at."""
    found: list[int] = []
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        found += some[allowed[some]].tolist()
        if len(found) >= num_results:
            break
    return found[:num_results]
