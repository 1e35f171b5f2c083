"""The precision of matrix products in the layers of a model on a CPU: as stored, bfloat16 or int8.

`float32`   every matrix as it is stored
`bfloat16`  the matrices of the layers in bfloat16
`int8`      the first matrices of the feed-forward parts, more than half of a model, in int8 with one scale per output;
            their inputs in int8 with one scale per token; the other matrices of the layers in bfloat16

Embeddings, norms, attention, the residual stream and the head stay as they are stored: a head in bfloat16 alone would
change the first item for 3 % of the users. Scores and states still change a little.
"""

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from model_store.lm.split_lm import SplitLM

Precision = Literal["float32", "bfloat16", "int8"]
_LARGEST = 127
_INT8_LAYERS = ("gate_proj", "up_proj", "gate_up_proj", "dense_h_to_4h")


def set_precision(lm: SplitLM, precision: Precision) -> None:
    """Convert the layers of `lm` in place; irreversible. `float32` changes nothing.

    Raises ValueError if the precision is unknown, the device is not a CPU, or the CPU cannot compute int8 exactly.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(get_args(Precision))}")
    if precision == "float32":
        return
    if lm.device.type != "cpu":
        raise ValueError(f"{precision} is for CPUs; for {lm.device} store the model in bfloat16 instead")
    if precision == "int8" and not _int8_is_exact():
        raise ValueError("int8 sums overflow on this CPU, which has no VNNI: choose bfloat16 or float32")
    head = lm.model.get_output_embeddings()

    def convert(name: str, linear: nn.Linear) -> nn.Module:
        if linear is head:
            return linear
        return Int8Linear(linear) if precision == "int8" and name in _INT8_LAYERS else Bfloat16Linear(linear)

    lm.replace_linears(convert)


class Bfloat16Linear(nn.Module):
    """inputs (…, in) → (…, out) in the dtype of the inputs; the product is in bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.product = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        self.product.weight = nn.Parameter(linear.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.product(inputs.to(torch.bfloat16)).to(inputs.dtype)
        return outputs if self.bias is None else outputs + self.bias


class Int8Linear(nn.Module):
    """inputs (…, in) → (…, out) in the dtype of the inputs; the product is in int8."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _quantise_rows(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)  # (out, in) int8
        self.scale = nn.Parameter(scale[:, 0].contiguous(), requires_grad=False)  # (out,)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        rows, scale = _quantise_rows(inputs.flatten(0, -2))
        sums = torch._int_mm(rows, self.weight.t())  # int32, exact
        outputs = sums.float().mul_(scale).mul_(self.scale).to(inputs.dtype).unflatten(0, inputs.shape[:-1])
        return outputs if self.bias is None else outputs + self.bias


@cache
def _int8_is_exact() -> bool:
    """Whether the largest products add up exactly. CPUs without VNNI add pairs of products in 16 bits."""
    largest = torch.full((32, 64), _LARGEST, dtype=torch.int8)
    return int(torch._int_mm(largest, largest.t()).max()) == 64 * _LARGEST**2


def _quantise_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise `rows` (R, C): int8 numbers (R, C), and the scale of each row, (R, 1) float32."""
    rows = rows.float()
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny * _LARGEST) / _LARGEST
    return (rows / scale).round_().to(torch.int8), scale
