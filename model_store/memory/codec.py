"""State ↔ bytes: the record of one memory element.

    offset  bytes     field
    0       2         magic "Zm"
    2       1         codec version, 2
    3       1         dtype code (1 = float16, 2 = int8; little endian)
    4       4         D, unsigned
    8       8         space id, first 8 bytes of its ASCII form's hash
    16      8         fingerprint of the window the state was made from
    24      2·D       float16: the state
    24      2·⌈D/64⌉  int8: the scale of each group of 64 numbers, float16; then
            D         the numbers, in multiples of their group's scale
    last    8         CRC-32 of all bytes before it, unsigned, little endian; 8 bytes keep records of a batch aligned

Version 1, which earlier versions of this software wrote, has no checksum, and is still read.
Each group of 64 numbers has its own scale, because hidden states of LLMs have a few huge coordinates: one scale for
all numbers would round the others to almost zero. Records that are read back are untrusted input: every field is
checked, the checksum must be right, and the numbers must be finite.
"""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.errors import StateCorrupt

StateDtype = Literal["float16", "int8"]

GROUP_SIZE = 64  # numbers that share one int8 scale
_HEADER = struct.Struct("<2sBBI8s8s")
_MAGIC, _VERSION = b"Zm", 2
_VERSION_PLACE, _CHECKSUM_BYTES = 2, 8
_CHECKED = zlib.crc32(bytes(4), 0x2144DF1C)  # the CRC-32 of all bytes that end with their CRC-32 and four zeros
_CODES: dict[StateDtype, int] = {"float16": 1, "int8": 2}
_LARGEST = float(np.finfo(np.float16).max)
_STEPS = 127
_LARGEST_SCALE = np.float16(515.5)  # the largest scale for which 127 × scale is finite in float16
_EXPONENT = 0x7C00  # exponent bits of a float16; all are one in NaN and infinity


class DecodedStates(NamedTuple):
    """The contents of n records. The state and the fingerprint of an invalid record are zeros."""

    states: NDArray[np.float16]  # (n, D)
    fingerprints: NDArray[np.uint64]  # (n,), the 8 bytes read as "<u8"
    is_valid: NDArray[np.bool_]  # (n,)


class StateCodec:
    """Writes and reads records of one space, hidden size and dtype. Immutable, so thread-safe."""

    def __init__(self, space: str, hidden_size: int, dtype: StateDtype = "float16") -> None:
        self.hidden_size = hidden_size
        self._is_int8 = dtype == "int8"
        num_groups = -(-hidden_size // GROUP_SIZE)
        body = [("scales", "<f2", (num_groups,)), ("numbers", "i1", (hidden_size,))]
        fields = body if self._is_int8 else [("state", "<f2", (hidden_size,))]
        self._layout = np.dtype([("identity", "<u8", (2,)), ("fingerprint", "<u8"), *fields, ("checksum", "<u8")])
        space_hash = hashlib.sha256(space.encode()).digest()[:8]
        header = _HEADER.pack(_MAGIC, _VERSION, _CODES[dtype], hidden_size, space_hash, bytes(8))
        self._identity = np.frombuffer(header, dtype="<u8", count=2)

    @property
    def record_bytes(self) -> int:
        return self._layout.itemsize

    def encode(self, state: NDArray[np.floating], fingerprint: bytes) -> bytes:
        """The record of `state` (D,), any float dtype; values outside the range of float16 are clipped.

        `fingerprint` has 8 bytes. Raises StateCorrupt for a wrong shape or numbers that are not finite.
        """
        if state.shape != (self.hidden_size,):
            raise StateCorrupt(f"cannot store a state of shape {state.shape}")
        return self.encode_many(state[None], [fingerprint])[0]

    def encode_many(self, states: NDArray[np.floating], fingerprints: Sequence[bytes]) -> list[bytes]:
        """One record for each row of `states` (n, D). Raises StateCorrupt when a number is not finite."""
        if not np.isfinite(states).all():
            raise StateCorrupt("cannot store a state with numbers that are not finite")
        table = np.zeros(len(states), dtype=self._layout)
        table["identity"] = self._identity
        table["fingerprint"] = np.frombuffer(b"".join(fingerprints), dtype="<u8")
        clipped = np.clip(states, -_LARGEST, _LARGEST)
        if self._is_int8:
            table["scales"], table["numbers"] = _quantised(clipped)
        else:
            table["state"] = clipped
        return [with_checksum(record.tobytes()[:-_CHECKSUM_BYTES]) for record in table]

    def decode_many(self, records: Sequence[bytes | None]) -> DecodedStates:
        """Decode n records at once.

        A record is valid if its length, version, dtype, hidden size and space are those of this codec, its checksum is
        right and all its numbers are finite. None stands for a missing record and is not valid.
        """
        is_valid = self._fit(records)
        if not is_valid.all():
            records = [self._of_today(record) for record in records]
            is_valid = self._fit(records)
        sized = [record for record, fits in zip(records, is_valid.tolist(), strict=True) if record is not None and fits]
        table = np.frombuffer(b"".join(sized), dtype=self._layout)
        numbers, is_sound = self._numbers(table)
        is_sound &= (table["identity"] == self._identity).all(axis=1)
        is_sound &= np.array(list(map(zlib.crc32, sized)), dtype=np.uint32) == _CHECKED
        if not is_sound.all():
            is_valid[is_valid] = is_sound
            table, numbers = table[is_sound], numbers[is_sound]
        if is_valid.all():
            return DecodedStates(numbers, table["fingerprint"], is_valid)
        states = np.zeros((len(records), self.hidden_size), dtype=np.float16)
        fingerprints = np.zeros(len(records), dtype=np.uint64)
        states[is_valid], fingerprints[is_valid] = numbers, table["fingerprint"]
        return DecodedStates(states, fingerprints, is_valid)

    def round_trip(self, states: NDArray[np.floating]) -> NDArray[np.float16]:
        """`states` (n, D) after encoding and decoding, with the rounding of the stored dtype."""
        return self.decode_many(self.encode_many(states, [bytes(8)] * len(states))).states

    def _fit(self, records: Sequence[bytes | None]) -> NDArray[np.bool_]:
        return np.array([record is not None and len(record) == self.record_bytes for record in records], dtype=bool)

    def _of_today(self, record: bytes | None) -> bytes | None:
        """A record of version 1 as one of today."""
        if record is None or len(record) != self.record_bytes - _CHECKSUM_BYTES or record[_VERSION_PLACE] != 1:
            return record
        return with_checksum(record[:_VERSION_PLACE] + bytes([_VERSION]) + record[_VERSION_PLACE + 1 :])

    def _numbers(self, table: NDArray[np.void]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """States (n, D) of a table of records, and (n,) whether all numbers of a record are in the range we write."""
        if not self._is_int8:
            bits = table["state"].view("<u2")  # comparing bits is much faster than `isfinite` for float16
            return table["state"], ((bits & _EXPONENT) != _EXPONENT).all(axis=1)
        scales, numbers = table["scales"], table["numbers"]
        is_possible = (scales >= 0) & (scales <= _LARGEST_SCALE)  # False for NaN
        is_finite: NDArray[np.bool_] = np.all(is_possible, axis=1) & np.all(numbers >= -_STEPS, axis=1)
        known = np.where(is_finite[:, None], scales, 0).astype(np.float32)
        states = numbers.astype(np.float32) * _for_each_number(known, self.hidden_size)
        return states.astype(np.float16), is_finite


def with_checksum(record: bytes) -> bytes:
    return record + zlib.crc32(record).to_bytes(_CHECKSUM_BYTES, "little")


def _quantised(states: NDArray[np.floating]) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Scales (n, ⌈D/64⌉) and numbers (n, D) of finite states (n, D). The error is at most half a scale.

    A scale is the smallest float16 for which 127 × scale is at least the largest absolute value of its group.
    """
    num_states, hidden_size = states.shape
    num_groups = -(-hidden_size // GROUP_SIZE)
    padded = np.zeros((num_states, num_groups * GROUP_SIZE), dtype=np.float32)
    padded[:, :hidden_size] = np.abs(states)
    exact = padded.reshape(num_states, num_groups, GROUP_SIZE).max(axis=2) / _STEPS
    rounded = exact.astype(np.float16)
    rounded_up = np.where(rounded < exact, np.nextafter(rounded, np.float16(np.inf)), rounded)
    scales = np.minimum(rounded_up, _LARGEST_SCALE)
    units = _for_each_number(np.where(scales > 0, scales, 1).astype(np.float32), hidden_size)
    return scales, np.clip(np.rint(states / units), -_STEPS, _STEPS).astype(np.int8)


def _for_each_number(scales: NDArray[np.float32], hidden_size: int) -> NDArray[np.float32]:
    """Repeat the scale of each group for its numbers: (n, ⌈D/64⌉) → (n, D)."""
    return np.repeat(scales, GROUP_SIZE, axis=1)[:, :hidden_size]
