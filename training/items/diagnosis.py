"""Whether events older than the window help to rank the next item, measured without a language model.

In: voices before training (`model_store.voices`), pasts, valid targets. Out: the NDCG@10 of each target from the window
alone and from window and older events together. The forecast of the language model is replaced by popularity. The users
are split into two halves: voices are trained on one half and measured on the other, then the halves change places. So
each target is measured once, by voices that were not trained on its user.

Beside it, for comparison, two rankings that learn nothing: items by popularity, and the user's own earlier items.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.voices.candidates import find_candidates
from model_store.voices.mixtures import Mixtures
from model_store.voices.voices import Voices
from training.data.splits import Target
from training.items.pasts import Pasts
from training.items.voice_setup import split_by_user
from training.items.voting import Forecast, train_voices
from training.run.metrics import MISSED, ndcg, paired_bootstrap
from training.run.stage import progress

FEWEST_TARGETS, FEWEST_USERS = 50, 8  # fewer cannot be measured
_TIMED_TARGETS = 64
_BATCH = 128
_COST = 15.0  # times the candidates of a target: its share of training and measuring (10 to 15 on two data sets)
_DIGITS = 5


class Measured(NamedTuple):
    """(targets,) each; the NDCG@10 of four rankings. `own` is 0 where users do not come back to items."""

    user: NDArray[np.int64]
    had: NDArray[np.bool_]  # whether the user had the true item before
    window: NDArray[np.float64]
    memory: NDArray[np.float64]  # window and older events
    popularity: NDArray[np.float64]
    own: NDArray[np.float64]

    def at(self, rows: NDArray[np.bool_]) -> "Measured":
        numbers = (part[rows] for part in (self.window, self.memory, self.popularity, self.own))
        return Measured(self.user[rows], self.had[rows], *numbers)


def measure(voices: Voices, pasts: Pasts, targets: Sequence[Target], *, seed: int) -> Measured | None:
    """None where there are too few targets or users. `voices` are not changed."""
    halves = halves_of(targets, seed)
    if len(targets) < FEWEST_TARGETS or len({target.user for target in targets}) < FEWEST_USERS:
        return None
    parts = [_measure_half(voices, pasts, *pair, seed=seed) for pair in (halves, halves[::-1])]
    return Measured(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def halves_of(targets: Sequence[Target], seed: int) -> tuple[list[Target], list[Target]]:
    """Targets of two halves of the users."""
    users = np.unique([target.user for target in targets])
    chosen = set(np.random.default_rng(seed).permutation(users)[: len(users) // 2].tolist())
    return (
        [target for target in targets if target.user not in chosen],
        [target for target in targets if target.user in chosen],
    )


def _measure_half(
    untrained: Voices, pasts: Pasts, fitting: Sequence[Target], targets: Sequence[Target], *, seed: int
) -> Measured:
    torch.manual_seed(seed)  # of the first weights
    voices = Voices(untrained.spec, untrained.facts, untrained.tables)
    teach, judge = split_by_user(fitting, seed)
    train_voices(voices, pasts, teach, judge, popular_forecast(voices), seed=seed)
    ranks = np.array(list(_ranks(voices, pasts, targets)))  # (targets, 4)
    return Measured(
        np.array([target.user for target in targets]),
        np.array([pasts.had_truth(target) for target in targets]),
        *ndcg(ranks.T),
    )


def _ranks(voices: Voices, pasts: Pasts, targets: Sequence[Target]) -> Iterator[tuple[float, float, float, float]]:
    """For each target the ranks of the truth in the four rankings of `Measured`."""
    forecast, bar = popular_forecast(voices), progress(total=len(targets), desc="ranks", unit="target")
    for start in range(0, len(targets), _BATCH):
        part = targets[start : start + _BATCH]
        mixtures = voices.mix(forecast(part), [pasts.past(target) for target in part])
        for row, target in enumerate(part):
            yield *voted_ranks(voices, mixtures, row, pasts=pasts, target=target), *_plain_ranks(voices, pasts, target)
        bar.update(len(part))
    bar.close()


@torch.no_grad()
def voted_ranks(voices: Voices, mixtures: Mixtures, row: int, pasts: Pasts, target: Target) -> tuple[float, float]:
    """Without and with older events. Of equal scores the mixture decides, so a ranking that has learned nothing is that
    of the mixture.
    """
    found, combiner = find_candidates(mixtures, row, pasts.allowed(target)), voices.combiner
    place = np.flatnonzero(found.tokens == pasts.truth(target))
    if not len(place):
        return float(MISSED), float(MISSED)
    window = torch.from_numpy(found.window)
    alone = both = combiner.of_window(window)
    if found.older is not None:
        both = alone + combiner.of_memory(window, torch.from_numpy(found.older))
    shares = mixtures.window[row, found.tokens], found.mixture
    first, second = (
        rank_of(scores.numpy(), share, int(place[0])) for scores, share in zip((alone, both), shares, strict=True)
    )
    return first, second


def rank_of(scores: NDArray[np.float32], second: NDArray[np.float32], place: int) -> float:
    """The rank, from 0, of the element at `place` by falling `scores`, of equals by `second`. Full ties count half."""
    ties = scores == scores[place]
    before = (scores > scores[place]) | (ties & (second > second[place]))
    return float(before.sum() + ((ties & (second == second[place])).sum() - 1) / 2)


def popular_forecast(voices: Voices) -> Forecast:
    """Popularity in the place of the language model."""
    return lambda targets: np.repeat(voices.popularity[None], len(targets), axis=0)


def _plain_ranks(voices: Voices, pasts: Pasts, target: Target) -> tuple[float, float]:
    """Rank of the truth by popularity, ties count half; and among the user's own items, see `own_items`."""
    truth, allowed = pasts.truth(target), pasts.allowed(target)
    scores = voices.popularity[allowed]
    popular = rank_of(scores, scores, int(np.flatnonzero(allowed == truth)[0]))
    if not voices.spec.has_returns:
        return popular, float(MISSED)
    places = np.flatnonzero(own_items(pasts, target) == truth)
    return popular, float(places[0] if len(places) else MISSED)


def own_items(pasts: Pasts, target: Target) -> NDArray[np.int64]:
    """The tokens of the user's past that may be shown: those with the most events first, of equals the latest."""
    past = pasts.past(target)
    tokens, latest, counts = np.unique(past.tokens[::-1], return_index=True, return_counts=True)
    ordered = tokens[np.lexsort((latest, -counts))]
    found: NDArray[np.int64] = ordered[~np.isin(ordered, pasts.hidden(target))]
    return found


def num_affordable(voices: Voices, pasts: Pasts, targets: Sequence[Target], seconds: float) -> int:
    """About how many targets `measure` gets through in so many seconds, never fewer than it needs at least."""
    sample = targets[:_TIMED_TARGETS]
    forecast, started = popular_forecast(voices), time.monotonic()
    mixtures = voices.mix(forecast(sample), [pasts.past(target) for target in sample])
    for row, target in enumerate(progress(sample, desc="speed", unit="target")):
        find_candidates(mixtures, row, pasts.allowed(target))
    each = _COST * (time.monotonic() - started) / len(sample)
    return max(FEWEST_TARGETS, int(max(seconds, 0.0) / each))


# ---- numbers


def gain_facts(measured: Measured, *, seed: int) -> dict[str, Any]:
    """Means and 95 % intervals by user, of all targets, of returning ones (the user had the item) and of new ones.

    None for a part that has too few users.
    """
    parts = {"returning": measured.at(measured.had), "new": measured.at(~measured.had)}
    return {"all": _gain(measured, seed)} | {
        name: _gain(part, seed) if len(set(part.user.tolist())) >= FEWEST_USERS else None
        for name, part in parts.items()
    }


def _gain(part: Measured, seed: int) -> dict[str, Any]:
    columns = {name: getattr(part, name) for name in ("window", "memory", "popularity", "own")}
    drawn = paired_bootstrap(columns, part.user, seed=seed)
    ratio = drawn.ratio("memory", "window")
    return {
        "targets": len(part.user),
        "users": len(np.unique(part.user)),
        **{f"ndcg@10_{name}": _rounded(drawn.interval(name)) for name in columns},
        "memory_minus_window": _rounded(drawn.difference("memory", "window")),
        "memory_by_window": _rounded(ratio) if ratio else None,
    }


def _rounded(values: Sequence[float]) -> list[float]:
    """Mean, low, high."""
    return [round(value, _DIGITS) for value in values]
