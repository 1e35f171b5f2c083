"""Matrices of a model in the layout that a processor multiplies with fastest.

torch hands float32 products to a library that lays the matrix out anew at every call, and whose kernels for few rows
are far from the memory's bandwidth. oneDNN, which is part of torch, takes a matrix that was laid out once: 1.2 to 4
times faster for 1 to 160 rows. The results are those of `F.linear` up to rounding. Inference only.
"""

from functools import cache

import torch
from torch import Tensor, nn

from model_store.lm.split_lm import SplitLM

_MIN_NUMBERS = 2**18  # of a matrix; below, what a call costs is more than what the layout saves


class PackedLinear(nn.Module):
    """x (…, in) → (…, out), as the layer it was made of."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return outputs


def pack(linear: nn.Linear) -> nn.Module:
    """The layer itself where packing is not possible or does not pay."""
    weight = linear.weight
    pays = weight.numel() >= _MIN_NUMBERS and weight.device.type == "cpu"
    return PackedLinear(linear) if pays and _can_pack(weight.dtype) else linear


def pack_matrices(lm: SplitLM) -> None:
    """In place, and not to be undone. An embedding that shares its numbers with the head keeps a copy of its own."""
    lm.replace_linears(lambda _, linear: pack(linear))


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Found out by trying: bfloat16 wants AVX-512 or the like, and torch may be built without oneDNN."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        with torch.inference_mode():
            PackedLinear(nn.Linear(16, 16, dtype=dtype))(torch.zeros(1, 16, dtype=dtype))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True
