"""`transfer`: a retriever that was trained on other users and items.

The language model, and with it the space of the states, is that of another data set (`--from`), and so is the retriever
called `transferred`. Both read the histories of this data set. Its titles are read as text, or spelled where a title is
one token. The retriever called `learned here` was trained on annotations of this data by the same language model: a
transferred retriever cannot be expected to do better. Each is measured as it is and without its null slot, which may
have learned when the *other* users need no memory.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_store.bundle import Bundle
from model_store.memory.retriever import Retriever
from training import pipeline
from training.memory.annotations import read_annotation_set
from training.memory.learning import RetrieverBatch, collate, measure_retrieval
from training.rows.memory_choices import no_memory, retriever_choice
from training.run.device import pick_device
from training.run.stage import StageError, digest, read_certificate
from training.studies.context import StudyContext, TrainedBundle, ndcg, random_ndcg, users_of, without_null
from training.studies.result import StudyResult, Value, gain_column, means_and_gains


class TransferredBundle(NamedTuple):
    """The other data's language model with this data's items, and a retriever trained on this data."""

    bundle: Bundle
    annotations: Path


def run(context: StudyContext) -> StudyResult:
    if context.other is None:
        raise StageError("transfer needs another data set: name it with --from")
    source = context.train(context.other)
    moved = transfer_bundle(context, source)
    targets = context.targets(source.bundle.manifest.prompt.recent_length)
    evaluation = context.evaluation(moved.bundle, targets)
    annotated = read_annotation_set(moved.annotations).with_memory()
    batch = collate(annotated.judge, annotated.states, "log_gain", temperature=1.0) if annotated.judge else None
    none = ndcg(evaluation, "none", no_memory)
    top_k = moved.bundle.manifest.retriever.top_k
    users = users_of(evaluation.targets)
    lines: dict[str, dict[str, Value]] = {
        "no memory": means_and_gains({"NDCG@10": none}, users),
        "random": _ndcg_and_gain(none, random_ndcg(evaluation, "random", top_k), users),
    }
    for name, retriever in {"transferred": source.bundle.retriever, "learned here": moved.bundle.retriever}.items():
        for suffix, tried in {"": retriever, ", no null slot": without_null(retriever)}.items():
            changed = replace(evaluation, bundle=replace(moved.bundle, retriever=tried))
            values = ndcg(changed, f"{name}{suffix}".replace(" ", "-"), retriever_choice)
            lines[name + suffix] = {**_ndcg_and_gain(none, values, users), **_quality(tried, batch)}
    return StudyResult(
        question=f"does a retriever of {context.other.dataset.name} help on {context.inputs.dataset.name}?",
        x="memory",
        columns={
            "NDCG@10": ".4f",
            gain_column("NDCG@10"): "+.4f",
            "gain, nats": "+.4f",
            "captured": ".0%",
            "precision@1": ".0%",
            "abstains": ".0%",
        },
        lines=lines,
        panels={"NDCG@10": ["NDCG@10"], "share": ["captured", "precision@1", "abstains"]},
        remarks=[f"The language model is that of {context.other.dataset.name} in all lines."],
    )


def transfer_bundle(context: StudyContext, source: TrainedBundle) -> TransferredBundle:
    """Runs the stages after the backbone on this data, with the backbone of `source`."""
    recipe = replace(source.recipe, voices_targets=0)  # voices belong to one data set
    backbone = source.stages / "sft"
    key = digest([context.inputs.fingerprint, read_certificate(backbone), recipe, context.seed])
    work = context.work / "moved" / key
    pipeline.complete(
        context.inputs,
        work / "bundle",
        backbone=backbone,
        work=work,
        recipe=recipe,
        seed=context.seed,
        device=context.device,
        provenance={},
    )
    bundle = Bundle.open(work / "bundle", device=pick_device(context.device))
    return TransferredBundle(bundle, work / "annotations")


def _ndcg_and_gain(none: np.ndarray, values: np.ndarray, users: np.ndarray) -> dict[str, Value]:
    line = means_and_gains({"no memory": none, "NDCG@10": values}, users, reference="no memory")
    return {name: value for name, value in line.items() if name != "no memory"}


def _quality(retriever: Retriever, batch: RetrieverBatch | None) -> dict[str, Value]:
    """The quality of the memory ranked first, on this data's annotated targets that judge."""
    if batch is None:
        return {}
    quality = measure_retrieval(copy.deepcopy(retriever).cpu(), batch)
    return {
        "gain, nats": quality.gain,
        "captured": quality.captured,
        "precision@1": quality.precision_at_1,
        "abstains": quality.abstains,
    }
