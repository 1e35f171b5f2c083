"""A user's events as the model sees them: the recent window, the memory elements, the states still to be made.

The one place where the store's main law is kept: what is memory, and whether a stored state is still that of its
window, depends on the event log and the catalogue alone, never on the order of arrival. Knows neither Redis nor torch.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.errors import StateCorrupt
from model_store.history import window_ending_at, window_fingerprint
from service.events import Event, Remembered


class Element(NamedTuple):
    """One event with a valid state (D,) float16."""

    event: Event
    state: NDArray[np.float16]


class Unencoded(NamedTuple):
    """One event whose state is missing, or that of another window; its window's titles and fingerprint."""

    event: Event
    titles: Sequence[str]
    fingerprint: bytes
    is_stale: bool


def events_needed(bundle: Bundle) -> int:
    """How many of the newest events decide about recent window and memory: K + M, and K − 1 for the oldest's window."""
    return 2 * bundle.prompt.spec.recent_length + bundle.manifest.memory.max_elements - 1


def states_kept(bundle: Bundle) -> int:
    """How many of the newest events have a state: the recent ones too, since they become memory next."""
    return bundle.prompt.spec.recent_length + bundle.manifest.memory.max_elements


class Timeline:
    """Made from what `MemoryStore.recall` returned. Events of items that the catalogue does not know are left out."""

    def __init__(self, remembered: Sequence[Remembered], bundle: Bundle) -> None:
        known = [part for part in remembered if part.event.item_id in bundle.catalogue.rows]
        self.events = [part.event for part in known]
        self.titles = [title_of(event.item_id, bundle) for event in self.events]
        self._records = [part.record for part in known]
        self._codec = bundle.codec
        self._recent_length = bundle.prompt.spec.recent_length
        self._max_memory = bundle.manifest.memory.max_elements
        self._state = lru_cache(maxsize=None)(self._decode)

    def memory(self, *, num_newer: int = 0) -> list[Element]:
        """Elements older than the K recent ones, oldest first; `num_newer` events came after those of the store."""
        states = ((position, self._state(position)) for position in self._memory_positions(num_newer))
        return [Element(self.events[position], state) for position, state in states if state is not None]

    def is_incomplete(self) -> bool:
        """Whether an event that is memory by now has no valid state: lost, stale, or never made in this space."""
        return any(self._state(position) is None for position in self._memory_positions(0))

    def unencoded(self) -> list[Unencoded]:
        """What a worker has to do for this user."""
        first = max(0, len(self.events) - self._recent_length - self._max_memory)
        return [
            Unencoded(
                event=self.events[position],
                titles=window_ending_at(self.titles, position, self._recent_length),
                fingerprint=self._fingerprint(position),
                is_stale=self._records[position] is not None,
            )
            for position in range(first, len(self.events))
            if self._state(position) is None
        ]

    def _memory_positions(self, num_newer: int) -> range:
        end = max(0, len(self.events) + num_newer - self._recent_length)
        return range(max(0, end - self._max_memory), min(end, len(self.events)))

    def _fingerprint(self, position: int) -> bytes:
        return window_fingerprint(window_ending_at(self.titles, position, self._recent_length))

    def _decode(self, position: int) -> NDArray[np.float16] | None:
        """None when there is none, when it is not readable, or when it was made from another window."""
        record = self._records[position]
        if record is None:
            return None
        try:
            state, fingerprint = self._codec.decode(record)
        except StateCorrupt:
            return None
        return state if fingerprint == self._fingerprint(position) else None


def title_of(item_id: str, bundle: Bundle) -> str:
    """ "" for an item that the catalogue does not know."""
    row = bundle.catalogue.rows.get(item_id)
    return bundle.catalogue.items[row].title if row is not None else ""
