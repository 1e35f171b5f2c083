"""The language model's probabilities of the next item, without memory.

In: a backbone, windows, targets. Out: (targets, V) arrays.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.lm.padding import pad
from training.data.splits import Target
from training.items.voting import Forecast
from training.lm.backbone import Backbone
from training.lm.windows import Windows
from training.run.stage import progress

_BATCH = 64


def cached_forecast(backbone: Backbone, windows: Windows, targets: Sequence[Target]) -> Forecast:
    """The language model's probabilities of the next item without memory, in float16, computed once per target."""
    parts, rows = [], {target: row for row, target in enumerate(targets)}
    for start in progress(range(0, len(targets), _BATCH), desc="forecasts", unit="batch"):
        parts.append(forecast_of(backbone, windows, targets[start : start + _BATCH]).astype(np.float16))
    found = np.concatenate(parts)
    return lambda wanted: found[[rows[target] for target in wanted]].astype(np.float32)


@torch.inference_mode()
def forecast_of(backbone: Backbone, windows: Windows, targets: Sequence[Target]) -> NDArray[np.float32]:
    """(targets, V)"""
    prompts = [windows.prompt_ending_at(target.user, target.position - 1) for target in targets]
    padded = pad(prompts, device=backbone.lm.device)
    logits = backbone.lm.top(backbone.lm.bottom(*padded), padded.mask, num_logits=1)[:, -1]
    found: NDArray[np.float32] = logits.float().softmax(dim=-1).numpy(force=True)
    return found
