"""The combiner: small networks that rank the candidates by what all voices say of them.

    score(item) = r(features of the window) + m(features of the window and of older events)

`r` ranks without memory. `m` is what older events add, and is 0 for a user without any, so memory is one separate term
of every score. Each is the mean of a few networks with different random starts: their mean changes less from one
training to the next than a single network.
"""

import torch
from torch import Tensor, nn

from model_store.voices.layers import Standardiser, zero_linear


class Ranker(nn.Module):
    """Features (…, F) → scores (…): a linear layer plus one hidden layer, both zero before training."""

    def __init__(self, num_features: int, *, width: int = 32) -> None:
        super().__init__()
        self.standard = Standardiser(num_features)
        self.linear = zero_linear(num_features, 1)
        self.hidden = nn.Sequential(nn.Linear(num_features, width), nn.GELU())
        self.last = zero_linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        standard = self.standard(features)
        scores: Tensor = (self.linear(standard) + self.last(self.hidden(standard)))[..., 0]
        return scores

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiplies all scores by `factor`."""
        for layer in (self.linear, self.last):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)


class Combiner(nn.Module):
    """`num_window` and `num_older`: the number of features of each kind. `num_members`: networks whose mean counts."""

    def __init__(self, num_window: int, num_older: int, *, num_members: int = 3, width: int = 32) -> None:
        super().__init__()
        self.num_older = num_older
        both = num_window + num_older
        self.window = nn.ModuleList(Ranker(num_window, width=width) for _ in range(num_members))
        self.memory = nn.ModuleList(Ranker(both, width=width) for _ in range(num_members))

    def rankers(self, *, of_memory: bool) -> list[Ranker]:
        members = self.memory if of_memory else self.window
        return [member for member in members if isinstance(member, Ranker)]

    def of_window(self, window: Tensor) -> Tensor:
        """r: `window` (…, F) → (…)."""
        return torch.stack([member(window) for member in self.window]).mean(dim=0)

    def of_memory(self, window: Tensor, older: Tensor) -> Tensor:
        """m: what older events add to the scores."""
        both = torch.cat([window, older], dim=-1)
        return torch.stack([member(both) for member in self.memory]).mean(dim=0)
