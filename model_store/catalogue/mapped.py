"""Arrays of a safetensors file as they lie on disk: opened in no time, shared by all processes that open them.

The library itself reads numpy arrays into memory, hence this reader of its layout: eight bytes of size, a JSON header,
the numbers.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_DTYPES = {"BOOL": "?", "U8": "u1", "I32": "<i4", "I64": "<i8", "F64": "<f8"}


def read_mapped(file: Path) -> dict[str, NDArray[np.generic]]:
    """Read-only. Raises ValueError, KeyError or TypeError when it is no such file. Its checksum must be verified."""
    content = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
    size = int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8 : 8 + size].tobytes())
    numbers = content[8 + size :]
    return {
        name: _array(numbers, entry["dtype"], entry["shape"], *entry["data_offsets"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _array(numbers: NDArray[np.uint8], dtype: str, shape: list[int], start: int, stop: int) -> NDArray[np.generic]:
    return numbers[start:stop].view(_DTYPES[dtype]).reshape(shape)


def packed(values: Sequence[object]) -> NDArray[np.uint8]:
    """JSON as an array."""
    return np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)
