"""A user's newest events as the model reads them: the recent window, the memory, the states that are missing.

This module enforces the main rule of memory: only the event log and the catalogue decide which events are memory and
whether a stored state belongs to its window. The order of arrival does not matter. Knows neither Redis nor torch.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.view import BundleView
from service.store.events import Event, Remembered


class Memory(NamedTuple):
    """Events with valid states, oldest first, their titles, and their `states` (M, D) float16."""

    events: list[Event]
    titles: list[str]
    states: NDArray[np.float16]


class MissingState(NamedTuple):
    """An event whose state is missing or was made from another window, and the titles and fingerprint of its window."""

    event: Event
    titles: Sequence[str]
    fingerprint: bytes
    is_stale: bool


def events_needed(view: BundleView) -> int:
    """Number of newest events that determine window and memory: K + M, and K − 1 for the window of the oldest."""
    return states_kept(view) + view.manifest.prompt.recent_length - 1


def states_kept(view: BundleView) -> int:
    """Number of newest events that have a state. Recent events have one too, because they become memory next."""
    return view.manifest.prompt.recent_length + view.manifest.memory.max_elements


class Timeline:
    """Made from what `MemoryStore.recall` returns for `events_needed`. Events of unknown items are left out."""

    def __init__(self, remembered: Sequence[Remembered], view: BundleView) -> None:
        titles = view.catalogue.titles([part.event.item_id for part in remembered])
        places = [place for place, title in enumerate(titles) if title]
        self.events = [remembered[place].event for place in places]
        self.titles = [titles[place] for place in places]
        self._recent_length = view.manifest.prompt.recent_length
        self._max_memory = view.manifest.memory.max_elements
        num_states = self._recent_length + self._max_memory
        # If older events were not recalled, the windows of the first K − 1 events are incomplete: these have no state.
        num_cut = self._recent_length - 1 if len(remembered) >= num_states + self._recent_length - 1 else 0
        self._first = min(max(num_cut, len(places) - num_states), len(places))
        self.num_kept = len(remembered) - places[self._first] if self._first < len(places) else 0
        self._records = [remembered[place].record for place in places[self._first :]]
        self._decoded = view.codec.decode_many(self._records)
        self._fingerprints = [window_fingerprint(self._window(row)) for row in range(len(self._records))]
        of_windows = np.frombuffer(b"".join(self._fingerprints), dtype="<u8")
        # (R,) bool: whether a record is readable and was made from the window as it is today.
        self._is_valid: NDArray[np.bool_] = self._decoded.is_valid & (self._decoded.fingerprints == of_windows)
        # Whether an event of the memory has no valid state: lost, stale, or not yet encoded in this space.
        self.is_incomplete = not self._is_valid[self._memory_rows(self._recent_length)].all()

    def memory(self, *, num_recent: int | None = None) -> Memory:
        """Memory elements: valid states of the events before the newest `num_recent` events (K when None)."""
        elements = self._memory_rows(self._recent_length if num_recent is None else num_recent)
        rows = np.arange(len(self._records))[elements][self._is_valid[elements]]
        places = [self._first + row for row in rows.tolist()]
        events, titles = [self.events[place] for place in places], [self.titles[place] for place in places]
        return Memory(events, titles, self._decoded.states[rows])

    def missing_states(self) -> list[MissingState]:
        """The states that a worker has to make for this user."""
        return [
            MissingState(
                event=self.events[self._first + row],
                titles=self._window(row),
                fingerprint=self._fingerprints[row],
                is_stale=self._records[row] is not None,
            )
            for row in np.flatnonzero(~self._is_valid).tolist()
        ]

    def _window(self, row: int) -> Sequence[str]:
        """The titles of the window that ends at an event: the last K up to and including it."""
        end = self._first + row + 1
        return self.titles[max(0, end - self._recent_length) : end]

    def _memory_rows(self, num_recent: int) -> slice:
        """A slice of `_records`."""
        end = max(0, len(self._records) - num_recent)
        return slice(max(0, end - self._max_memory), end)


def window_fingerprint(titles: Sequence[str]) -> bytes:
    """8 bytes that change when the text of a window does: a stored state with another fingerprint is stale."""
    return hashlib.blake2b("\n".join(titles).encode(), digest_size=8).digest()
