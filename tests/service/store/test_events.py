"""Many events are decoded at once, and it makes no difference to any of them."""

from hypothesis import given
from hypothesis import strategies as st

from service.store.events import Event, Remembered, decode_event, decode_events, encode_event, encode_text, remembered

EVENTS = st.builds(
    Event,
    event_id=st.text(max_size=5),
    user_id=st.just("u"),
    item_id=st.text(max_size=5) | st.just("\ud800"),
    timestamp=st.integers(-(2**53), 2**53),
    type=st.text(max_size=5),
    value=st.none() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False),
)
BAD = st.sampled_from(
    [
        None, b"", b"{", b"[]", b"null", b'"text"', b"\xff", b'{"item_id":"i"}',
        b'{"item_id":1,"timestamp":1,"type":"view","value":null}',
        b'{"item_id":"i","timestamp":true,"type":"view","value":null}',
        b'{"item_id":"i","timestamp":1.0,"type":"view","value":null}',
        b'{"item_id":"i","timestamp":1,"type":null,"value":null}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":false}',
        b'{"item_id":"i","timestamp":1,"type":"view","value":"1"}',
    ]
)  # fmt: skip


@given(st.lists(EVENTS, max_size=6))
def test_events_of_ours_come_back(events: list[Event]) -> None:
    ids = [encode_text(event.event_id) for event in events]
    assert decode_events("u", ids, [encode_event(event) for event in events]) == events


@given(st.lists(st.tuples(st.binary(max_size=4), EVENTS.map(encode_event) | BAD), max_size=6))
def test_many_at_once_are_as_each_alone(stored: list[tuple[bytes, bytes | None]]) -> None:
    found = decode_events("u", [event_id for event_id, _ in stored], [body for _, body in stored])
    assert found == [decode_event("u", *pair) for pair in stored]
    assert all(type(event) is Event for event in found if event is not None)


def test_events_that_cannot_be_read_are_left_out() -> None:
    event = Event("e", "u", "i", 1)
    assert remembered([event, None, event], [b"r", b"s", None]) == [Remembered(event, b"r"), Remembered(event, None)]
    assert remembered([event], [b"r"])[0].record == b"r" and remembered([], []) == []
