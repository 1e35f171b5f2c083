"""Layers that the gate and the combiner share."""

import torch
from torch import Tensor, nn

_LEAST_SCALE, _FARTHEST = 1e-3, 10.0


class Standardiser(nn.Module):
    """Subtracts the mean of a sample and divides by its standard deviation; changes little before `fit`.

    A number that is constant in the sample is only shifted, and results are cut to ±10: what is far outside the sample
    must not decide alone.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def fit(self, sample: Tensor) -> None:
        """`sample`: (S, size)."""
        self.mean.copy_(sample.mean(dim=0))
        scale = sample.std(dim=0, correction=0)
        self.scale.copy_(torch.where(scale < _LEAST_SCALE, torch.ones_like(scale), scale))

    def forward(self, values: Tensor) -> Tensor:
        return ((values - self.mean) / self.scale).clamp(-_FARTHEST, _FARTHEST)


def zero_linear(num_in: int, num_out: int) -> nn.Linear:
    layer = nn.Linear(num_in, num_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
