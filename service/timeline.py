"""A user's newest events as the model sees them: the recent window, the memory elements, the states still to be made.

The one place where the store's main law is kept: what is memory, and whether a stored state is still that of its
window, depends on the event log and the catalogue alone, never on the order of arrival. Knows neither Redis nor torch.
"""

from collections.abc import Sequence
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
    return states_kept(bundle) + bundle.prompt.spec.recent_length - 1


def states_kept(bundle: Bundle) -> int:
    """How many of the newest events have a state: the recent ones too, since they become memory next."""
    return bundle.prompt.spec.recent_length + bundle.manifest.memory.max_elements


class Timeline:
    """Made from what `MemoryStore.recall` returned for `events_needed`. Events of unknown items are left out."""

    def __init__(self, remembered: Sequence[Remembered], bundle: Bundle) -> None:
        places = [place for place, part in enumerate(remembered) if part.event.item_id in bundle.catalogue.rows]
        self.events = [remembered[place].event for place in places]
        self.titles = [title_of(event.item_id, bundle) for event in self.events]
        self._records = [remembered[place].record for place in places]
        self._codec = bundle.codec
        self._recent_length = bundle.prompt.spec.recent_length
        self._max_memory = bundle.manifest.memory.max_elements
        self._states: dict[int, NDArray[np.float16] | None] = {}
        # Where older events were not recalled, the windows of the first K − 1 may be cut short: those have no state.
        num_cut = self._recent_length - 1 if len(remembered) >= events_needed(bundle) else 0
        self._first = min(max(num_cut, len(places) - states_kept(bundle)), len(places))
        self.num_kept = len(remembered) - places[self._first] if self._first < len(places) else 0

    def memory(self, *, num_recent: int | None = None) -> list[Element]:
        """Elements older than the newest `num_recent` events (K when None), oldest first."""
        positions = self._memory_positions(self._recent_length if num_recent is None else num_recent)
        states = ((position, self._state(position)) for position in positions)
        return [Element(self.events[position], state) for position, state in states if state is not None]

    def is_incomplete(self) -> bool:
        """Whether an event that is memory by now has no valid state: lost, stale, or never made in this space."""
        return any(self._state(position) is None for position in self._memory_positions(self._recent_length))

    def unencoded(self) -> list[Unencoded]:
        """What a worker has to do for this user."""
        return [
            Unencoded(
                event=self.events[position],
                titles=self._window(position),
                fingerprint=window_fingerprint(self._window(position)),
                is_stale=self._records[position] is not None,
            )
            for position in range(self._first, len(self.events))
            if self._state(position) is None
        ]

    def _memory_positions(self, num_recent: int) -> range:
        end = max(0, len(self.events) - num_recent)
        return range(max(self._first, end - self._max_memory), end)

    def _window(self, position: int) -> Sequence[str]:
        return window_ending_at(self.titles, position, self._recent_length)

    def _state(self, position: int) -> NDArray[np.float16] | None:
        if position not in self._states:
            self._states[position] = self._decode(position)
        return self._states[position]

    def _decode(self, position: int) -> NDArray[np.float16] | None:
        """None when there is none, when it is not readable, or when it was made from another window."""
        record = self._records[position]
        if record is None:
            return None
        try:
            state, fingerprint = self._codec.decode(record)
        except StateCorrupt:
            return None
        return state if fingerprint == window_fingerprint(self._window(position)) else None


def title_of(item_id: str, bundle: Bundle) -> str:
    """ "" for an item that the catalogue does not know."""
    row = bundle.catalogue.rows.get(item_id)
    return bundle.catalogue.items[row].title if row is not None else ""
