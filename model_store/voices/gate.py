"""The gate: a small network that decides how much each voice counts, for one user at one time."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model_store.voices.layers import Standardiser, zero_linear

FORECAST, POPULARITY = range(2)  # columns of `Weights.overall`
_OVERALL = 2
_FORECAST_FIRST = 3.0  # logit of the forecast before training
_NO_WEIGHT = -1e9


class Weights(NamedTuple):
    """Weights of the voices, which sum to one for each row of the batch, or (from `Gate`) their logarithms.

    `overall` (B, 2): the forecast and popularity. `events` (B, n, C): channel c of event i.
    """

    overall: Tensor
    events: Tensor


class Gate(nn.Module):
    """Event features (B, n, F) and query features (B, Q) → logarithms of the weights, −1e9 for what cannot vote."""

    def __init__(self, num_features: int, num_query_features: int, num_channels: int, *, width: int = 32) -> None:
        super().__init__()
        self.standard_events = Standardiser(num_features)
        self.standard_queries = Standardiser(num_query_features)
        self.events = nn.Sequential(nn.Linear(num_features, width), nn.GELU(), zero_linear(width, num_channels))
        self.overall = zero_linear(num_query_features, _OVERALL)
        with torch.no_grad():
            self.overall.bias[FORECAST] = _FORECAST_FIRST

    def forward(self, events: Tensor, queries: Tensor, can_vote: Tensor) -> Weights:
        """`can_vote` (B, n, C): which channels of which events may count."""
        logits = self.events(self.standard_events(events)).masked_fill(~can_vote, _NO_WEIGHT)
        overall = self.overall(self.standard_queries(queries))
        joined = torch.cat([overall, logits.flatten(1)], dim=1).log_softmax(dim=1)
        return Weights(joined[:, :_OVERALL], joined[:, _OVERALL:].view(logits.shape))
