"""Where and how torch computes in training: the device, bf16 where it is faster, the seeds."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from training.run.stage import StageError

_MIN_BF16_WIDTH = 128  # below this hidden size casting costs as much as bf16 saves


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is cuda if there is one, else cpu. Raises StageError for a device that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise StageError(f"--device {name}: not usable here ({str(error).splitlines()[0]})") from error


def autocast(device: torch.device, width: int) -> AbstractContextManager[Any]:
    """bf16 where it is faster: on a GPU, and on a CPU with bf16 instructions if `width`, the hidden size, is ≥ 128."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return _autocast_cpu() if width >= _MIN_BF16_WIDTH and has_bf16_instructions() else nullcontext()


def has_bf16_instructions() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@contextmanager
def _autocast_cpu() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16), _Float32Attention():
        yield


class _Float32Attention(TorchFunctionMode):
    """Computes attention in fp32: on a CPU the backward pass of torch's bf16 kernel takes four times as long."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            found = func(*(each.float() for each in args[:3]), *args[3:], **(kwargs or {}))
        return found.to(args[0].dtype)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
