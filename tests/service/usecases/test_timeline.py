"""Which events are recent, memory, or still to be encoded: a function of the log and the catalogue alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_store.bundle import Bundle
from model_store.event_types import EventTypes, TypeRule
from model_store.text.history import window_ending_at
from service.store.events import Event, Remembered
from service.usecases.timeline import Timeline, events_with_states, states_kept, window_fingerprint
from tests.service.real import K, M


def remembered(bundle: Bundle, item_ids: list[str], *, encoded: set[int], limit: int | None = None) -> list[Remembered]:
    """What `recall` gives for a log of these items, the events of `encoded` positions with their right states."""
    titles = bundle.catalogue.titles(item_ids)
    parts = []
    for position, name in enumerate(item_ids):
        fingerprint = window_fingerprint(window_ending_at(titles, position, K))
        record = bundle.codec.encode(np.full(32, position, dtype=np.float16), fingerprint)
        parts.append(Remembered(Event(f"e{position}", "u", name, position), record if position in encoded else None))
    return parts[-(limit or events_with_states(bundle)) :]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 40), st.sets(st.integers(0, 40)))
def test_every_event_is_recent_or_memory_or_too_old(bundle: Bundle, count: int, encoded: set[int]) -> None:
    timeline = Timeline(remembered(bundle, [f"i{n % 9}" for n in range(count)], encoded=encoded), bundle)
    memory = range(max(0, count - K - M), max(0, count - K))
    assert timeline.memory().states[:, 0].tolist() == [n for n in memory if n in encoded]
    assert timeline.is_incomplete == any(n not in encoded for n in memory)
    kept = range(max(0, count - K - M), count)
    assert [todo.event.event_id for todo in timeline.missing_states()] == [f"e{n}" for n in kept if n not in encoded]
    assert timeline.num_kept == len(kept) <= states_kept(bundle)


@pytest.mark.parametrize("spoil", ["window", "space", "bytes", "not finite"])
def test_a_state_that_is_not_that_of_its_window_is_never_used(bundle: Bundle, spoil: str) -> None:
    parts = remembered(bundle, [f"i{n}" for n in range(8)], encoded=set(range(8)))
    good = parts[1].record or b""
    other = {"window": parts[2].record, "space": good[:8] + b"another!" + good[16:], "bytes": good[:-1]}
    spoilt = other.get(spoil, good[:24] + b"\x00\x7c" * 32)
    parts[1] = parts[1]._replace(record=spoilt)
    timeline = Timeline(parts, bundle)
    assert [event.event_id for event in timeline.memory().events] == ["e0", "e2", "e3", "e4"]
    assert [(todo.event.event_id, todo.is_stale) for todo in timeline.missing_states()] == [("e1", True)]


def test_events_of_unknown_items_are_left_out(bundle: Bundle) -> None:
    names = [name for n in range(40) for name in (f"i{n % 9}", f"gone{n}")][:40]
    timeline = Timeline(remembered(bundle, names, encoded=set()), bundle)
    assert all(event.item_id.startswith("i") for event in timeline.events)
    todo = timeline.missing_states()
    assert all(len(part.titles) == K for part in todo), "a window that was cut short is nobody's state"
    assert timeline.num_kept >= len(todo), "or their states would be trimmed at once, and made again for ever"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 11), max_size=60).map(lambda items: [f"i{n}" if n < 9 else "gone" for n in items]),
    st.sets(st.integers(0, 60)),
    st.integers(0, 20),
)
def test_memory_does_not_depend_on_how_much_past_is_read(
    bundle: Bundle, names: list[str], encoded: set[int], more: int
) -> None:
    least = events_with_states(bundle)
    short, long = (
        Timeline(remembered(bundle, names, encoded=encoded, limit=limit), bundle) for limit in (least, least + more)
    )
    assert short.memory().events == long.memory().events
    assert short.missing_states() == long.missing_states()
    assert (short.num_kept, short.is_incomplete) == (long.num_kept, long.is_incomplete)
    known = [Event(f"e{n}", "u", name, n) for n, name in enumerate(names) if name != "gone"]
    for num in (0, 1, K, 100):
        read = [event for event in known[max(0, len(known) - num) :] if event.timestamp >= len(names) - least - more]
        assert long.past(num) == read


def test_nothing_known_is_nothing_to_do(bundle: Bundle) -> None:
    for names in ([], ["gone"] * 40):
        timeline = Timeline(remembered(bundle, names, encoded=set()), bundle)
        assert (timeline.memory().events, timeline.missing_states(), timeline.num_kept) == ([], [], 0)
        assert timeline.memory().states.shape == (0, 32)
        assert not timeline.is_incomplete


def test_a_fingerprint_depends_on_titles_and_their_order() -> None:
    windows = [["a", "b"], ["b", "a"], ["a"], ["ab"], ["a", "b", "c"], []]
    assert len({window_fingerprint(window) for window in windows}) == len(windows), (
        "a stale state would be taken for a fresh one"
    )


def test_a_fingerprint_never_changes() -> None:
    """Stores in use contain fingerprints: after a change, all stored states would be stale."""
    assert window_fingerprint(["a", "b"]).hex() == "a76de9f2d561975f"


PARTED = EventTypes(types={"view": TypeRule(memory=False), "save": TypeRule(window=False)})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["view", "save", "both"]), max_size=40))
def test_window_and_memory_take_the_events_that_may_be_there(bundle: Bundle, kinds: list[str]) -> None:
    parted = replace(bundle, event_types=PARTED)
    events = [Event(f"e{n}", "u", f"i{n % 9}", n, kind) for n, kind in enumerate(kinds)]
    in_memory = [event for event in events if event.type != "view"]
    titles = bundle.catalogue.titles([event.item_id for event in in_memory])
    records = {
        event.event_id: bundle.codec.encode(
            np.full(32, event.timestamp, dtype=np.float16), window_fingerprint(window_ending_at(titles, place, K))
        )
        for place, event in enumerate(in_memory)
    }
    known = Timeline([Remembered(event, records.get(event.event_id)) for event in events], parted).known(99)
    window = [event for event in events if event.type != "save"][-K:]
    assert known.recent == bundle.catalogue.titles([event.item_id for event in window])
    if len(events) < events_with_states(bundle):  # a longer log is cut, which changes the first windows
        expected = [event.timestamp for event in in_memory[-(K + M) :] if event not in window][-M:]
        assert known.memory.states[:, 0].tolist() == expected
