"""A user's newest events as the model sees them: the recent window, the memory elements, the states still to be made.

The one place where the store's main law is kept: what is memory, and whether a stored state is still that of its
window, depends on the event log and the catalogue alone, never on the order of arrival. Knows neither Redis nor torch.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.text.history import window_ending_at, window_fingerprint
from service.store.events import Event, Remembered


class Memory(NamedTuple):
    """Events with valid states, oldest first: `states` (M, D) float16."""

    events: list[Event]
    states: NDArray[np.float16]


class Unencoded(NamedTuple):
    """One event whose state is missing, or that of another window; its window's titles and fingerprint."""

    event: Event
    titles: Sequence[str]
    fingerprint: bytes
    is_stale: bool


def events_needed(bundle: Bundle) -> int:
    """How many of the newest events decide about recent window and memory: K + M, and K − 1 for the oldest's window."""
    return states_kept(bundle) + bundle.prompt.spec.recent_length - 1


def states_kept(bundle: Bundle) -> int:
    """How many of the newest events have a state: the recent ones too, since they become memory next."""
    return bundle.prompt.spec.recent_length + bundle.manifest.memory.max_elements


class Timeline:
    """Made from what `MemoryStore.recall` returned for `events_needed`. Events of unknown items are left out."""

    def __init__(self, remembered: Sequence[Remembered], bundle: Bundle) -> None:
        titles = titles_of([part.event.item_id for part in remembered], bundle)
        places = [place for place, title in enumerate(titles) if title]
        self.events = [remembered[place].event for place in places]
        self.titles = [titles[place] for place in places]
        self._recent_length = bundle.prompt.spec.recent_length
        self._max_memory = bundle.manifest.memory.max_elements
        # Where older events were not recalled, the windows of the first K − 1 may be cut short: those have no state.
        num_cut = self._recent_length - 1 if len(remembered) >= events_needed(bundle) else 0
        self._first = min(max(num_cut, len(places) - states_kept(bundle)), len(places))
        self.num_kept = len(remembered) - places[self._first] if self._first < len(places) else 0
        # Of the events from `_first` on:
        self._records = [remembered[place].record for place in places[self._first :]]
        self._decoded = bundle.codec.decode_many(self._records)

    def memory(self, *, num_recent: int | None = None) -> Memory:
        """Elements older than the newest `num_recent` events (K when None)."""
        kept = self._memory_slice(self._recent_length if num_recent is None else num_recent)
        rows = np.arange(len(self._records))[kept][self._is_valid[kept]]
        return Memory([self.events[self._first + row] for row in rows.tolist()], self._decoded.states[rows])

    def is_incomplete(self) -> bool:
        """Whether an event that is memory by now has no valid state: lost, stale, or never made in this space."""
        return not self._is_valid[self._memory_slice(self._recent_length)].all()

    def unencoded(self) -> list[Unencoded]:
        """What a worker has to do for this user."""
        return [
            Unencoded(
                event=self.events[self._first + row],
                titles=self._window(row),
                fingerprint=self._fingerprints[row],
                is_stale=self._records[row] is not None,
            )
            for row in np.flatnonzero(~self._is_valid).tolist()
        ]

    def _memory_slice(self, num_recent: int) -> slice:
        """Of `_records`."""
        end = max(0, len(self._records) - num_recent)
        return slice(max(0, end - self._max_memory), end)

    def _window(self, row: int) -> Sequence[str]:
        return window_ending_at(self.titles, self._first + row, self._recent_length)

    @cached_property
    def _fingerprints(self) -> list[bytes]:
        return [window_fingerprint(self._window(row)) for row in range(len(self._records))]

    @cached_property
    def _is_valid(self) -> NDArray[np.bool_]:
        """Whether there is a state, it is readable, and it was made from the window of today."""
        of_windows = np.frombuffer(b"".join(self._fingerprints), dtype="<u8")
        is_valid: NDArray[np.bool_] = self._decoded.is_valid & (self._decoded.fingerprints == of_windows)
        return is_valid


def title_of(item_id: str, bundle: Bundle) -> str:
    """ "" for an item that the catalogue does not know."""
    return titles_of([item_id], bundle)[0]


def titles_of(item_ids: Sequence[str], bundle: Bundle) -> list[str]:
    """As `title_of` of each."""
    catalogue = bundle.catalogue
    items, rows = catalogue.items, map(catalogue.rows.get, item_ids)
    return [items[row].title if row is not None else "" for row in rows]
