"""A stored state reads back as it was written, and other bytes are refused."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from model_store.errors import StateCorrupt
from model_store.memory.codec import GROUP_SIZE, StateCodec, StateDtype, with_checksum

HEADER_BYTES, CHECKSUM_BYTES = 24, 8  # see the table of offsets in codec.py
CODEC, FINGERPRINT = StateCodec("abc123", 6), b"12345678"
finite = st.floats(width=16, allow_nan=False, allow_infinity=False)
RECORD = CODEC.encode(np.linspace(-1, 1, 6, dtype=np.float16), FINGERPRINT)
INT8 = StateCodec("abc123", 6, "int8")
INT8_RECORD = INT8.encode(np.linspace(-1, 1, 6, dtype=np.float16), FINGERPRINT)
OLD = bytes.fromhex("5a6d010102000000" + "6ca13d52ca70c883" + FINGERPRINT.hex() + "003c00c0")  # version 1
RECORDS = pytest.mark.parametrize(("codec", "record"), [(CODEC, RECORD), (INT8, INT8_RECORD)], ids=["float16", "int8"])


def decode(codec: StateCodec, record: bytes) -> tuple[NDArray[np.float16], bytes]:
    """State and fingerprint of a valid record."""
    states, fingerprints, is_valid = codec.decode_many([record])
    assert is_valid.tolist() == [True], "a valid record was refused"
    return states[0], fingerprints.tobytes()


def is_refused(codec: StateCodec, *records: bytes) -> bool:
    """Whether all the records are refused, alone and together."""
    together = codec.decode_many(records)
    assert not together.states.any() or together.is_valid.any(), "a refused record gave numbers"
    return not together.is_valid.any() and not any(codec.decode_many([each]).is_valid.any() for each in records)


@given(arrays.arrays(np.float16, 6, elements=finite), st.binary(min_size=8, max_size=8))
def test_encode_then_decode_is_the_identity(state: np.ndarray, fingerprint: bytes) -> None:
    record = CODEC.encode(state, fingerprint)
    decoded, same = decode(CODEC, record)
    assert len(record) == CODEC.record_bytes == HEADER_BYTES + 2 * 6 + CHECKSUM_BYTES
    assert decoded.dtype == np.float16 and decoded.tobytes() == state.tobytes() and same == fingerprint


@given(arrays.arrays(np.float32, 6, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_numbers_beyond_float16_are_clipped(state: np.ndarray) -> None:
    decoded, _ = decode(CODEC, CODEC.encode(state, FINGERPRINT))
    assert decoded.tolist() == np.clip(state, -65504, 65504).astype(np.float16).tolist()


def test_the_bytes_of_a_float16_record_never_change() -> None:
    """Stores in use hold these bytes. If this test fails, raise the codec version and keep reading the old one."""
    record = StateCodec("abc123", 2).encode(np.array([1.0, -2.0]), FINGERPRINT)
    checked = bytes.fromhex("5a6d020102000000" + "6ca13d52ca70c883" + FINGERPRINT.hex() + "003c00c0")
    assert record == checked + zlib.crc32(checked).to_bytes(8, "little")
    states, fingerprints, is_valid = StateCodec("abc123", 2).decode_many([OLD, OLD[:2] + b"\2" + OLD[3:]])
    assert is_valid.tolist() == [True, False], "records of version 1, and no other without a checksum, are read"
    assert states[0].tolist() == [1.0, -2.0] and fingerprints[0].tobytes() == FINGERPRINT


@RECORDS
@pytest.mark.parametrize("place", range(16))
def test_a_change_of_any_header_byte_is_refused(codec: StateCodec, record: bytes, place: int) -> None:
    changed = [bytes([*record[:place], value, *record[place + 1 :]]) for value in range(256)]
    assert is_refused(codec, *(each for each in changed if each != record))


@RECORDS
def test_a_change_of_any_bit_is_refused(codec: StateCodec, record: bytes) -> None:
    """Also where the numbers stay possible ones: a flipped bit would be another memory."""
    flips = [(place, 1 << bit) for place in range(len(record)) for bit in range(8)]
    changed = [bytes([*record[:place], record[place] ^ bit, *record[place + 1 :]]) for place, bit in flips]
    assert is_refused(codec, *changed)


@RECORDS
@pytest.mark.parametrize("place", range(16, 24))
def test_a_changed_fingerprint_is_another_fingerprint(codec: StateCodec, record: bytes, place: int) -> None:
    changed = bytes([*record[:place], record[place] ^ 1, *record[place + 1 :]])
    rewritten = with_checksum(changed[:-CHECKSUM_BYTES])
    assert decode(codec, rewritten)[1] != FINGERPRINT, "a stale state would be taken for a fresh one"


@given(st.binary(max_size=80))
def test_random_bytes_are_refused(record: bytes) -> None:
    for codec in (CODEC, INT8):
        assert is_refused(codec, record)


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES, len(RECORD) - 1, len(RECORD) + 1, 2 * len(RECORD)])
def test_a_record_of_the_wrong_length_is_refused(length: int) -> None:
    assert is_refused(CODEC, (RECORD * 2)[:length])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(value: float) -> None:
    state = np.array([0, 0, value, 0, 0, 0], dtype=np.float16)
    with pytest.raises(StateCorrupt, match="finite"):
        CODEC.encode(state, FINGERPRINT)
    assert is_refused(CODEC, with_checksum(RECORD[:HEADER_BYTES] + state.tobytes()))


def test_a_state_of_another_space_or_size_is_refused() -> None:
    assert is_refused(StateCodec("abc124", 6), RECORD)
    assert is_refused(StateCodec("abc123", 5), RECORD)
    with pytest.raises(StateCorrupt):
        CODEC.encode(np.zeros((1, 6), dtype=np.float16), FINGERPRINT)


# ---- many records in one call


broken = st.none() | st.binary(max_size=40) | st.sampled_from([RECORD[:-1], RECORD[:-2] + b"\x00\x7c", INT8_RECORD])


@given(st.lists(arrays.arrays(np.float16, 6, elements=finite) | broken, max_size=12))
def test_a_batch_of_records_decodes_as_its_records_do_alone(parts: list[np.ndarray | bytes | None]) -> None:
    for codec in (CODEC, INT8):
        states = [part for part in parts if isinstance(part, np.ndarray)]
        fingerprints = [bytes([number] * 8) for number in range(len(states))]
        written = codec.encode_many(np.array(states, dtype=np.float16).reshape(-1, 6), fingerprints)
        assert written == [codec.encode(*pair) for pair in zip(states, fingerprints, strict=True)]
        left = iter(written)
        records = [next(left) if isinstance(part, np.ndarray) else part for part in parts]
        found = codec.decode_many(records)
        assert found.states.shape == (len(parts), 6) and found.states.dtype == np.float16
        for record, state, fingerprint, is_valid in zip(records, *found, strict=True):
            expected = codec.decode_many([record])
            assert is_valid == expected.is_valid[0]
            assert is_valid or not (state.any() or fingerprint)
            assert state.tobytes() == expected.states.tobytes() and fingerprint == expected.fingerprints[0]


# ---- int8


@given(arrays.arrays(np.float16, st.sampled_from([1, 63, 64, 65, 200]), elements=finite))
def test_the_error_of_an_int8_state_is_at_most_half_a_scale(state: np.ndarray) -> None:
    codec = StateCodec("abc123", len(state), "int8")
    record = codec.encode(state, FINGERPRINT)
    num_groups = -(-len(state) // GROUP_SIZE)
    assert len(record) == codec.record_bytes == HEADER_BYTES + 2 * num_groups + len(state) + CHECKSUM_BYTES
    decoded, fingerprint = decode(codec, record)
    assert decoded.dtype == np.float16 and np.isfinite(decoded).all() and fingerprint == FINGERPRINT
    for start in range(0, len(state), GROUP_SIZE):
        group = state[start : start + GROUP_SIZE].astype(np.float64)
        scale = np.abs(group).max() / 127 * (1 + 2**-9) + 2**-24  # a float16 above the exact one
        error = np.abs(decoded[start : start + GROUP_SIZE].astype(np.float64) - group)
        assert (error <= scale / 2 + np.abs(group) * 2**-11).all(), "the second term is the rounding of float16"


def test_a_huge_coordinate_makes_only_its_own_group_coarse() -> None:
    state = np.random.default_rng(0).normal(size=4 * GROUP_SIZE).astype(np.float16)
    state[5] = 5000
    codec = StateCodec("abc123", len(state), "int8")
    decoded, _ = decode(codec, codec.encode(state, FINGERPRINT))
    np.testing.assert_allclose(decoded[GROUP_SIZE:], state[GROUP_SIZE:], atol=0.02)


def test_the_bytes_of_an_int8_record_never_change() -> None:
    record = StateCodec("abc123", 2, "int8").encode(np.array([1.0, -2.0]), FINGERPRINT)
    checked = bytes.fromhex("5a6d020202000000" + "6ca13d52ca70c883" + FINGERPRINT.hex() + "0924" + "3f81")
    assert record == with_checksum(checked)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 516.0])
def test_an_impossible_scale_is_refused(scale: float) -> None:
    changed = INT8_RECORD[:HEADER_BYTES] + np.float16(scale).tobytes() + INT8_RECORD[HEADER_BYTES + 2 :]
    assert is_refused(INT8, with_checksum(changed[:-CHECKSUM_BYTES]))


def test_the_int8_number_minus_128_is_refused() -> None:
    assert is_refused(INT8, with_checksum(INT8_RECORD[: -CHECKSUM_BYTES - 1] + b"\x80"))


def test_a_state_of_the_other_dtype_is_refused() -> None:
    state = np.zeros(2, dtype=np.float16)
    other = StateCodec("abc123", 2, "int8").encode(state, FINGERPRINT)
    assert len(other) == StateCodec("abc123", 2).record_bytes
    assert is_refused(StateCodec("abc123", 2), other)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_round_trip_is_encode_then_decode(dtype: StateDtype) -> None:
    states = np.random.default_rng(0).normal(size=(3, 70)).astype(np.float16)
    codec = StateCodec("abc123", 70, dtype)
    back = [decode(codec, codec.encode(state, FINGERPRINT))[0] for state in states]
    np.testing.assert_array_equal(codec.round_trip(states), np.stack(back))
    assert codec.round_trip(states[:0]).shape == (0, 70)
