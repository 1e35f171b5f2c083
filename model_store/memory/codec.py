"""State ↔ bytes: the record of one memory element.

    offset  bytes     field
    0       2         magic "Zm"
    2       1         codec version
    3       1         dtype code (1 = float16, 2 = int8; little endian)
    4       4         D, unsigned
    8       8         space id, first 8 bytes of its ASCII form's hash
    16      8         fingerprint of the window the state was made from
    24      2·D       float16: the state
    24      2·⌈D/64⌉  int8: the scale of each group of 64 numbers, float16; then
            D         the numbers, in multiples of their group's scale

A scale for each group, since hidden states of LLMs have a few huge coordinates, which with one scale for all would
leave the others next to nothing. Bytes read back are input: each field is checked, and the numbers must be finite.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.errors import StateCorrupt

StateDtype = Literal["float16", "int8"]

HEADER = struct.Struct("<2sBBI8s8s")
HEADER_BYTES = HEADER.size
GROUP = 64
_MAGIC, _VERSION = b"Zm", 1
_CODES: dict[StateDtype, int] = {"float16": 1, "int8": 2}
_LARGEST = float(np.finfo(np.float16).max)
_STEPS = 127
_LARGEST_SCALE = np.float16(515.5)  # the last one whose 127-fold is finite in float16
_EXPONENT = 0x7C00  # of a float16: all ones where it is not finite


class Decoded(NamedTuple):
    """Of n records: `states` (n, D) float16, `fingerprints` (n,) uint64, `is_whole` (n,) bool; zeros where not whole.

    A fingerprint is the number that its 8 bytes are: `np.frombuffer(…, "<u8")`.
    """

    states: NDArray[np.float16]
    fingerprints: NDArray[np.uint64]
    is_whole: NDArray[np.bool_]


class StateCodec:
    """Writes and reads states of one space and one hidden size."""

    def __init__(self, space: str, hidden_size: int, dtype: StateDtype = "float16") -> None:
        self.hidden_size = hidden_size
        self._is_int8 = dtype == "int8"
        num_groups = -(-hidden_size // GROUP)
        body = [("scales", "<f2", (num_groups,)), ("numbers", "i1", (hidden_size,))]
        fields = body if self._is_int8 else [("state", "<f2", (hidden_size,))]
        self._layout = np.dtype([("identity", "<u8", (2,)), ("fingerprint", "<u8"), *fields])
        space_hash = hashlib.sha256(space.encode()).digest()[:8]
        header = HEADER.pack(_MAGIC, _VERSION, _CODES[dtype], hidden_size, space_hash, bytes(8))
        self._identity = np.frombuffer(header, dtype="<u8", count=2)
        self._space = self._identity[1]

    @property
    def record_bytes(self) -> int:
        return self._layout.itemsize

    def encode(self, state: NDArray[np.floating], fingerprint: bytes) -> bytes:
        """`state` (D,) of any float type; values beyond float16 are clipped. Raises StateCorrupt if not finite."""
        if state.shape != (self.hidden_size,):
            raise StateCorrupt(f"cannot store a state of shape {state.shape}")
        return self.encode_many(state[None], [fingerprint])[0]

    def encode_many(self, states: NDArray[np.floating], fingerprints: Sequence[bytes]) -> list[bytes]:
        """A record for each row of `states` (n, D). Raises StateCorrupt when a number is not finite."""
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
        return [record.tobytes() for record in table]

    def decode(self, record: bytes) -> tuple[NDArray[np.float16], bytes]:
        """The state (D,) float16 and the fingerprint of its window. Raises StateCorrupt."""
        if len(record) != self.record_bytes:
            raise StateCorrupt(f"a state record has {len(record)} bytes, not {self.record_bytes}")
        table = np.frombuffer(record, dtype=self._layout)
        kind, space = table["identity"][0]
        if kind != self._identity[0]:
            raise StateCorrupt("a state record has a foreign header")
        if space != self._space:
            raise StateCorrupt("a state record belongs to another space")
        states, is_finite = self._numbers(table)
        if not is_finite[0]:
            raise StateCorrupt("a state record holds numbers that are not finite")
        return states[0], table["fingerprint"].tobytes()

    def decode_many(self, records: Sequence[bytes | None]) -> Decoded:
        """What `decode` gives of each, at once; where it would raise, and where there is none, `is_whole` is False."""
        has_size = np.array([record is not None and len(record) == self.record_bytes for record in records], dtype=bool)
        sized = [record for record, fits in zip(records, has_size.tolist(), strict=True) if record is not None and fits]
        table = np.frombuffer(b"".join(sized), dtype=self._layout)
        numbers, is_whole = self._numbers(table)
        is_whole &= (table["identity"] == self._identity).all(axis=1)
        if not is_whole.all():
            has_size[has_size] = is_whole
            table, numbers = table[is_whole], numbers[is_whole]
        if has_size.all():
            return Decoded(numbers, table["fingerprint"], has_size)
        states = np.zeros((len(records), self.hidden_size), dtype=np.float16)
        fingerprints = np.zeros(len(records), dtype=np.uint64)
        states[has_size], fingerprints[has_size] = numbers, table["fingerprint"]
        return Decoded(states, fingerprints, has_size)

    def as_stored(self, states: NDArray[np.floating]) -> NDArray[np.float16]:
        """`states` (n, D) as they come back."""
        return self.decode_many(self.encode_many(states, [bytes(8)] * len(states))).states

    def _numbers(self, table: NDArray[np.void]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """States (n, D) of records, and (n,) whether they are ones that we write: finite."""
        if not self._is_int8:
            bits = table["state"].view("<u2")  # comparing bits is many times faster than `isfinite` of float16
            return table["state"], ((bits & _EXPONENT) != _EXPONENT).all(axis=1)
        scales, numbers = table["scales"], table["numbers"]
        is_ours = (scales >= 0) & (scales <= _LARGEST_SCALE)  # False for NaN
        is_finite: NDArray[np.bool_] = np.all(is_ours, axis=1) & np.all(numbers >= -_STEPS, axis=1)
        known = np.where(is_finite[:, None], scales, 0).astype(np.float32)
        states = numbers.astype(np.float32) * _for_each_number(known, self.hidden_size)
        return states.astype(np.float16), is_finite


def _quantised(states: NDArray[np.floating]) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Scales (n, ⌈D/64⌉) and numbers (n, D) of finite states (n, D): each is off by half a scale at most.

    A scale is the least float16 that 127-fold reaches the largest of its group.
    """
    num_states, hidden_size = states.shape
    num_groups = -(-hidden_size // GROUP)
    padded = np.zeros((num_states, num_groups * GROUP), dtype=np.float32)
    padded[:, :hidden_size] = np.abs(states)
    exact = padded.reshape(num_states, num_groups, GROUP).max(axis=2) / _STEPS
    rounded = exact.astype(np.float16)
    upwards = np.where(rounded < exact, np.nextafter(rounded, np.float16(np.inf)), rounded)
    scales = np.minimum(upwards, _LARGEST_SCALE)
    units = _for_each_number(np.where(scales > 0, scales, 1).astype(np.float32), hidden_size)
    return scales, np.clip(np.rint(states / units), -_STEPS, _STEPS).astype(np.int8)


def _for_each_number(scales: NDArray[np.float32], hidden_size: int) -> NDArray[np.float32]:
    """(n, ⌈D/64⌉) → (n, D)."""
    return np.repeat(scales, GROUP, axis=1)[:, :hidden_size]
