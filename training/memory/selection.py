"""How a retriever is chosen: by what the memories that it picks do together, on valid targets.

Ranks are those that will be served, item neighbours included: what memory says may be said already. What memories add
to the likelihood of the truth is one matter, what they add to the ranking another: memory can make a model less sure of
itself, and so every truth likelier, without moving one of them up.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.memory.retriever import Retriever, choose
from model_store.neighbors import Mixture
from training.annotate import Annotated, Annotation
from training.data.splits import Target
from training.lm.backbone import Backbone
from training.lm.likelihood import Read, answer_log_probs, item_forecast
from training.lm.states import States
from training.lm.windows import Example, Windows, read_examples
from training.memory.joint import padded_memory
from training.memory.labels import collate
from training.run.metrics import ndcg
from training.run.stage import progress

_BATCH = 64
_ERRORS = 2  # standard errors: of candidates that do nothing, one in six is one above, and the best of many is kept
Name = TypeVar("Name", bound=Hashable)
Shown = tuple[int, ...]  # places in a memory, oldest first
Forecasts = dict[tuple[int, Shown], NDArray[np.float64]]  # (row, what it is shown) → log p of the truth, NDCG@10


class Gains(NamedTuple):
    """What the chosen memories add together, (T,) for each valid annotation."""

    nats: NDArray[np.float64]
    ndcg: NDArray[np.float64] | None  # NDCG@10; None where an item is several tokens, and a ranking costs a search

    @property
    def value(self) -> NDArray[np.float64]:
        """By which retrievers are chosen."""
        return self.nats if self.ndcg is None else self.ndcg


@torch.inference_mode()
def valid_gains(
    retrievers: Mapping[Name, Retriever],
    top_ks: Sequence[int],
    annotated: Annotated,
    backbone: Backbone,
    windows: Windows,
    *,
    placement: str,
    mixture: Mixture | None = None,
) -> dict[tuple[Name, int], Gains]:
    """Of every retriever with every number of memories. Most of them pick much the same: nothing is asked twice.

    Ranks, and NDCG, are of the language model mixed with `mixture`; nats of the language model alone.
    """
    found: dict[tuple[Name, int], list[NDArray[np.float64]]] = {(name, k): [] for name in retrievers for k in top_ks}
    starts = range(0, len(annotated.valid), _BATCH)
    for start in progress(starts, desc="choose the retriever", unit="batch"):
        part = annotated.valid[start : start + _BATCH]
        shown = _shown_by(retrievers, top_ks, part, annotated.states)
        asked = sorted({(row, ()) for row in range(len(part))}.union(*map(enumerate, shown.values())), key=_size)
        examples = [windows.example(Target(each.user, each.position)) for each in part]
        forecasts = _forecasts(backbone, examples, part, asked, annotated.states, placement=placement, mixture=mixture)
        for candidate, rows in shown.items():
            found[candidate] += [forecasts[row, places] - forecasts[row, ()] for row, places in enumerate(rows)]
    has_ranks = backbone.vocabulary == "items"
    return {
        candidate: Gains(nats=table[:, 0], ndcg=table[:, 1] if has_ranks else None)
        for candidate, table in ((candidate, np.stack(rows)) for candidate, rows in found.items())
    }


def _shown_by(
    retrievers: Mapping[Name, Retriever], top_ks: Sequence[int], part: Sequence[Annotation], states: States
) -> dict[tuple[Name, int], list[Shown]]:
    batch = collate(part, states, "log_gain", temperature=1.0)
    shown: dict[tuple[Name, int], list[Shown]] = {}
    for name, retriever in retrievers.items():
        log_scores = retriever(batch.query, batch.memory, batch.mask)
        for top_k in top_ks:
            picked = zip(*choose(log_scores, top_k), strict=True)
            shown[name, top_k] = [tuple(places[kept == 1].tolist()) for places, kept in picked]
    return shown


def _size(asked: tuple[int, Shown]) -> int:
    return len(asked[1])


def _forecasts(
    backbone: Backbone,
    examples: Sequence[Example],
    part: Sequence[Annotation],
    asked: Sequence[tuple[int, Shown]],
    states: States,
    *,
    placement: str,
    mixture: Mixture | None,
) -> Forecasts:
    """The bottom half reads each row once. NDCG@10 is NaN where an item is several tokens."""
    read = read_examples(backbone.lm, examples)
    found: Forecasts = {}
    for start in range(0, len(asked), _BATCH):
        rows, shown = zip(*asked[start : start + _BATCH], strict=True)
        twin = Read(*(tensor[list(rows)] for tensor in read))
        memory = padded_memory(backbone.lm, [part[row] for row in rows], shown, states)
        if backbone.vocabulary == "items":
            prompts = [examples[row].prompt for row in rows]
            reweigh = partial(mixture.mixed, prompts=prompts) if mixture else None
            log_probs, ranks = item_forecast(backbone.lm, twin, *memory, placement, reweigh=reweigh)
            gained = ndcg(ranks.cpu().numpy())
        else:
            log_probs = answer_log_probs(backbone.lm, twin, *memory, placement)
            gained = np.full(len(rows), np.nan)
        found |= zip(zip(rows, shown, strict=True), np.stack([log_probs.cpu().numpy(), gained], axis=1), strict=True)
    return found


def pays(gains: NDArray[np.float64], users: Sequence[int]) -> bool:
    """Whether the mean gain is more than two standard errors, by user, above nothing: it is the best of many."""
    whose = np.unique(np.array(users), return_inverse=True)[1]
    sums = np.bincount(whose, weights=gains - gains.mean())
    return bool(gains.mean() > _ERRORS * np.sqrt((sums**2).sum()) / len(gains))
