"""A user's newest events as the model reads them: the recent window, the memory, the past, the states that are missing.

    oldest ───────────────────────────────────────────────────────────── newest
    past   ████████████████████████████████████████████████████████████████████   what the voices read
    memory                      ██████████████████████████████                    M, with valid states
    window                                                    ██████████████████   K, the prompt

This module enforces the main rule of memory: only the event log and the catalogue decide which events are memory and
whether a stored state belongs to its window. The order of arrival does not matter. Knows neither Redis nor torch.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.answers import PastRows
from model_store.event_types import EventRule, EventTypes
from model_store.view import BundleView
from service.store.events import Event, Remembered

T = TypeVar("T")


class Memory(NamedTuple):
    """Events with valid states, oldest first, their titles, and their `states` (M, D) float16."""

    events: list[Event]
    titles: list[str]
    states: NDArray[np.float16]


def empty_memory(view: BundleView) -> Memory:
    return Memory([], [], np.zeros((0, view.manifest.backbone.hidden_size), dtype=np.float16))


class MissingState(NamedTuple):
    """An event whose state is missing or was made from another window, and the titles and fingerprint of its window."""

    event: Event
    titles: Sequence[str]
    fingerprint: bytes
    is_stale: bool


class SessionItem(NamedTuple):
    """An item of the caller's session. Without a timestamp it is newer than all stored events."""

    item_id: str
    timestamp: int | None = None


class Known(NamedTuple):
    """What the model is told of a user at the time of a request.

    `recent`: titles of the window, oldest first. `past`: what the voices read, empty where the bundle has no voices.
    `past_events` (n,): the stored events and items of the session behind its rows. `is_incomplete`: see `Timeline`.
    """

    recent: list[str]
    memory: Memory
    past: PastRows
    past_events: Sequence[Event | SessionItem]
    is_incomplete: bool


def known_of(
    remembered: Sequence[Remembered], view: BundleView, now: int, session: Sequence[SessionItem] = ()
) -> Known:
    """From what `MemoryStore.recall` returns for `events_needed` and `states_needed`; see `Timeline.known`."""
    return Timeline(remembered, view, with_states=states_needed(view) > 0).known(now, session)


def recent_only(known: Known, view: BundleView) -> Known:
    """The same without memory: the newest K events alone."""
    length = view.manifest.prompt.recent_length
    past = PastRows(known.past.rows[-length:], known.past.timestamps[-length:], known.past.now)
    return known._replace(memory=empty_memory(view), past=past, past_events=known.past_events[-length:])


def states_kept(view: BundleView) -> int:
    """Number of newest events that have a state. Recent events have one too, because they become memory next."""
    return view.manifest.prompt.recent_length + view.manifest.memory.max_elements


def events_with_states(view: BundleView) -> int:
    """Number of newest events that determine window and memory: K + M, and K − 1 for the window of the oldest."""
    return states_kept(view) + view.manifest.prompt.recent_length - 1


def events_needed(view: BundleView) -> int:
    """Number of newest events that a recommendation reads: those that determine the memory, or more for the voices."""
    return max(events_with_states(view), _past_length(view))


def states_needed(view: BundleView) -> int:
    """Number of newest events whose states a recommendation reads: none where the retriever never picks one."""
    return 0 if view.manifest.retriever.always_abstains else events_with_states(view)


def _past_length(view: BundleView) -> int:
    return view.manifest.voices.past_length if view.manifest.voices else 0


class Timeline:
    """Made from what `MemoryStore.recall` returns for `events_with_states` or more events.

    Events of unknown items are left out. Older events than `events_with_states` are past only: their states are not
    looked at, so memory does not depend on how many events were recalled. Without `with_states`, memory is empty and
    no state is missing.
    """

    def __init__(self, remembered: Sequence[Remembered], view: BundleView, *, with_states: bool = True) -> None:
        self._view = view
        beyond, remembered = _parted(remembered, events_with_states(view))
        self._beyond = [part.event for part in beyond if part.event.item_id in view.catalogue.rows]
        titles = view.catalogue.titles([part.event.item_id for part in remembered])
        places = [place for place, title in enumerate(titles) if title]
        self._interest = [remembered[place].event for place in places]
        if view.event_types.parts_memory:
            places = [place for place in places if self._rule(remembered[place].event).memory]
        self.events = [remembered[place].event for place in places]
        self.titles = [titles[place] for place in places]
        self._recent_length = view.manifest.prompt.recent_length
        self._max_memory = view.manifest.memory.max_elements
        num_states = self._recent_length + self._max_memory
        # If older events were not recalled, the windows of the first K − 1 events are incomplete: these have no state.
        num_cut = self._recent_length - 1 if len(remembered) >= num_states + self._recent_length - 1 else 0
        self._first = min(max(num_cut, len(places) - num_states), len(places)) if with_states else len(places)
        self.num_kept = len(remembered) - places[self._first] if self._first < len(places) else 0
        self._records = [remembered[place].record for place in places[self._first :]]
        self._decoded = view.codec.decode_many(self._records)
        self._fingerprints = [window_fingerprint(self._window(row)) for row in range(len(self._records))]
        of_windows = np.frombuffer(b"".join(self._fingerprints), dtype="<u8")
        # (R,) bool: whether a record is readable and was made from the window as it is today.
        self._is_valid: NDArray[np.bool_] = self._decoded.is_valid & (self._decoded.fingerprints == of_windows)
        # Whether an event of the memory has no valid state: lost, stale, or not yet encoded in this space.
        self.is_incomplete = not self._is_valid[self._memory_rows(self._window_of(self._interest))].all()

    def known(self, now: int, session: Sequence[SessionItem] = ()) -> Known:
        """Window, memory and past at the time `now`, with the items of the session among the stored events, by time.

        Session items without a timestamp come last, at `now` and the seconds before it, so that their order is kept.
        """
        session = [item for item in session if item.item_id in self._view.catalogue.rows]
        if session:
            return self._known_with(session, now)
        events = self.past(_past_length(self._view))
        past = self._past_rows(events, [event.timestamp for event in events], now)
        titles = self._view.catalogue.titles([event.item_id for event in self._window_of(self._interest)])
        return Known(titles, self.memory(), past, events, self.is_incomplete)

    def _known_with(self, session: Sequence[SessionItem], now: int) -> Known:
        times, together = merged([*self._beyond, *self._interest], session, now)
        window, length = self._window_of(together), min(_past_length(self._view), len(together))
        past = together[len(together) - length :]
        return Known(
            recent=self._view.catalogue.titles([each.item_id for each in window]),
            memory=self.memory(window),
            past=self._past_rows(past, times[len(together) - length :], now),
            past_events=past,
            is_incomplete=self.is_incomplete,
        )

    def past(self, num: int) -> list[Event]:
        """The newest `num` events of interest, oldest first, whether they have a state or not."""
        if num <= len(self._interest):
            return self._interest[len(self._interest) - num :]
        return self._beyond[len(self._beyond) - min(num - len(self._interest), len(self._beyond)) :] + self._interest

    def memory(self, window: Sequence[Event | SessionItem] | None = None) -> Memory:
        """Memory elements: valid states of the newest events that are not in `window` (that of the stored events)."""
        elements = self._memory_rows(self._window_of(self._interest) if window is None else window)
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

    def _past_rows(self, events: Sequence[Event | SessionItem], times: list[int], now: int) -> PastRows:
        rows = self._view.catalogue.rows
        weights = weights_of(events, self._view.event_types)
        return PastRows([rows[event.item_id] for event in events], times, now, weights)

    def _window(self, row: int) -> Sequence[str]:
        """The titles of the window that ends at an event: the last K up to and including it."""
        end = self._first + row + 1
        return self.titles[max(0, end - self._recent_length) : end]

    def _window_of(self, events: Sequence[T]) -> Sequence[T]:
        """The newest K of these events that may be in the window, oldest first."""
        if self._view.event_types.parts_memory:
            events = [each for each in events if not isinstance(each, Event) or self._rule(each).window]
        return events[-self._recent_length :]

    def _memory_rows(self, window: Sequence[Event | SessionItem]) -> slice | NDArray[np.int64]:
        """Rows of `_records`: the newest M of the events that are not in the window."""
        stored = [each for each in window if isinstance(each, Event)]
        if not self._view.event_types.parts_memory:  # the window is the end of the events
            end = max(0, len(self._records) - len(stored))
            return slice(max(0, end - self._max_memory), end)
        in_window = {each.event_id for each in stored}
        events = self.events[self._first :]
        rows = [row for row, event in enumerate(events) if event.event_id not in in_window]
        return np.array(rows[max(0, len(rows) - self._max_memory) :], dtype=np.int64)

    def _rule(self, event: Event) -> EventRule:
        return self._view.event_types.rule(event.type, event.value)


def weights_of(events: Sequence[Event | SessionItem], types: EventTypes) -> Sequence[float]:
    """How much each event counts; empty where each counts 1, as items of a session do."""
    found = [types.rule(each.type, each.value).weight if isinstance(each, Event) else 1.0 for each in events]
    return () if all(weight == 1 for weight in found) else found


def against_of(events: Sequence[Event], view: BundleView) -> list[tuple[int, float]]:
    """Catalogue rows, and how strongly these events speak against their items."""
    rows, found = view.catalogue.rows, dict[int, float]()
    for event in events:
        if event.item_id in rows:
            row = rows[event.item_id]
            found[row] = found.get(row, 0.0) - view.event_types.rule(event.type, event.value).weight
    return [(row, weight) for row, weight in found.items() if weight > 0]


def merged(
    events: Sequence[Event], session: Sequence[SessionItem], now: int
) -> tuple[list[int], list[Event | SessionItem]]:
    """Times that do not fall, and the events and items at these times. What is in both counts once, as an event."""
    stored = {(event.item_id, event.timestamp) for event in events}
    timed: list[tuple[int, Event | SessionItem]] = [(event.timestamp, event) for event in events]
    timed += [(item.timestamp, item) for item in session if item.timestamp is not None and tuple(item) not in stored]
    timed.sort(key=lambda pair: pair[0])  # stored events of one time keep their order
    newest = timed[-1][0] if timed else 0
    last = [item for item in session if item.timestamp is None]
    timed += [(max(newest, now - left), item) for left, item in zip(range(len(last))[::-1], last, strict=True)]
    return [at for at, _ in timed], [each for _, each in timed]


def _parted(remembered: Sequence[Remembered], num_newest: int) -> tuple[Sequence[Remembered], Sequence[Remembered]]:
    start = max(0, len(remembered) - num_newest)
    return remembered[:start], remembered[start:]


def window_fingerprint(titles: Sequence[str]) -> bytes:
    """8 bytes that change when the text of a window does: a stored state with another fingerprint is stale."""
    return hashlib.blake2b("\n".join(titles).encode(), digest_size=8).digest()
