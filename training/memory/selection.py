"""Which retriever is chosen, and whether it pays: by what the memories that it picks add together, on valid targets.

In: trained retrievers, numbers of memories, annotations, a backbone. Out: gains of every candidate. Ranks are
those that are served, voices included, because memory may only repeat what other voices already give. Gains
in log-probability and in rank are separate: memory can make a model less certain, and so every true title more likely,
without moving one of them up.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from model_store.memory.retriever import Retriever, choose
from model_store.voices.voices import Voices
from training.data.splits import Target
from training.items.pasts import Pasts
from training.lm.backbone import Backbone
from training.lm.likelihood import EncodedBatch, answer_log_probs, item_forecast
from training.lm.states import States
from training.lm.windows import Example, Windows, encode_examples
from training.memory.annotations import Annotation
from training.memory.learning import collate
from training.run.metrics import ndcg, standard_error
from training.run.stage import progress

_BATCH = 64
_ERRORS = 2  # standard errors; a mean without effect is above them in one case of 44
Name = TypeVar("Name", bound=Hashable)
Places = tuple[int, ...]  # places in a memory, oldest first
Forecasts = dict[tuple[int, Places], NDArray[np.float64]]  # (row, memories) → (log p of the truth, NDCG@10)


class ServedRanking(NamedTuple):
    """The ranking of a bundle with voices."""

    voices: Voices
    pasts: Pasts

    def ranked(self, log_probs: Tensor, targets: Sequence[Target]) -> Tensor:
        """(B, V) scores, from `log_probs` (B, V) of the language model."""
        pasts = [self.pasts.past(target) for target in targets]
        return self.voices.ranked(log_probs, pasts, [self.pasts.allowed(target) for target in targets])


class MemoryGains(NamedTuple):
    """What the chosen memories add together: (T,), one value for each annotation."""

    nats: NDArray[np.float64]
    ndcg: NDArray[np.float64] | None  # NDCG@10; None with the title vocabulary, where a ranking needs a beam search

    @property
    def value(self) -> NDArray[np.float64]:
        """The gain by which retrievers are chosen: NDCG@10 where there is one, else nats."""
        return self.nats if self.ndcg is None else self.ndcg


@torch.inference_mode()
def valid_gains(
    retrievers: Mapping[Name, Retriever],
    top_ks: Sequence[int],
    annotations: Sequence[Annotation],
    backbone: Backbone,
    windows: Windows,
    *,
    states: States,
    placement: str,
    served: ServedRanking | None = None,
) -> dict[tuple[Name, int], MemoryGains]:
    """The gains of every retriever with every number of memories, on annotated targets of the valid period.

    NDCG@10 is of the ranking `served`, or of the language model alone; nats are always of the latter. Candidates often
    pick the same memories, so each distinct set of memories is computed once.
    """
    found: dict[tuple[Name, int], list[NDArray[np.float64]]] = {(name, k): [] for name in retrievers for k in top_ks}
    starts = range(0, len(annotations), _BATCH)
    for start in progress(starts, desc="gains of memory", unit="batch"):
        part = annotations[start : start + _BATCH]
        picked = _picked_by(retrievers, top_ks, part, states)
        cases = sorted({(row, ()) for row in range(len(part))}.union(*map(enumerate, picked.values())), key=_size)
        examples = [windows.example(Target(each.user, each.position)) for each in part]
        forecasts = _forecasts(backbone, examples, part, cases, states, placement=placement, served=served)
        for candidate, rows in picked.items():
            found[candidate] += [forecasts[row, places] - forecasts[row, ()] for row, places in enumerate(rows)]
    has_ranks = backbone.vocabulary == "items"
    return {
        candidate: MemoryGains(nats=table[:, 0], ndcg=table[:, 1] if has_ranks else None)
        for candidate, table in ((candidate, np.array(rows).reshape(-1, 2)) for candidate, rows in found.items())
    }


def _picked_by(
    retrievers: Mapping[Name, Retriever], top_ks: Sequence[int], part: Sequence[Annotation], states: States
) -> dict[tuple[Name, int], list[Places]]:
    batch = collate(part, states, "log_gain", temperature=1.0)
    picked: dict[tuple[Name, int], list[Places]] = {}
    for name, retriever in retrievers.items():
        log_scores = retriever(batch.query, batch.memory, batch.mask)
        for top_k in top_ks:
            choices = zip(*choose(log_scores, top_k), strict=True)
            picked[name, top_k] = [tuple(places[kept == 1].tolist()) for places, kept in choices]
    return picked


def _size(case: tuple[int, Places]) -> int:
    return len(case[1])


def _forecasts(
    backbone: Backbone,
    examples: Sequence[Example],
    part: Sequence[Annotation],
    cases: Sequence[tuple[int, Places]],
    states: States,
    *,
    placement: str,
    served: ServedRanking | None,
) -> Forecasts:
    """The bottom half reads each row once. NDCG@10 is NaN with the title vocabulary."""
    encoded = encode_examples(backbone.lm, examples)
    found: Forecasts = {}
    for start in range(0, len(cases), _BATCH):
        rows, places = zip(*cases[start : start + _BATCH], strict=True)
        batch = EncodedBatch(*(tensor[list(rows)] for tensor in encoded))
        memory = padded_memory(backbone.lm, [part[row] for row in rows], places, states)
        if backbone.vocabulary == "items":
            targets = [Target(part[row].user, part[row].position) for row in rows]
            reweigh = None if served is None else partial(served.ranked, targets=targets)
            log_probs, ranks = item_forecast(backbone.lm, batch, *memory, placement, reweigh=reweigh)
            gained = ndcg(ranks.cpu().numpy())
        else:
            log_probs = answer_log_probs(backbone.lm, batch, *memory, placement)
            gained = np.full(len(rows), np.nan)
        found |= zip(zip(rows, places, strict=True), np.stack([log_probs.cpu().numpy(), gained], axis=1), strict=True)
    return found


def is_significant(gains: NDArray[np.float64], users: Sequence[int]) -> bool:
    """Whether the mean gain is more than two standard errors by user above zero. Without targets it is not.

    One user has no standard error.
    """
    return len(set(users)) > 1 and bool(gains.mean() > _ERRORS * standard_error(gains, users))


@torch.inference_mode()
def joint_gains(
    lm: SplitLM,
    examples: Sequence[Example],
    annotations: Sequence[Annotation],
    picked: Sequence[Sequence[int]],
    states: States,
    *,
    placement: str,
) -> list[float]:
    """Nats that the picked memories add together to the true title of each example: eq. 5 for a set.

    `picked` are places in each memory, oldest first. The sum of single gains overstates this gain. Gains of no memory
    and of one memory are taken from the annotations. All examples are one batch, which must fit into memory.
    """
    found = [
        float(each.log_probs[1 + places[0]] - each.log_probs[0]) if places else 0.0
        for each, places in zip(annotations, picked, strict=True)
    ]
    several = [row for row, places in enumerate(picked) if len(places) > 1]
    if not several:
        return found
    encoded = encode_examples(lm, [examples[row] for row in several])
    memory = padded_memory(lm, [annotations[row] for row in several], [picked[row] for row in several], states)
    log_probs = answer_log_probs(lm, encoded, *memory, placement).cpu()
    for row, log_prob in zip(several, log_probs.tolist(), strict=True):
        found[row] = log_prob - float(annotations[row].log_probs[0])
    return found


def padded_memory(
    lm: SplitLM, annotations: Sequence[Annotation], picked: Sequence[Sequence[int]], states: States
) -> tuple[Tensor, Tensor]:
    """The states of the picked memories (B, S, D), padded on the left, and their mask (B, S)."""
    chosen = [each.memory(states)[list(places)] for each, places in zip(annotations, picked, strict=True)]
    padded = pad([torch.from_numpy(memory).to(lm.dtype) for memory in chosen], device=lm.device)
    return padded.values, padded.mask
