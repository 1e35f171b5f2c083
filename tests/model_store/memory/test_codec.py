"""A stored state reads back as it was, and bytes that are not such a state are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model_store.errors import StateCorrupt
from model_store.memory.codec import GROUP, HEADER_BYTES, StateCodec, StateDtype

CODEC, FINGERPRINT = StateCodec("abc123", 6), b"12345678"
finite = st.floats(width=16, allow_nan=False, allow_infinity=False)
RECORD = CODEC.encode(np.linspace(-1, 1, 6, dtype=np.float16), FINGERPRINT)
INT8 = StateCodec("abc123", 6, "int8")
INT8_RECORD = INT8.encode(np.linspace(-1, 1, 6, dtype=np.float16), FINGERPRINT)
RECORDS = pytest.mark.parametrize(("codec", "record"), [(CODEC, RECORD), (INT8, INT8_RECORD)], ids=["float16", "int8"])


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


@RECORDS
@pytest.mark.parametrize("place", range(16))
def test_each_byte_of_the_header_counts(codec: StateCodec, record: bytes, place: int) -> None:
    changed = [bytes([*record[:place], value, *record[place + 1 :]]) for value in range(256)]
    foreign = [each for each in changed if each != record]
    assert not codec.decode_many(foreign).is_whole.any()
    for each in foreign:
        with pytest.raises(StateCorrupt):
            codec.decode(each)


@RECORDS
@pytest.mark.parametrize("place", range(16, 24))
def test_a_changed_fingerprint_is_another_fingerprint(codec: StateCodec, record: bytes, place: int) -> None:
    changed = bytes([*record[:place], record[place] ^ 1, *record[place + 1 :]])
    assert codec.decode(changed)[1] != FINGERPRINT, "a stale state would pass as fresh"


@given(st.binary(max_size=80))
def test_any_bytes_are_a_state_or_refused(record: bytes) -> None:
    for codec in (CODEC, INT8):
        assert not codec.decode_many([record]).is_whole[0]
        with pytest.raises(StateCorrupt):
            codec.decode(record)


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


# ---- many at once


broken = st.none() | st.binary(max_size=40) | st.sampled_from([RECORD[:-1], RECORD[:-2] + b"\x00\x7c", INT8_RECORD])


@given(st.lists(arrays.arrays(np.float16, 6, elements=finite) | broken, max_size=12))
def test_many_at_once_are_what_they_are_one_by_one(parts: list[np.ndarray | bytes | None]) -> None:
    for codec in (CODEC, INT8):
        states = [part for part in parts if isinstance(part, np.ndarray)]
        fingerprints = [bytes([number] * 8) for number in range(len(states))]
        written = codec.encode_many(np.array(states, dtype=np.float16).reshape(-1, 6), fingerprints)
        assert written == [codec.encode(*pair) for pair in zip(states, fingerprints, strict=True)]
        left = iter(written)
        records = [next(left) if isinstance(part, np.ndarray) else part for part in parts]
        found = codec.decode_many(records)
        assert found.states.shape == (len(parts), 6) and found.states.dtype == np.float16
        for record, state, fingerprint, is_whole in zip(records, *found, strict=True):
            try:
                expected = codec.decode(record or b"")
            except StateCorrupt:
                assert not is_whole and not state.any()
            else:
                assert is_whole and (state.tobytes(), fingerprint.tobytes()) == (expected[0].tobytes(), expected[1])


# ---- int8


@given(arrays.arrays(np.float16, st.sampled_from([1, 63, 64, 65, 200]), elements=finite))
def test_an_int8_state_is_off_by_half_a_scale_at_most(state: np.ndarray) -> None:
    codec = StateCodec("abc123", len(state), "int8")
    record = codec.encode(state, FINGERPRINT)
    num_groups = -(-len(state) // GROUP)
    assert len(record) == codec.record_bytes == HEADER_BYTES + 2 * num_groups + len(state)
    decoded, fingerprint = codec.decode(record)
    assert decoded.dtype == np.float16 and np.isfinite(decoded).all() and fingerprint == FINGERPRINT
    for start in range(0, len(state), GROUP):
        group = state[start : start + GROUP].astype(np.float64)
        scale = np.abs(group).max() / 127 * (1 + 2**-9) + 2**-24  # a float16 above the exact one
        error = np.abs(decoded[start : start + GROUP].astype(np.float64) - group)
        assert (error <= scale / 2 + np.abs(group) * 2**-11).all(), "the rest is the rounding of float16"


def test_a_huge_coordinate_costs_its_own_group_only() -> None:
    state = np.random.default_rng(0).normal(size=4 * GROUP).astype(np.float16)
    state[5] = 5000
    codec = StateCodec("abc123", len(state), "int8")
    decoded, _ = codec.decode(codec.encode(state, FINGERPRINT))
    np.testing.assert_allclose(decoded[GROUP:], state[GROUP:], atol=0.02)


def test_the_byte_form_of_int8_never_changes() -> None:
    record = StateCodec("abc123", 2, "int8").encode(np.array([1.0, -2.0]), FINGERPRINT)
    assert record.hex() == "5a6d010202000000" + "6ca13d52ca70c883" + FINGERPRINT.hex() + "0924" + "3f81"


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 516.0])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    changed = INT8_RECORD[:HEADER_BYTES] + np.float16(scale).tobytes() + INT8_RECORD[HEADER_BYTES + 2 :]
    with pytest.raises(StateCorrupt, match="finite"):
        INT8.decode(changed)


def test_a_number_that_we_never_write_is_refused() -> None:
    with pytest.raises(StateCorrupt):
        INT8.decode(INT8_RECORD[:-1] + b"\x80")


def test_a_state_of_the_other_dtype_is_refused() -> None:
    state = np.zeros(2, dtype=np.float16)
    other = StateCodec("abc123", 2, "int8").encode(state, FINGERPRINT)
    assert len(other) == StateCodec("abc123", 2).record_bytes
    with pytest.raises(StateCorrupt, match="foreign header"):
        StateCodec("abc123", 2).decode(other)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_as_stored_is_what_comes_back(dtype: StateDtype) -> None:
    states = np.random.default_rng(0).normal(size=(3, 70)).astype(np.float16)
    codec = StateCodec("abc123", 70, dtype)
    back = [codec.decode(codec.encode(state, FINGERPRINT))[0] for state in states]
    np.testing.assert_array_equal(codec.as_stored(states), np.stack(back))
    assert codec.as_stored(states[:0]).shape == (0, 70)
