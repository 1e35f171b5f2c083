"""Arrays computed from the items of a catalogue, by row: saved in a bundle, and updated when items change."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model_store.beams.paths import Paths
from model_store.beams.trie import Trie
from model_store.catalogue.attributes import Attributes
from model_store.catalogue.availability import Availability
from model_store.catalogue.items import Item
from model_store.catalogue.mapped import json_array
from model_store.catalogue.postings import Postings, counted
from model_store.catalogue.rows import Rows
from model_store.text.prompt import Prompt

_FEW = 16  # new items that are looked up one by one


@dataclass(frozen=True)
class Columns:
    """The columns of N items.

    `postings` and `attributes` cover the items that were there at the beginning and ignore later changes.
    """

    rows: Rows
    popularity: NDArray[np.int64]  # (N,) interactions in training
    live: NDArray[np.float64]  # (N,) events since training; not saved
    by_popularity: NDArray[np.int32]  # (N,) rows by popularity + live, the highest first, the lower row if tied
    added_at: NDArray[np.int64]  # (N,) `Item.added_at`, 0 for None
    by_arrival: NDArray[np.int32]  # rows of the items with `added_at`, the newest first, the higher row if tied
    availability: Availability
    postings: Callable[[], Postings]
    attributes: Callable[[], Attributes]  # of the items in `postings`
    changed_attributes: Attributes  # what later changes add to them and take away
    trie: Trie | None  # None without a prompt

    @classmethod
    def of(cls, items: Sequence[Item], prompt: Prompt | None) -> Self:
        """Compute the columns of `items`; the trie only with a `prompt`."""
        popularity = np.array([item.popularity for item in items], dtype=np.int64)
        added_at = np.array([item.added_at or 0 for item in items], dtype=np.int64)
        postings = cache(lambda: postings_of(dict(enumerate(items))))
        return cls(
            rows=Rows({item.item_id: row for row, item in enumerate(items)}),
            popularity=popularity,
            live=np.zeros(len(items)),
            by_popularity=_falling(popularity),
            added_at=added_at,
            by_arrival=_newest_first(np.flatnonzero(added_at), added_at),
            availability=Availability.none().replaced(np.arange(len(items)), items),
            postings=postings,
            attributes=_attributes_of(postings),
            changed_attributes=Attributes(),
            trie=None if prompt is None else Trie(_paths([item.title for item in items], prompt)),
        )

    def replaced(
        self,
        old: Mapping[int, Item],
        new: Mapping[int, Item],
        prompt: Prompt | None,
        trained_title: Callable[[int], str | None],
    ) -> "Columns":
        """A copy with the items `new`, by row. `old` are the items they replace; rows that are not in it are new.

        `trained_title` is the title that a row had at the beginning, None for a row that came later.
        """
        rows = np.fromiter(new, dtype=np.int64, count=len(new))
        added = {row: item for row, item in new.items() if row not in old}
        popularity = np.array([item.popularity for item in added.values()], dtype=np.int64)
        added_at = self._added_at_with(new)
        return Columns(
            rows=self.rows.with_rows({item.item_id: row for row, item in added.items()}),
            popularity=np.append(self.popularity, popularity) if added else self.popularity,
            live=np.append(self.live, np.zeros(len(popularity))) if added else self.live,
            by_popularity=self._by_popularity_with(popularity) if added else self.by_popularity,
            added_at=added_at,
            by_arrival=self._by_arrival_with(added_at, rows),
            availability=self.availability.replaced(rows, new.values()),
            postings=self.postings,
            attributes=self.attributes,
            changed_attributes=self.changed_attributes.plus(
                triple
                for items, number in ((old, -1), (new, 1))
                for item in items.values()
                for triple in counted(item.attributes, number)
            ),
            trie=None
            if prompt is None or self.trie is None
            else _trie_with(self.trie, old, new, prompt, trained_title),
        )

    def _added_at_with(self, new: Mapping[int, Item]) -> NDArray[np.int64]:
        found = np.zeros(max(len(self.added_at), max(new, default=-1) + 1), dtype=np.int64)
        found[: len(self.added_at)] = self.added_at
        found[list(new)] = [item.added_at or 0 for item in new.values()]
        return found

    def _by_arrival_with(self, added_at: NDArray[np.int64], changed: NDArray[np.int64]) -> NDArray[np.int32]:
        """Items usually come later than all before them, so nothing is sorted again."""
        known = changed[changed < len(self.added_at)]
        moved = known[added_at[known] != self.added_at[known]]
        came = np.concatenate([moved, changed[changed >= len(self.added_at)]])
        came = _newest_first(came[added_at[came] > 0], added_at)
        left = self.by_arrival[~np.isin(self.by_arrival, moved)] if len(moved) else self.by_arrival
        found = np.concatenate([came, left])
        is_sorted = not len(came) or not len(left) or added_at[came[-1]] > added_at[left[0]]
        return found if is_sorted else _newest_first(found, added_at)

    def recounted(self, live: NDArray[np.float64]) -> "Columns":
        """A copy with other numbers `live` (N,) of events since training."""
        return replace(self, live=live, by_popularity=_falling(self.popularity + live))

    def _by_popularity_with(self, added: NDArray[np.int64]) -> NDArray[np.int32]:
        order = np.argsort(-added, kind="stable")
        if len(added) > _FEW:
            falling = self.popularity[self.by_popularity] + self.live[self.by_popularity]
            places = np.searchsorted(-falling, -added[order], side="right").tolist()
        else:
            place = partial(bisect_right, range(len(self.popularity)), key=self._unpopularity_at)
            places = [place(-count) for count in added[order].tolist()]
        return np.insert(self.by_popularity, places, (len(self.popularity) + order).astype(np.int32))

    def first_with_at_most(self, num_events: int) -> int:
        """The first place of `by_popularity` whose item has at most so many events."""
        return bisect_left(range(len(self.popularity)), -float(num_events), key=self._unpopularity_at)

    def _unpopularity_at(self, place: int) -> float:
        """Minus the popularity at a place of `by_popularity`: in ascending order, as bisect needs."""
        row = self.by_popularity[place]
        return -float(self.popularity[row] + self.live[row])

    def arrays(self, titles: Sequence[str], prompt: Prompt) -> dict[str, NDArray[Any]]:
        """The columns as arrays for a file; `read` is the inverse.

        If tokens differ between processes, the text of the titles is saved instead of their tokens.
        """
        if self.trie is None:
            raise ValueError("columns without a trie cannot be saved")
        paths = self.trie.paths
        if prompt.has_stable_tokens:
            by_title: dict[str, NDArray[Any]] = {"order": paths.order, "tokens": paths.tokens}
        else:
            by_title = {"titles": json_array(titles)}
        return {
            "ids": json_array(list(self.rows)),
            "popularity": self.popularity,
            "by_popularity": self.by_popularity,
            "added_at": self.added_at,
            **self.availability._asdict(),
            **self.postings().arrays(),
            **by_title,
        }

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]], prompt: Prompt | None) -> Self:
        """The columns of the arrays from `arrays`. Raises ValueError or KeyError if they do not fit together."""
        rows = Rows({item_id: row for row, item_id in enumerate(json.loads(arrays["ids"].tobytes()))})
        paths = None if prompt is None else _read_paths(arrays, prompt)
        postings = Postings.read(arrays)
        availability = Availability(*(arrays[name] for name in Availability._fields))
        popularity, by_popularity = arrays["popularity"], arrays["by_popularity"]
        added_at = arrays.get("added_at", np.zeros(len(rows), dtype=np.int64))  # an earlier release did not save it
        lengths = {len(popularity), len(by_popularity), len(added_at), len(availability.always)}
        if lengths | ({len(paths)} if paths is not None else set()) != {len(rows)}:
            raise ValueError("columns of different lengths")
        return cls(
            rows=rows,
            popularity=popularity,
            live=np.zeros(len(rows)),
            by_popularity=by_popularity,
            added_at=added_at,
            by_arrival=_newest_first(np.flatnonzero(added_at), added_at),
            availability=availability,
            postings=lambda: postings,
            attributes=_attributes_of(lambda: postings),
            changed_attributes=Attributes(),
            trie=None if paths is None else Trie(paths),
        )


def _falling(values: NDArray[np.number]) -> NDArray[np.int32]:
    return np.argsort(-values, kind="stable").astype(np.int32)


def _newest_first(rows: NDArray[np.integer], added_at: NDArray[np.int64]) -> NDArray[np.int32]:
    return rows[np.lexsort((-rows, -added_at[rows]))].astype(np.int32)


def _attributes_of(postings: Callable[[], Postings]) -> Callable[[], Attributes]:
    """Counted when they are asked for: a million values take a second."""
    return cache(lambda: Attributes().plus(postings().counted()))


def postings_of(items: Mapping[int, Item]) -> Postings:
    return Postings.of((row, item.attributes) for row, item in items.items())


def _paths(titles: Sequence[str], prompt: Prompt) -> Paths:
    return Paths.from_flat(*prompt.tokens_of_titles(titles))


def _tokens(titles: Sequence[str], prompt: Prompt) -> list[Sequence[int]]:
    """If there are few titles, the model has just read most of them, and the prompt keeps their tokens."""
    if len(titles) <= _FEW:
        return [prompt.title_tokens(title) for title in titles]
    flat, counts = prompt.tokens_of_titles(titles)
    return [part.tolist() for part in np.split(flat, np.cumsum(counts)[:-1])]


def _read_paths(arrays: Mapping[str, NDArray[Any]], prompt: Prompt) -> Paths:
    if prompt.has_stable_tokens:
        return Paths.from_table(arrays["order"], arrays["tokens"])
    return _paths(json.loads(arrays["titles"].tobytes()), prompt)


def _trie_with(
    trie: Trie,
    old: Mapping[int, Item],
    new: Mapping[int, Item],
    prompt: Prompt,
    trained_title: Callable[[int], str | None],
) -> Trie:
    """The trie with the titles of `new`; the same object when no title changed."""
    moved = [row for row in new if row not in old or old[row].title != new[row].title]
    if not moved:
        return trie
    paths = trie.paths.replaced(np.array(moved, dtype=np.int64), _tokens([new[row].title for row in moved], prompt))
    is_new = np.zeros(len(paths), dtype=bool)
    if trie.is_new is not None:
        is_new[: len(trie.is_new)] = trie.is_new
    if prompt.has_stable_tokens:  # a title that is one token is scored as those of training are
        is_new[moved] = [trained_title(row) != new[row].title for row in moved]
    changed = Trie(paths, is_new)
    changed.children(changed.root)  # cached now, so that the first request does not wait for it
    return changed
