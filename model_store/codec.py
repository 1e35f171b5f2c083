"""State ↔ bytes: the record of one memory element.

    offset  bytes  field
    0       2      magic "Zm"
    2       1      codec version
    3       1      dtype code (1 = float16, little endian)
    4       4      D, unsigned
    8       8      space id, first 8 bytes of its ASCII form's hash
    16      8      fingerprint of the window the state was made from
    24      2·D    the state

Bytes read back are input: each field is checked, and the numbers must be finite.
"""

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

from model_store.errors import StateCorrupt

HEADER = struct.Struct("<2sBBI8s8s")
HEADER_BYTES = HEADER.size
_MAGIC, _VERSION, _FLOAT16 = b"Zm", 1, 1
_LARGEST = float(np.finfo(np.float16).max)


class StateCodec:
    """Writes and reads states of one space and one hidden size."""

    def __init__(self, space: str, hidden_size: int) -> None:
        self.hidden_size = hidden_size
        self._space = hashlib.sha256(space.encode()).digest()[:8]

    def encode(self, state: NDArray[np.floating], fingerprint: bytes) -> bytes:
        """`state` (D,) of any float type; values beyond float16 are clipped. Raises StateCorrupt if not finite."""
        if state.shape != (self.hidden_size,) or not np.isfinite(state).all():
            raise StateCorrupt(f"cannot store a state of shape {state.shape} or with numbers that are not finite")
        header = HEADER.pack(_MAGIC, _VERSION, _FLOAT16, self.hidden_size, self._space, fingerprint)
        return header + np.clip(state, -_LARGEST, _LARGEST).astype("<f2").tobytes()

    def decode(self, record: bytes) -> tuple[NDArray[np.float16], bytes]:
        """The state (D,) float16 and the fingerprint of its window. Raises StateCorrupt."""
        if len(record) != HEADER_BYTES + 2 * self.hidden_size:
            raise StateCorrupt(f"a state record has {len(record)} bytes, not {HEADER_BYTES + 2 * self.hidden_size}")
        magic, version, dtype, hidden_size, space, fingerprint = HEADER.unpack_from(record)
        if (magic, version, dtype, hidden_size) != (_MAGIC, _VERSION, _FLOAT16, self.hidden_size):
            raise StateCorrupt("a state record has a foreign header")
        if space != self._space:
            raise StateCorrupt("a state record belongs to another space")
        state = np.frombuffer(record, dtype="<f2", offset=HEADER_BYTES)
        if not np.isfinite(state).all():
            raise StateCorrupt("a state record holds numbers that are not finite")
        return state, fingerprint
