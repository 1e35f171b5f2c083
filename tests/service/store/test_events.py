"""Byte forms of events: decoding inverts encoding, and decoding many gives the same as decoding each."""

from hypothesis import given
from hypothesis import strategies as st

from service.store.events import (
    Event,
    Remembered,
    decode_event,
    decode_events,
    decode_remembered,
    encode_event,
    encode_text,
)

EVENTS = st.builds(
    Event,
    event_id=st.text(max_size=5),
    user_id=st.just("u"),
    item_id=st.text(max_size=5) | st.just("\ud800"),
    timestamp=st.integers(-(2**53), 2**53),
    type=st.text(max_size=5),
    value=st.none() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False),
    query=st.none() | st.text(max_size=5),
    session_id=st.none() | st.text(max_size=5),
    context=st.none()
    | st.dictionaries(
        st.text(max_size=3), st.text(max_size=3) | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1), min_size=1
    ),
)
BAD = st.sampled_from(
    [
        None, b"", b"{", b"[]", b"null", b'"text"', b"\xff", b'{"item_id":"i"}',
        b'{"item_id":1,"timestamp":1,"type":"view","value":null}',
        b'{"item_id":"i","timestamp":true,"type":"view","value":null}',
        b'{"item_id":"i","timestamp":1.0,"type":"view","value":null}',
        b'{"item_id":"i","timestamp":1,"type":null,"value":null}',
        b'{"item_id":"i","timestamp":9007199254740993,"type":"view","value":null}',
        b'{"item_id":"i","timestamp":-1' + b"0" * 30 + b',"type":"view","value":null}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":false}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":"1"}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":null,"session_id":7}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":null,"context":[1]}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":null,"context":{"a":NaN}}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":null,"context":{"a":{"b":1}}}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":NaN}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":-Infinity}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":1e999}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":1' + b"0" * 400 + b"}",
    ]
)  # fmt: skip


@given(st.lists(EVENTS, max_size=6))
def test_decoding_inverts_encoding(events: list[Event]) -> None:
    ids = [encode_text(event.event_id) for event in events]
    assert decode_events("u", ids, [encode_event(event) for event in events]) == events


@given(st.lists(st.tuples(st.binary(max_size=4), EVENTS.map(encode_event) | BAD), max_size=6))
def test_decoding_many_events_equals_decoding_each(stored: list[tuple[bytes, bytes | None]]) -> None:
    found = decode_events("u", [event_id for event_id, _ in stored], [body for _, body in stored])
    assert found == [decode_event("u", *pair) for pair in stored]
    assert all(type(event) is Event for event in found if event is not None)


def test_events_that_were_stored_before_there_were_queries_are_read() -> None:
    old = b'{"item_id":"i","timestamp":1,"type":"view","value":null}'
    assert (
        decode_events("u", [b"e"], [old]) == [Event("e", "u", "i", 1, "view")]
        and encode_event(Event("e", "u", "i", 1, "view")) == old
    )
    foreign = old.replace(b'"value":null', b'"value":null,"query":[1]')
    assert decode_events("u", [b"e"], [foreign]) == [Event("e", "u", "i", 1, "view")], (
        "a query that is no text is no query"
    )


def test_a_time_that_a_score_cannot_hold_is_not_read() -> None:
    for time in (2**53 + 1, -(10**30)):
        assert decode_events("u", [b"e"], [encode_event(Event("e", "u", "i", time))]) == [None]


def test_unreadable_events_are_left_out() -> None:
    event = Event("e", "u", "i", 1)
    body = encode_event(event)
    found = decode_remembered("u", [b"e", b"f", b"e"], [body, b"{", body], [b"r", b"s", None])
    assert found == [Remembered(event, b"r"), Remembered(event, None)]
    assert decode_remembered("u", [b"e"], [body], [b"r"])[0].record == b"r" and decode_remembered("u", [], [], []) == []


@given(st.sampled_from([float("nan"), float("inf"), float("-inf"), 10**400]))
def test_a_value_that_is_no_finite_number_decodes_to_none(value: float) -> None:
    event = Event("e", "u", "i", 1, "view", value)
    assert decode_events("u", [b"e"], [encode_event(event)]) == [event._replace(value=None)]
