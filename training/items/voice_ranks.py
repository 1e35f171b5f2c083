"""How voices rank on some targets: NDCG@10 with and without memory, how memory is used, and each voice's share.

In: trained voices, pasts, targets, the language model's forecast. Out: numbers of a certificate.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.voices.candidates import Candidates, find_candidates, return_column
from model_store.voices.gate import FORECAST, POPULARITY
from model_store.voices.voices import Voices
from training.data.splits import Target
from training.items.pasts import Pasts
from training.items.voting import Forecast
from training.run.metrics import MISSED, ndcg, paired_bootstrap, standard_error

_SCALES = (0.25, 0.5, 0.75, 1.0)
_DISCOUNTS = (0.25, 0.5, 0.75, 1.0)  # nats
_LEAST_GAIN = 0.8
_BATCH = 128


class MemoryUse(NamedTuple):
    """How what memory adds to the scores is used: multiplied by `scale`, and less `discount` for items of older events.

    A list has ten places. Items that may come back take places of new ones, and the discount returns some of them.
    """

    scale: float
    discount: float


NO_MEMORY, ALL_MEMORY = MemoryUse(0.0, 0.0), MemoryUse(1.0, 0.0)


def ranks(
    voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast, uses: Sequence[MemoryUse]
) -> NDArray[np.float64]:
    """(uses, targets) the rank of the truth from 0."""
    found = [_ranks(voices, candidates, truth, uses) for candidates, truth in _all(voices, pasts, targets, forecast)]
    return np.array(found, dtype=np.float64).reshape(len(targets), len(uses)).T


def _all(
    voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast
) -> Iterator[tuple[Candidates, int]]:
    for start in range(0, len(targets), _BATCH):
        part = targets[start : start + _BATCH]
        mixtures = voices.mix(forecast(part), [pasts.past(target) for target in part])
        for row, target in enumerate(part):
            yield find_candidates(mixtures, row, pasts.allowed(target)), pasts.truth(target)


@torch.no_grad()
def _ranks(voices: Voices, candidates: Candidates, truth: int, uses: Sequence[MemoryUse]) -> list[float]:
    places = np.flatnonzero(candidates.tokens == truth)
    if not len(places):
        return [float(MISSED)] * len(uses)
    window = torch.from_numpy(candidates.window)
    alone = voices.combiner.of_window(window)
    added = is_back = torch.zeros_like(alone)
    if candidates.older is not None:
        older = torch.from_numpy(candidates.older)
        added, is_back = voices.combiner.of_memory(window, older), older[:, return_column(len(voices.spec.tables))]
    return [_rank(alone + use.scale * added - use.discount * is_back, int(places[0])) for use in uses]


def _rank(scores: torch.Tensor, place: int) -> float:
    """From 0; of equal scores half count as before, so a ranking that has learned nothing has a bad rank."""
    own = scores[place]
    return float((scores > own).sum()) + (float((scores == own).sum()) - 1) / 2


def choose_memory_use(voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast) -> MemoryUse:
    """Chooses how memory is used, by NDCG@10; the networks are changed by it.

    Takes the scale with the largest gain, of equals the smallest. Where items that are new to a user lose by it, a
    discount is chosen: of the uses that reach `_LEAST_GAIN` of the gain, the best one with which new items gain a
    standard error or more. If there is none, there is no discount.
    """
    plain = [NO_MEMORY, *(MemoryUse(scale, 0.0) for scale in _SCALES)]
    discounted = [MemoryUse(*pair) for pair in product(_SCALES, _DISCOUNTS)] if voices.spec.has_returns else []
    found = ndcg(ranks(voices, pasts, targets, forecast, plain + discounted))
    is_new = np.array([not pasts.had_truth(target) for target in targets])
    best = best_use(found - found[0], len(plain), is_new, [target.user for target in targets])
    chosen = (plain + discounted)[best]
    voices.combiner.use_memory(*chosen, column=return_column(len(voices.spec.tables)))
    return chosen


def best_use(gains: NDArray[np.float64], num_plain: int, is_new: NDArray[np.bool_], users: Sequence[int]) -> int:
    """A row of `gains` (uses, targets), of which the first `num_plain` have no discount."""
    means, of_new = gains.mean(axis=1), gains[:, is_new]
    plain = int(means[:num_plain].argmax())
    if not is_new.any() or of_new[plain].mean() >= 0:
        return plain
    whose = [user for user, new in zip(users, is_new, strict=True) if new]
    kept = [
        use
        for use in range(num_plain, len(gains))
        if means[use] >= _LEAST_GAIN * means[plain] and of_new[use].mean() >= standard_error(of_new[use], whose)
    ]
    return kept[int(means[kept].argmax())] if kept else plain


def memory_facts(voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast) -> dict[str, Any]:
    window, memory = ndcg(ranks(voices, pasts, targets, forecast, (NO_MEMORY, ALL_MEMORY)))
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
