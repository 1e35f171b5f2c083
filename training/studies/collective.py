"""`collective`: do similar moments of other users say what comes next?

For each target the windows of other users whose layer-L states are most similar to that of its own window are found
(Faiss, cosine), and what followed them is a forecast: p(item) = (1 − λ) p_LM(item) + λ p_others(item), as in kNN-LM
(Khandelwal et al., ICLR 2020, equation 3). `train period` searches windows whose next event is in the train period;
`live` all windows before the target, also later ones, as a service that adds windows with each event would. λ = 0 is
the language model alone. Where the bundle has voices, the same forecasts are also given to them in place of the
language model's: does the collective past add to what the voices know? Their networks were trained without it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from model_store.lm.split_lm import SplitLM
from model_store.voices.voices import Voices
from training.data.splits import Split, Target
from training.items.pasts import Pasts
from training.lm.backbone import Backbone
from training.lm.forecasts import forecast_of
from training.lm.states import encode_prompts
from training.lm.windows import Windows
from training.run.metrics import ndcg
from training.run.stage import StageError, progress
from training.studies.context import StudyContext, users_of
from training.studies.result import StudyResult, Value, gain_column, means_and_gains

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)  # λ
_NEIGHBOURS, _TEMPERATURE = 200, 0.1
_FOUND_PER_NEIGHBOUR = 2  # of what is found, windows of the same user and later ones are left out
_MAX_WINDOWS = 80_000
_ENCODED, _BATCH = 4096, 64


class OtherWindows(NamedTuple):
    """Windows of all users, arrays of equal length: unit states, the token that followed, its time, and its period."""

    states: NDArray[np.float32]  # (W, D)
    user: NDArray[np.int64]
    followed_by: NDArray[np.int64]
    time: NDArray[np.int64]
    is_train: NDArray[np.bool_]

    def at(self, rows: NDArray[np.bool_]) -> "OtherWindows":
        numbers = self.user[rows], self.followed_by[rows], self.time[rows]
        return OtherWindows(self.states[rows], *numbers, self.is_train[rows])


def run(context: StudyContext) -> StudyResult:
    bundle, split = context.base.bundle, context.inputs.split
    if bundle.manifest.vocabulary != "items":
        raise StageError("this study needs the item vocabulary: a forecast of all items in one step")
    backbone = Backbone(bundle.manifest.backbone, bundle.manifest.vocabulary, bundle.lm, bundle.prompt)
    rows = [bundle.catalogue.rows[item_id] for item_id in split.item_ids]
    pasts = Pasts(split, bundle.tokens_of(np.array(rows, dtype=np.int64)), length=1)
    windows = Windows(split, backbone.prompt, bundle.manifest.memory.max_elements)
    targets = context.targets()
    others = all_windows(split, pasts.tokens, windows, bundle.lm, seed=context.seed)
    states = unit_states(bundle.lm, windows, [(target.user, target.position - 1) for target in targets])
    sources = {"train period": others.at(others.is_train), "live": others}
    own = _forecast_of_known(backbone, windows, targets, pasts)
    found = {
        name: forecasts_of_others(source, states, targets, split, own.shape[1]) for name, source in sources.items()
    }
    judges: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float64]]]
    judges = {"": lambda forecast: _ndcg(forecast, targets, pasts)}
    if bundle.voices is not None and bundle.manifest.voices is not None:
        voiced = Pasts(split, pasts.tokens, length=bundle.manifest.voices.past_length)
        voices = bundle.voices
        judges[", voices"] = lambda forecast: _ndcg_of_voices(voices, forecast, targets, voiced)
    lines: dict[str, dict[str, Value]] = {f"{share:g}": {} for share in SHARES}
    for ending, judge in judges.items():
        alone = judge(own)
        for share in SHARES:
            mixed = {name + ending: judge((1 - share) * own + share * part) for name, part in found.items()}
            columns = {f"λ = 0{ending}": alone, **mixed}
            lines[f"{share:g}"] |= means_and_gains(columns, users_of(targets), reference=f"λ = 0{ending}")
    names = [name + ending for ending in judges for name in sources]
    return StudyResult(
        question="do similar moments of other users say what comes next?",
        x="share λ of what followed them",
        columns=dict.fromkeys(names, ".4f") | {gain_column(name): "+.4f" for name in names},
        lines=lines,
        panels={"NDCG@10": names},
        remarks=[
            f"{len(others.user)} windows, of which {int(others.is_train.sum())} of the train period; the"
            f" {_NEIGHBOURS} nearest of other users count. λ = 0 is the language model alone, or with its voices."
        ],
    )


def all_windows(
    split: Split, tokens: NDArray[np.int64], windows: Windows, lm: SplitLM, *, seed: int, limit: int = _MAX_WINDOWS
) -> OtherWindows:
    """All windows that something followed, or a sample of `limit`."""
    ends = [(user, at) for user, history in enumerate(split.histories) for at in range(len(history.items) - 1)]
    if len(ends) > limit:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(ends))[:limit])
        ends = [ends[row] for row in chosen]
    next_events = [(split.histories[user], at + 1) for user, at in ends]
    return OtherWindows(
        unit_states(lm, windows, ends),
        np.array([user for user, _ in ends], dtype=np.int64),
        tokens[np.array([history.items[at] for history, at in next_events], dtype=np.int64)],
        np.array([history.timestamps[at] for history, at in next_events], dtype=np.int64),
        np.array([at < history.train_end for history, at in next_events], dtype=bool),
    )


def unit_states(lm: SplitLM, windows: Windows, ends: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    """(windows, D) of the windows that end at these users' positions, of length 1."""
    parts = []
    for start in progress(range(0, len(ends), _ENCODED), desc="states of windows", unit="batch"):
        parts.append(encode_prompts(lm, [windows.prompt_ending_at(*end) for end in ends[start : start + _ENCODED]]))
    states = np.concatenate(parts).astype(np.float32)
    faiss.normalize_L2(states)
    return states


def forecasts_of_others(
    others: OtherWindows, states: NDArray[np.float32], targets: Sequence[Target], split: Split, num_tokens: int
) -> NDArray[np.float32]:
    """(targets, num_tokens) what followed the nearest earlier windows of other users; zeros where there are none."""
    index = faiss.IndexFlatIP(others.states.shape[1])
    index.add(others.states)
    likeness, rows = index.search(states, min(_FOUND_PER_NEIGHBOUR * _NEIGHBOURS, len(others.user)))
    found = np.zeros((len(targets), num_tokens), dtype=np.float32)
    for place, target in enumerate(targets):
        now = split.histories[target.user].timestamps[target.position]
        is_allowed = (others.user[rows[place]] != target.user) & (others.time[rows[place]] < now)
        near, alike = rows[place][is_allowed][:_NEIGHBOURS], likeness[place][is_allowed][:_NEIGHBOURS]
        if len(near):
            weights = np.exp((alike - alike[0]) / _TEMPERATURE)
            np.add.at(found[place], others.followed_by[near], weights / weights.sum())
    return found


def _forecast_of_known(
    backbone: Backbone, windows: Windows, targets: Sequence[Target], pasts: Pasts
) -> NDArray[np.float32]:
    """(targets, V') the language model's forecast, with all of its mass on the items of the split.

    A bundle also knows items that are too rare to be in the split, and the language model was not trained on them.
    """
    parts = [
        forecast_of(backbone, windows, targets[start : start + _BATCH])
        for start in progress(range(0, len(targets), _BATCH), desc="forecasts", unit="batch")
    ]
    found = np.concatenate(parts)
    known = np.zeros_like(found)
    known[:, pasts.all_tokens] = found[:, pasts.all_tokens]
    return known / known.sum(axis=1, keepdims=True)


def _ndcg_of_voices(
    voices: Voices, forecast: NDArray[np.float32], targets: Sequence[Target], pasts: Pasts
) -> NDArray[np.float64]:
    """(targets,) NDCG@10 of the served ranking, when the voices read `forecast`."""
    found = []
    for start in range(0, len(targets), _BATCH):
        part = targets[start : start + _BATCH]
        log_probs = torch.from_numpy(forecast[start : start + _BATCH]).log()
        allowed = [pasts.allowed(target) for target in part]
        ranked = voices.ranked(log_probs, [pasts.past(target) for target in part], allowed)
        found.append(_ndcg(ranked.numpy(), part, pasts))
    return np.concatenate(found)


def _ndcg(forecast: NDArray[np.float32], targets: Sequence[Target], pasts: Pasts) -> NDArray[np.float64]:
    """(targets,) NDCG@10 among the items that may be shown; of equal probabilities half count as before."""
    ranks = []
    for scores, target in zip(forecast, targets, strict=True):
        own, allowed = scores[pasts.truth(target)], scores[pasts.allowed(target)]
        ranks.append((allowed > own).sum() + ((allowed == own).sum() - 1) / 2)
    found: NDArray[np.float64] = ndcg(np.array(ranks, dtype=np.float64))
    return found
