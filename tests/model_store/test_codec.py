"""A stored state reads back as it was, and bytes that are not such a state are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model_store.codec import HEADER_BYTES, StateCodec
from model_store.errors import StateCorrupt

CODEC, FINGERPRINT = StateCodec("abc123", 6), b"12345678"
finite = st.floats(width=16, allow_nan=False, allow_infinity=False)
RECORD = CODEC.encode(np.linspace(-1, 1, 6, dtype=np.float16), FINGERPRINT)


@given(arrays.arrays(np.float16, 6, elements=finite), st.binary(min_size=8, max_size=8))
def test_encode_then_decode_is_the_identity(state: np.ndarray, fingerprint: bytes) -> None:
    record = CODEC.encode(state, fingerprint)
    decoded, same = CODEC.decode(record)
    assert len(record) == HEADER_BYTES + 2 * 6
    assert decoded.dtype == np.float16 and decoded.tobytes() == state.tobytes() and same == fingerprint


@given(arrays.arrays(np.float32, 6, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_what_float16_cannot_hold_is_clipped(state: np.ndarray) -> None:
    decoded, _ = CODEC.decode(CODEC.encode(state, FINGERPRINT))
    assert decoded.tolist() == np.clip(state, -65504, 65504).astype(np.float16).tolist()


def test_the_byte_form_never_changes() -> None:
    """Stores in the field hold these bytes. If this fails, raise the codec version and keep reading the old one."""
    record = StateCodec("abc123", 2).encode(np.array([1.0, -2.0]), FINGERPRINT)
    assert record.hex() == "5a6d010102000000" + "6ca13d52ca70c883" + FINGERPRINT.hex() + "003c00c0"


@pytest.mark.parametrize("place", range(16))
def test_each_byte_of_the_header_counts(place: int) -> None:
    for value in range(256):
        changed = bytes([*RECORD[:place], value, *RECORD[place + 1 :]])
        if changed != RECORD:
            with pytest.raises(StateCorrupt):
                CODEC.decode(changed)


@pytest.mark.parametrize("place", range(16, 24))
def test_a_changed_fingerprint_is_another_fingerprint(place: int) -> None:
    changed = bytes([*RECORD[:place], RECORD[place] ^ 1, *RECORD[place + 1 :]])
    assert CODEC.decode(changed)[1] != FINGERPRINT, "a stale state would pass as fresh"


@given(st.binary(max_size=80))
def test_any_bytes_are_a_state_or_refused(record: bytes) -> None:
    with pytest.raises(StateCorrupt):
        CODEC.decode(record)


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES, len(RECORD) - 1, len(RECORD) + 1, 2 * len(RECORD)])
def test_a_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(StateCorrupt, match=f"{length} bytes"):
        CODEC.decode((RECORD * 2)[:length])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_must_be_finite_both_ways(value: float) -> None:
    state = np.array([0, 0, value, 0, 0, 0], dtype=np.float16)
    with pytest.raises(StateCorrupt, match="finite"):
        CODEC.encode(state, FINGERPRINT)
    with pytest.raises(StateCorrupt, match="finite"):
        CODEC.decode(RECORD[:HEADER_BYTES] + state.tobytes())


def test_a_state_of_another_space_or_size_is_refused() -> None:
    with pytest.raises(StateCorrupt, match="another space"):
        StateCodec("abc124", 6).decode(RECORD)
    with pytest.raises(StateCorrupt):
        StateCodec("abc123", 5).decode(RECORD)
    with pytest.raises(StateCorrupt):
        CODEC.encode(np.zeros((1, 6), dtype=np.float16), FINGERPRINT)
