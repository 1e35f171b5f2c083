"""The combiner: small networks that rank the candidates by what each voice gives to them.

    score(item) = r(features of the window) + m(features of the window and of older events)

`r` ranks without memory. `m` is what older events add, and is 0 for a user without any, so memory is one separate term
of every score. Each is the mean of a few networks with different random starts: their mean changes less from one
training to the next than a single network.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_store.voices.layers import Standardiser, zero_linear


class Rankers(nn.Module):
    """Features (…, F) → scores (…, E) of E networks: a linear and a hidden layer, both zero before training."""

    def __init__(self, num_features: int, *, num_members: int, width: int) -> None:
        super().__init__()
        self.num_members = num_members
        self.standard = Standardiser(num_features)
        self.linear = zero_linear(num_features, num_members)
        self.hidden = nn.Linear(num_features, num_members * width)
        self.last = nn.Parameter(torch.zeros(num_members, width))

    def forward(self, features: Tensor) -> Tensor:
        standard = self.standard(features)
        hidden = F.gelu(self.hidden(standard)).unflatten(-1, (self.num_members, -1))
        scores: Tensor = self.linear(standard) + (hidden * self.last).sum(dim=-1)
        return scores

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiplies all scores by `factor`."""
        for parameter in (self.linear.weight, self.linear.bias, self.last):
            parameter.mul_(factor)

    @torch.no_grad()
    def add(self, feature: int, weight: float) -> None:
        """Adds `weight` times a feature to all scores, up to a constant."""
        self.linear.weight[:, feature] += weight * self.standard.scale[feature]


class Combiner(nn.Module):
    """`num_window` and `num_older`: the number of features of each kind."""

    def __init__(self, num_window: int, num_older: int, *, num_members: int = 3, width: int = 32) -> None:
        super().__init__()
        self.num_older = num_older
        self.window = Rankers(num_window, num_members=num_members, width=width)
        self.memory = Rankers(num_window + num_older, num_members=num_members, width=width)

    def of_window(self, window: Tensor) -> Tensor:
        """r: `window` (…, F) → (…)."""
        scores: Tensor = self.window(window).mean(dim=-1)
        return scores

    def of_memory(self, window: Tensor, older: Tensor) -> Tensor:
        """m: what older events add to the scores."""
        scores: Tensor = self.memory(torch.cat([window, older], dim=-1)).mean(dim=-1)
        return scores

    def use_memory(self, scale: float, discount: float, *, column: int) -> None:
        """Multiplies m by `scale`, then subtracts `discount` times a column of the features of older events."""
        self.memory.scale(scale)
        self.memory.add(self.window.linear.in_features + column, -discount)
