"""How voices rank on some targets: NDCG@10 with and without memory, how much memory counts, and each voice's share.

In: trained voices, pasts, targets, the language model's forecast. Out: numbers of a certificate.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.voices.candidates import Candidates, find_candidates
from model_store.voices.gate import FORECAST, POPULARITY
from model_store.voices.voices import Voices
from training.data.splits import Target
from training.items.pasts import Pasts
from training.items.voting import Forecast
from training.run.metrics import MISSED, ndcg, paired_bootstrap

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
_BATCH = 128


def ranks(
    voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast, scales: Sequence[float]
) -> NDArray[np.float64]:
    """(scales, targets) the rank of the truth from 0, where memory's part of the scores is multiplied by a scale."""
    found = [_ranks(voices, candidates, truth, scales) for candidates, truth in _all(voices, pasts, targets, forecast)]
    return np.array(found, dtype=np.float64).reshape(len(targets), len(scales)).T


def _all(
    voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast
) -> Iterator[tuple[Candidates, int]]:
    for start in range(0, len(targets), _BATCH):
        part = targets[start : start + _BATCH]
        mixtures = voices.mix(forecast(part), [pasts.past(target) for target in part])
        for row, target in enumerate(part):
            yield find_candidates(mixtures, row, pasts.allowed(target)), pasts.truth(target)


@torch.no_grad()
def _ranks(voices: Voices, candidates: Candidates, truth: int, scales: Sequence[float]) -> list[float]:
    places = np.flatnonzero(candidates.tokens == truth)
    if not len(places):
        return [float(MISSED)] * len(scales)
    window = torch.from_numpy(candidates.window)
    alone = voices.combiner.of_window(window)
    added = torch.zeros_like(alone)
    if candidates.older is not None:
        added = voices.combiner.of_memory(window, torch.from_numpy(candidates.older))
    scores = [alone + scale * added for scale in scales]
    return [_rank(each, int(places[0])) for each in scores]


def _rank(scores: torch.Tensor, place: int) -> float:
    """From 0; of equal scores half count as before, so a ranking that has learned nothing has a bad rank."""
    own = scores[place]
    return float((scores > own).sum()) + (float((scores == own).sum()) - 1) / 2


def choose_memory_scale(voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast) -> float:
    """The scale with the best NDCG@10, of equals the smallest. The networks are changed by it."""
    gained = ndcg(ranks(voices, pasts, targets, forecast, SCALES)).mean(axis=1)
    scale = SCALES[int(gained.argmax())]
    voices.combiner.memory.scale(scale)
    return scale


def memory_facts(voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast) -> dict[str, Any]:
    window, memory = ndcg(ranks(voices, pasts, targets, forecast, (0.0, 1.0)))
    drawn = paired_bootstrap({"window": window, "memory": memory}, np.array([target.user for target in targets]))
    return {
        "valid_ndcg@10_window": round(drawn.means["window"], 4),
        "valid_ndcg@10_memory": round(drawn.means["memory"], 4),
        "memory_minus_window": [round(value, 5) for value in drawn.difference("memory", "window")],
    }


def voice_shares(
    voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast
) -> dict[str, dict[str, float]]:
    """The mean weight of each voice in the mixture, of the window and of older events. All of them sum to one."""
    kept, window, older, popularity = 0.0, np.zeros(len(voices.channels)), np.zeros(len(voices.channels)), 0.0
    for start in range(0, len(targets), _BATCH):
        part = targets[start : start + _BATCH]
        first, second = voices.mix(forecast(part), [pasts.past(target) for target in part]).weights
        below = second.overall[:, [FORECAST]]  # the share of the window
        kept += float((below * first.overall[:, [FORECAST]]).sum())
        popularity += float((below * first.overall[:, [POPULARITY]]).sum() + second.overall[:, POPULARITY].sum())
        window += (below[..., None] * first.events).sum((0, 1)).numpy()
        older += second.events.sum((0, 1)).numpy()
    scale = max(1, len(targets))
    return {
        "overall": {"language_model": round(kept / scale, 4), "popularity": round(popularity / scale, 4)},
        "window": dict(zip(voices.channels, np.round(window / scale, 4).tolist(), strict=True)),
        "older": dict(zip(voices.channels, np.round(older / scale, 4).tolist(), strict=True)),
    }
