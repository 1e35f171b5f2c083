"""Local memory is a pure function of the set of events: any order and any retries give the same entries."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model_store.words.events import WordEvent
from model_store.words.memory import Entry, MemoryLimits, write_memory
from model_store.words.texts import item_text
from model_store.words.vectors import Vectors, unit

TEXTS = [item_text(f"Item {n}", {"kind": f"kind {n % 3}", "year": n}, [("jazz", n)] if n else []) for n in range(8)]
QUERIES = ("", "dark jazz", "Dark  JAZZ!", "folk")
SHARES = {"dark jazz": 0.1, "kind 0": 0.4}


class Items:
    texts = TEXTS
    shares = SHARES
    vectors: Vectors = unit(np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32))


def encode(texts: list[str] | tuple[str, ...]) -> Vectors:
    rows = [np.random.default_rng(sum(map(ord, text))).normal(size=6) for text in texts]
    return unit(np.array(rows, dtype=np.float32))


def memory(events: list[WordEvent], limits: MemoryLimits | None = None) -> list[Entry]:
    return write_memory(events, Items(), lambda texts: encode(tuple(texts)), limits=limits)


events_strategy = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 9), st.sampled_from(QUERIES)), max_size=25, unique=True
).map(lambda facts: [WordEvent(f"e{row}-{time}-{query}", row, time, query) for row, time, query in facts])


@given(events_strategy, st.randoms(use_true_random=False), st.data())
def test_order_and_retries_change_nothing(events: list[WordEvent], rng: random.Random, data: st.DataObject) -> None:
    again = [data.draw(st.sampled_from(events)) for _ in range(3)] if events else []
    arrived = [*events, *again]
    rng.shuffle(arrived)
    expected, found = memory(events), memory(arrived)
    assert found == expected
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.embedding, other.embedding)


@given(events_strategy)
def test_every_event_is_in_its_record_and_in_the_profile(events: list[WordEvent]) -> None:
    entries = memory(events)
    records = {entry.rows[0]: entry for entry in entries if entry.level == "record"}
    assert set(records) == {event.row for event in events}
    for event in events:
        assert event.event_id in records[event.row].support
        assert records[event.row].t_first <= event.timestamp <= records[event.row].t_last
    profiles = [entry for entry in entries if entry.level == "profile"]
    assert [entry.count for entry in profiles] == ([len(events)] if events else [])


@given(events_strategy)
def test_a_pattern_gathers_the_events_of_a_query_without_regard_to_case(events: list[WordEvent]) -> None:
    patterns = {entry.scenario: entry for entry in memory(events) if entry.level == "pattern"}
    asked = [event for event in events if event.query in QUERIES[1:3]]
    if asked:
        assert patterns["dark jazz"].count == len(asked)
        assert set(patterns["dark jazz"].support) == {event.event_id for event in asked}
    else:
        assert "dark jazz" not in patterns


@given(events_strategy)
def test_memory_is_bounded_and_keeps_the_newest_records(events: list[WordEvent]) -> None:
    limits = MemoryLimits(records=2, patterns=1, support=3)
    entries = memory(events, limits)
    records = [entry for entry in entries if entry.level == "record"]
    assert len(records) <= 2 and len(entries) <= 4
    assert all(len(entry.support) <= 3 and len(entry.text.split()) <= 32 for entry in entries)
    newest = sorted({event.row: event.timestamp for event in sorted(events, key=lambda e: e.timestamp)}.values())
    assert [record.t_last for record in records] == newest[::-1][:2]


@given(events_strategy.filter(bool), st.integers(0, 7))
def test_forgetting_an_event_is_memory_without_it(events: list[WordEvent], place: int) -> None:
    forgotten = events[place % len(events)]
    left = memory([event for event in events if event != forgotten])
    assert all(forgotten.event_id not in entry.support for entry in left)


def test_utility_says_how_much_more_often_than_others() -> None:
    events = [WordEvent(f"e{n}", n % 2 + 1, n, "dark jazz") for n in range(20)]
    entries = {entry.scenario: entry for entry in memory(events) if entry.level == "pattern"}
    assert entries["dark jazz"].utility > 1
    assert "Item" in entries["dark jazz"].text and "20 times" in entries["dark jazz"].text
