"""`transfer`: is a retriever worth anything to readers it has never seen?

The language model, and with it the space of states, is that of another data set (`--from`), and so is the first
retriever. Both meet the histories of this one, whose titles are read as text, or spelled where a title is a token. The
second retriever has learned from annotations of this data by the same language model: the most a transfer can reach.
Each is tried as it is and without its null slot, which may have learned when the *other* readers need no memory.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_store.bundle import Bundle
from model_store.memory.retriever import Retriever
from training import pipeline
from training.annotate import read_annotated
from training.memory.labels import Batch, collate
from training.run.stage import StageError, digest, pick_device, read_certificate
from training.studies.finding import Finding, Value, compared, gain_of
from training.studies.setting import Made, Setting, ndcg, nothing, random_ndcg, retrieved, users_of, without_null
from training.train_retriever import judge


class Moved(NamedTuple):
    """The other data's language model among this data's items, with the retriever that learned here."""

    bundle: Bundle
    annotations: Path


def run(setting: Setting) -> Finding:
    if setting.other is None:
        raise StageError("transfer needs another data set: name it with --from")
    away = setting.make(setting.other)
    moved = move(setting, away)
    contest = setting.contest(moved.bundle, setting.targets(away.bundle.manifest.prompt.recent_length))
    annotated = read_annotated(moved.annotations).with_memory()
    batch = collate(annotated.valid, annotated.states, "log_gain", temperature=1.0) if annotated.valid else None
    none = ndcg(contest, "none", nothing)
    top_k = moved.bundle.manifest.retriever.top_k
    users = users_of(contest.targets)
    lines: dict[str, dict[str, Value]] = {
        "no memory": compared({"NDCG@10": none}, users),
        "random": _cells(none, random_ndcg(contest, "random", top_k), users),
    }
    for name, retriever in {"transferred": away.bundle.retriever, "learned here": moved.bundle.retriever}.items():
        for suffix, tried in {"": retriever, ", no null slot": without_null(retriever)}.items():
            changed = replace(contest, bundle=replace(moved.bundle, retriever=tried))
            gained = ndcg(changed, f"{name}{suffix}".replace(" ", "-"), retrieved)
            lines[name + suffix] = {**_cells(none, gained, users), **_quality(tried, batch)}
    return Finding(
        question=f"does a retriever of {setting.other.dataset.name} serve {setting.inputs.dataset.name}?",
        x="memory",
        columns={
            "NDCG@10": ".4f",
            gain_of("NDCG@10"): "+.4f",
            "gain, nats": "+.4f",
            "captured": ".0%",
            "precision@1": ".0%",
            "abstains": ".0%",
        },
        lines=lines,
        panels={"NDCG@10": ["NDCG@10"], "share": ["captured", "precision@1", "abstains"]},
        remarks=[f"The language model is that of {setting.other.dataset.name} in all lines."],
    )


def move(setting: Setting, away: Made) -> Moved:
    """The stages behind the backbone, run on this data with the backbone of the other."""
    recipe = replace(away.recipe, mixture_targets=0)  # item neighbours are of one data set, and no part of a transfer
    backbone = away.stages / "sft"
    work = (
        setting.work / "moved" / digest([setting.inputs.fingerprint, read_certificate(backbone), recipe, setting.seed])
    )
    pipeline.complete(
        setting.inputs,
        work / "bundle",
        backbone=backbone,
        work=work,
        recipe=recipe,
        seed=setting.seed,
        device=setting.device,
        provenance={},
    )
    return Moved(Bundle.open(work / "bundle", device=pick_device(setting.device)), work / "annotations")


def _cells(none: np.ndarray, row: np.ndarray, users: np.ndarray) -> dict[str, Value]:
    cells = compared({"no memory": none, "NDCG@10": row}, users, reference="no memory")
    return {name: cell for name, cell in cells.items() if name != "no memory"}


def _quality(retriever: Retriever, batch: Batch | None) -> dict[str, Value]:
    """Of what is ranked first, on the annotated valid targets of this data."""
    if batch is None:
        return {}
    quality = judge(copy.deepcopy(retriever).cpu(), batch)
    return {
        "gain, nats": quality.gain,
        "captured": quality.captured,
        "precision@1": quality.precision_at_1,
        "abstains": quality.abstains,
    }
