"""Messages survive the socket, however the stream of bytes is cut."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model_store.answers import Ranked, Reason
from service.engine.messages import (
    Batch,
    Cancel,
    ChangedItem,
    Expired,
    Failed,
    Frames,
    Message,
    PutItems,
    Recommend,
    Recommended,
    frame,
    to_model,
    to_server,
    unpack_rows,
)

ITEM = ChangedItem(4, "i1", "Täa", 3, False, None, 2**40)
RANKED = [Ranked(5, "generated", -1.5, 0.0), Ranked(6, "popular", None, None)]
ANSWER = Recommended(3, RANKED, [0, 2], b"\x00", 0.5, {}, [Reason("return", 0.5, 2), None], b"\x00\x00\x80?")
MESSAGES: list[Message] = [
    Recommend(1, ["日本", ""], b"\x01\x02", b"\xff", 9, 10, 12.5, [3, 0], [-1, 2**40], 2**41),
    PutItems(2, [ITEM], traceparent="00-a-b-01"),
    Cancel(7),
]
RESULTS = Batch("recommend", 3, 0.25, [ANSWER, Expired(4), Failed(5, "ValueError: no")], 1, 2, 3)


@given(st.lists(st.integers(1, 40), max_size=30))
def test_frames_are_put_together_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream = b"".join(map(frame, MESSAGES))
    frames, bodies = Frames(), []
    for size in cuts:
        bodies += frames.feed(stream[:size])
        stream = stream[size:]
    bodies += frames.feed(stream)
    assert [to_model.decode(body) for body in bodies] == MESSAGES


def test_results_come_back_with_their_types() -> None:
    (body,) = Frames().feed(frame(RESULTS))
    decoded = to_server.decode(body)
    assert decoded == RESULTS and isinstance(decoded, Batch)
    first = decoded.results[0]
    assert isinstance(first, Recommended) and first.items[1] == Ranked(6, "popular", None, None)
    assert first.reasons == [Reason("return", 0.5, 2), None] and isinstance(first.reasons[0], Reason)


@given(arrays.arrays(bool, st.integers(0, 70)), st.integers(0, 20))
def test_rows_are_bits_and_new_rows_are_not_allowed(allowed: np.ndarray, num_new: int) -> None:
    found = unpack_rows(np.packbits(allowed).tobytes(), len(allowed), len(allowed) + num_new)
    assert found.tolist() == allowed.tolist() + [False] * num_new
