"""Limits of this machine, timing and printing: shared by all benchmarks.

Floors are computed from `matrix_rate` and `bandwidth`. Both are measured with torch in the same run as the work they
are compared with, and the best of several laps counts. Alternatives are timed by `paired`: they take turns, so that
other load on the machine hits all of them. Their medians are reported. `last_line` is the last line that a benchmark
prints: JSON for `summary.py`.

    from tests.benchmarks.machine import bandwidth, last_line, matrix_rate, median_ms, paired, table
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_store.lm.prepacked import prepack

ROOT = Path(__file__).resolve().parents[2]
# (rows, inner, outer) of matrix products as in a prefill of the 0.5b and 7b sizes, and one that is square.
MATRIX_SHAPES = ((640, 896, 4864), (1024, 1024, 4096), (2048, 2048, 2048))
_GPU_SHAPES = ((4096, 4096, 11008), (8192, 8192, 8192))
_BUFFER_BYTES = 2**28  # many times the size of a last-level cache
_LAPS = 7


def commit() -> str:
    """Short hash of the commit, with `+` if the working tree differs; `unknown` outside a repository."""
    found = subprocess.run(
        ["git", "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude", "*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def facts(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Commit, hardware, threads, torch version and load of the machine."""
    named = {"cores": os.cpu_count(), "cpu": _cpu_name(), "threads": torch.get_num_threads()}
    if torch.device(device).type == "cuda":
        named["gpu"] = torch.cuda.get_device_name(device)
    return {"commit": commit(), **named, "torch": torch.__version__, "load_1min": round(os.getloadavg()[0], 1)}


def _cpu_name() -> str:
    """Model of the processor as Linux names it, otherwise its architecture."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --- limits of the machine --------------------------------------------------------------------------------------------


@cache
def matrix_rate(dtype: torch.dtype = torch.float32, threads: int | None = None, device: str = "cpu") -> float:
    """Operations (multiplications + additions) per second of large products, the best of several shapes and laps.

    The matrix is laid out as torch does or as `lm/prepacked.py` does, whichever is faster. `threads` None leaves
    torch's own number. int8 is summed in int32. Measured once a process.
    """
    shapes = MATRIX_SHAPES if torch.device(device).type == "cpu" else _GPU_SHAPES
    with num_threads(threads), torch.inference_mode():
        return max(_product_rate(shape, dtype, device) for shape in shapes)


def _product_rate(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> float:
    rows, inner, outer = shape
    left, right = 10 * torch.randn(rows, inner), 10 * torch.randn(outer, inner)
    left, right = left.to(device, dtype), right.to(device, dtype)
    if dtype == torch.int8:
        products: list[Callable[[], Any]] = [partial(torch._int_mm, left, right.t())]
    else:
        plain = torch.nn.Linear(inner, outer, bias=False, device="meta")
        plain.weight = torch.nn.Parameter(right, requires_grad=False)
        products = [partial(plain, left), partial(prepack(plain), left)]
    best = min(min(laps(product, _LAPS, device=device)) for product in products)
    return 2 * rows * inner * outer / best


@cache
def bandwidth(threads: int | None = None, device: str = "cpu") -> float:
    """Bytes per second of summing or of copying a buffer too large for any cache; the better of the two."""
    source = torch.ones(_BUFFER_BYTES // 4, device=device)
    target = torch.empty_like(source)
    with num_threads(threads), torch.inference_mode():
        summed = _BUFFER_BYTES / min(laps(source.sum, _LAPS, device=device))
        copied = 2 * _BUFFER_BYTES / min(laps(partial(target.copy_, source), _LAPS, device=device))
    return max(summed, copied)


@contextmanager
def num_threads(threads: int | None) -> Iterator[None]:
    """Set torch's intra-op threads inside the block. None: unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- timing -----------------------------------------------------------------------------------------------------------


def timed(function: Callable[[], Any], *, device: str = "cpu") -> tuple[float, Any]:
    """Seconds and the result. On a GPU, waits until its work is done."""
    _synchronise(device)
    started = time.perf_counter()
    result = function()
    _synchronise(device)
    return time.perf_counter() - started, result


def laps(function: Callable[[], Any], repeats: int, *, device: str = "cpu", warm_up: int = 1) -> list[float]:
    """Seconds of each of `repeats` runs, after `warm_up` runs that are not counted."""
    return paired([function], repeats, device=device, warm_up=warm_up)[0]


def paired(
    functions: Sequence[Callable[[], Any]], repeats: int, *, device: str = "cpu", warm_up: int = 1
) -> list[list[float]]:
    """Seconds of each run of each function. The functions take turns; `warm_up` rounds are not counted."""
    rounds = [[timed(each, device=device)[0] for each in functions] for _ in range(warm_up + repeats)]
    return [list(column) for column in zip(*rounds[warm_up:], strict=True)]


def _synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    return 1000 * float(np.percentile(seconds, percent))


# --- printing ---------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[object]]) -> str:
    """Text with aligned columns. The first row is the heading; the first column is left-aligned."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(width) if place else text.ljust(width) for place, (text, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in cells)
    )


def cell(value: object) -> str:
    """Floats with three significant digits; None is a dash."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "–" if value is None else str(value)


def last_line(name: str, results: Mapping[str, Any], *, device: str = "cpu") -> str:
    """One line of JSON: the results and the facts of the machine."""
    return json.dumps({"benchmark": name, **_rounded(results), "machine": facts(device)})


def _rounded(value: Any) -> Any:
    """Four significant digits: the fifth is noise."""
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
