"""Memory-mapped arrays of a safetensors file: they open without reading the file, and processes share them.

The safetensors library reads numpy arrays into memory. This module therefore parses the file format itself: eight bytes
with the size of the header, the header as JSON, the numbers.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_DTYPES = {"BOOL": "?", "U8": "u1", "I32": "<i4", "I64": "<i8", "F64": "<f8"}


def read_mapped(file: Path) -> dict[str, NDArray[np.generic]]:
    """The arrays of `file` by name, read-only. Verify the checksum of the file first.

    Raises ValueError, KeyError or TypeError if it is no safetensors file of these dtypes.
    """
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


def json_array(values: Sequence[object]) -> NDArray[np.uint8]:
    """`values` as JSON text in an array of bytes."""
    return np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)
