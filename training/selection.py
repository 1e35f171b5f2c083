"""How a retriever is chosen: by what the memories that it picks do together, on valid targets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.retriever import Retriever, choose
from training.annotate import Annotated
from training.backbone import Backbone
from training.data.splits import Target
from training.joint import joint_gains, joint_ndcg
from training.labels import collate
from training.windows import Windows

_BATCH = 64


class Gains(NamedTuple):
    """What the chosen memories add together, (T,) for each valid annotation."""

    nats: NDArray[np.float64]
    ndcg: NDArray[np.float64] | None  # NDCG@10; None where an item is several tokens, and a ranking costs a search


@torch.inference_mode()
def valid_gains(
    retriever: Retriever, annotated: Annotated, backbone: Backbone, windows: Windows, *, top_k: int, placement: str
) -> Gains:
    nats: list[float] = []
    ndcg: list[float] = []
    for start in range(0, len(annotated.valid), _BATCH):
        part = annotated.valid[start : start + _BATCH]
        batch = collate(part, annotated.states, "log_gain", temperature=1.0)
        choice = choose(retriever(batch.query, batch.memory, batch.mask), top_k)
        shown = [places[kept == 1].tolist() for places, kept in zip(choice.indices, choice.mask, strict=True)]
        examples = [windows.example(Target(each.user, each.position)) for each in part]
        asked = (backbone.lm, examples, part)
        nats += joint_gains(*asked, shown, annotated.states, placement=placement)
        if backbone.vocabulary == "items":
            without = joint_ndcg(*asked, [[] for _ in part], annotated.states, placement=placement)
            ndcg += (joint_ndcg(*asked, shown, annotated.states, placement=placement) - without).tolist()
    return Gains(np.array(nats), np.array(ndcg) if ndcg else None)


def pays(gains: NDArray[np.float64], users: Sequence[int]) -> bool:
    """Whether the mean gain is more than one standard error, by user, above nothing."""
    whose = np.unique(np.array(users), return_inverse=True)[1]
    sums = np.bincount(whose, weights=gains - gains.mean())
    return bool(gains.mean() > np.sqrt((sums**2).sum()) / len(gains))
