"""Which items satisfy a condition, as a mask over the rows of a catalogue.

In: a catalogue and a `Condition`. Out: (N,) bool. The items of the bundle are answered from sorted values and postings,
which are made once for each attribute; items that changed since are tested one by one. Masks are kept by condition, and
a catalogue that changed in a few items renews the rows of these items only.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.conditions import (
    OWN_NAMES,
    Among,
    Between,
    Comparison,
    Condition,
    Every,
    Exists,
    Not,
    Some,
    StartsWith,
)
from model_store.catalogue.items import ItemList
from model_store.catalogue.sorted_values import Rows, SortedValues

Mask = NDArray[np.bool_]

_MASKS_BYTES = 64 * 2**20
_MOST_MASKS = 1000


class _Kept(NamedTuple):
    """A mask of a catalogue with these items."""

    mask: Mask
    items: ItemList


class Filters:
    """Masks of conditions for the snapshots of one catalogue. Threads may share it."""

    def __init__(self) -> None:
        self._base: _BaseValues | None = None
        self._kept: OrderedDict[Condition, _Kept] = OrderedDict()

    def is_cheap(self, catalogue: Catalogue, condition: Condition) -> bool:
        """Whether `mask` has to look at changed items only. Otherwise it may take long: call it in a thread."""
        return condition in self._kept and self._base is not None and self._base.is_of(catalogue)

    def mask(self, catalogue: Catalogue, condition: Condition) -> Mask:
        """(N,) bool: the items that satisfy `condition`. Do not change it."""
        base = self._base
        if base is None or not base.is_of(catalogue):
            base = self._base = _BaseValues(catalogue)
            self._kept.clear()
        items = catalogue.items
        kept = self._kept.get(condition)
        if kept is not None and kept.items is items:
            self._kept.move_to_end(condition)
            return kept.mask
        mask = np.zeros(len(items), dtype=bool)
        if kept is None:
            mask[: base.num_items] = base.mask(condition)
            changed: Iterable[int] = items.changed
        else:
            mask[: len(kept.mask)] = kept.mask[: len(mask)]
            changed = items.changed_since(kept.items)
        for row in changed:
            if row < len(mask):  # `kept` may be of a later catalogue
                mask[row] = condition.holds(items[row])
        self._keep(condition, _Kept(mask, items))
        return mask

    def _keep(self, condition: Condition, kept: _Kept) -> None:
        most = min(_MOST_MASKS, max(8, _MASKS_BYTES // max(1, len(kept.mask))))
        self._kept[condition] = kept
        self._kept.move_to_end(condition)
        while len(self._kept) > most:
            self._kept.popitem(last=False)


class _BaseValues:
    """The values of the items that a catalogue was opened with, which no change touches."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._items = catalogue.items.base
        self._postings = catalogue.postings
        self.num_items = len(self._items)
        self._texts: dict[str, SortedValues] = {}
        self._numbers: dict[str, SortedValues] = {}

    def is_of(self, catalogue: Catalogue) -> bool:
        return catalogue.items.base is self._items

    def mask(self, condition: Condition) -> Mask:
        if isinstance(condition, Every | Some):
            join = np.logical_and if isinstance(condition, Every) else np.logical_or
            start = np.full(self.num_items, isinstance(condition, Every))
            for part in condition.parts:
                join(start, self.mask(part), out=start)
            return start
        if isinstance(condition, Not):
            return ~self.mask(condition.part)
        found = np.zeros(self.num_items, dtype=bool)
        for rows in self._rows(condition):
            found[rows] = True
        return found

    def _rows(self, leaf: Comparison) -> Sequence[Rows]:
        if isinstance(leaf, Among):
            own = leaf.name in OWN_NAMES
            texts = [typed.value for typed in leaf.values if own and typed.kind == "text"]
            found: list[Rows] = [self._sorted(leaf.name, "text").equal(text) for text in texts]
            return found + list(self._postings().rows(leaf.name, [typed.value for typed in leaf.values]))
        if isinstance(leaf, Between):
            return [self._sorted(leaf.name, leaf.kind).between(leaf.low, leaf.high)]
        if isinstance(leaf, StartsWith):
            return [self._sorted(leaf.name, "text").starting(leaf.text)]
        return self._having(leaf)

    def _having(self, leaf: Exists) -> Sequence[Rows]:
        if leaf.name in OWN_NAMES:
            return [np.arange(self.num_items)]
        return [rows for _, rows in self._postings().values(leaf.name)]

    def _sorted(self, name: str, kind: str) -> SortedValues:
        known = self._texts if kind == "text" else self._numbers
        if name not in known:
            known[name] = self._sort(name, kind)
        return known[name]

    def _sort(self, name: str, kind: str) -> SortedValues:
        wanted = str if kind == "text" else (int, float)
        found = [
            (value, rows)
            for value, rows in self._postings().values(name)
            if isinstance(value, wanted) and not isinstance(value, bool) and value == value  # NaN has no place
        ]
        if name not in OWN_NAMES or kind != "text":
            return SortedValues.of(found)
        own = [getattr(item, name) for item in self._items]
        if not found:
            return SortedValues.of_texts(own)
        return SortedValues.of([*found, *((text, np.array([row])) for row, text in enumerate(own))])
