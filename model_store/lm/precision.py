"""How the layers of an opened model multiply on a processor: as they are stored, in bfloat16, or in int8.

`bfloat16`  the matrices of the layers
`int8`      the same, but the matrices into the middle of the feed-forward parts, which are more than half of a model,
            with one scale for each output, and what they are multiplied with with one for each token

Embeddings, norms, attention, the residual stream and the head stay as they are stored: a head in bfloat16 alone turns
three first items in a hundred around. Scores and states change a little all the same.
"""

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from model_store.lm.split_lm import SplitLM

Precision = Literal["float32", "bfloat16", "int8"]
_LARGEST = 127
_INT8 = ("gate_proj", "up_proj", "gate_up_proj", "dense_h_to_4h")


def set_precision(lm: SplitLM, precision: Precision) -> None:
    """In place, and not to be undone. `float32` leaves the model as it is stored.

    Raises ValueError for an unknown precision, and for a lower one on a device that is no processor, or not up to it.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(get_args(Precision))}")
    if precision == "float32":
        return
    if lm.device.type != "cpu":
        raise ValueError(f"{precision} is for processors; on {lm.device} store the model in bfloat16 instead")
    if precision == "int8" and not _int8_is_exact():
        raise ValueError("int8 sums overflow on this processor, which has no VNNI: choose bfloat16, or none")
    head = lm.model.get_output_embeddings()

    def lowered(name: str, linear: nn.Linear) -> nn.Module:
        if linear is head:
            return linear
        return Int8Linear(linear) if precision == "int8" and name in _INT8 else Bfloat16Linear(linear)

    lm.replace_linears(lowered)


class Bfloat16Linear(nn.Module):
    """x (…, in) → (…, out) in the dtype of x."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.product = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        self.product.weight = nn.Parameter(linear.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.product(inputs.to(torch.bfloat16)).to(inputs.dtype)
        return outputs if self.bias is None else outputs + self.bias


class Int8Linear(nn.Module):
    """x (…, in) → (…, out) in the dtype of x."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _rounded(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)  # (out, in) int8
        self.scale = nn.Parameter(scale[:, 0].contiguous(), requires_grad=False)  # (out,)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        rows, scale = _rounded(inputs.flatten(0, -2))
        sums = torch._int_mm(rows, self.weight.t())  # exact, in int32
        outputs = sums.float().mul_(scale).mul_(self.scale).to(inputs.dtype).unflatten(0, inputs.shape[:-1])
        return outputs if self.bias is None else outputs + self.bias


@cache
def _int8_is_exact() -> bool:
    """Older processors add pairs of products in 16 bits."""
    largest = torch.full((32, 64), _LARGEST, dtype=torch.int8)
    return int(torch._int_mm(largest, largest.t()).max()) == 64 * _LARGEST**2


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C) as int8, and what one step is worth in each row, (R, 1) float32."""
    rows = rows.float()
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny * _LARGEST) / _LARGEST
    return (rows / scale).round_().to(torch.int8), scale
