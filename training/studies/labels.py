"""`labels`: the labels that the retriever learns from.

`probability`      eq. 5 of the paper as printed: gains in the probability of a whole title, under a softmax
`log gain, τ = …`  gains in log-probability per token, under a softmax of temperature τ
`marginal`         no labels: the likelihood of the true title when the retriever's distribution draws the memory,
                   log Σ_m s_m p(y | z_t, z_m) with p from the annotations; the null slot draws no memory

All variants learn from the same annotations and have the same measure: how much the memory that is ranked first raises
the log-probability of the true title, on targets of users that neither teach nor stop the training.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model_store.memory.retriever import Retriever, choose
from training.memory.annotations import AnnotationSet, read_annotation_set
from training.memory.learning import RetrieverBatch, TrainedRetriever, collate, fit_retriever, measure_retrieval
from training.run.recipes import Recipe
from training.run.stage import StageError, digest
from training.studies.context import StudyContext
from training.studies.result import StudyResult, Value, means_and_gains

TEMPERATURES = (0.03, 0.1, 0.3, 1.0)
FitVariant = Callable[[Path], TrainedRetriever]  # directory of the checkpoints → a trained retriever


def run(context: StudyContext) -> StudyResult:
    base = context.base
    annotated = read_annotation_set(base.stages / "annotations").with_memory()
    if not (annotated.teach and annotated.choose and annotated.judge):
        raise StageError("no annotated target has memory, so the retriever has nothing to learn from, or no judges")
    judged = collate(annotated.judge, annotated.states, "log_gain", temperature=1.0)
    users = np.array([each.user for each in annotated.judge])
    checkpoints = context.work / "labels" / digest([base.bundle.manifest.model_dump(), context.seed])
    lines: dict[str, dict[str, Value]] = {}
    for name, fit in _variants(annotated, base.recipe, context.seed).items():
        lines[name] = _line(fit(checkpoints / name.replace(" ", "-")), judged, users)
    return StudyResult(
        question="from which labels should the retriever learn?",
        x="labels",
        columns={
            "gain, nats": "+.4f",
            "captured": ".0%",
            "precision@1": ".0%",
            "abstains": ".0%",
            "label entropy": ".2f",
            "KL": ".4f",
            "uniform KL": ".4f",
        },
        lines=lines,
        panels={
            "gain of the memory ranked first, nats": ["gain, nats"],
            "share": ["captured", "precision@1", "abstains"],
            "entropy of the labels, nats": ["label entropy"],
        },
        remarks=[
            f"Measured on {len(users)} annotated valid targets with memory, the losses and the entropy on those that "
            f"stop the training. The best memory of a target, where one helps, gains {_oracle_gain(judged):.4f} nats "
            f"on average. Uniform labels would have an entropy of {_uniform_entropy(judged):.2f}."
        ],
    )


def _variants(annotated: AnnotationSet, recipe: Recipe, seed: int) -> dict[str, FitVariant]:
    def fit(recipe: Recipe, loss: str, temperature: float) -> FitVariant:
        return lambda checkpoints: fit_retriever(
            annotated, recipe, temperature=temperature, seed=seed, checkpoints=checkpoints, loss=loss
        )

    log_gain = replace(recipe, gain_form="log_gain")
    return {
        "probability": fit(replace(recipe, gain_form="probability"), "kl", 1.0),
        **{f"log gain, τ = {each:g}": fit(log_gain, "kl", each) for each in TEMPERATURES},
        "marginal": fit(recipe, "marginal", 1.0),
    }


def _line(trained: TrainedRetriever, judged: RetrieverBatch, users: np.ndarray) -> dict[str, Value]:
    line = means_and_gains({"gain, nats": first_gains(trained.retriever, judged)}, users)
    quality = measure_retrieval(trained.retriever, judged)
    line |= {"captured": quality.captured, "precision@1": quality.precision_at_1, "abstains": quality.abstains}
    if "valid_kl" in trained.facts:
        names = {"label entropy": "label_entropy", "KL": "valid_kl", "uniform KL": "uniform_kl"}
        line |= {column: trained.facts[name] for column, name in names.items()}
    return line


@torch.inference_mode()
def first_gains(retriever: Retriever, batch: RetrieverBatch) -> np.ndarray:
    """(targets,) the gain of the memory that is ranked first, in nats; zero where the retriever abstains."""
    choice = choose(retriever(batch.query, batch.memory, batch.mask), 1)
    gained: np.ndarray = (batch.gains.gather(1, choice.indices) * choice.mask).sum(dim=1).double().numpy()
    return gained


def _oracle_gain(batch: RetrieverBatch) -> float:
    return float(batch.gains.masked_fill(batch.mask == 0, 0.0).max(dim=1).values.clamp(min=0).mean())


def _uniform_entropy(batch: RetrieverBatch) -> float:
    return float((1 + batch.mask.sum(dim=1)).double().log().mean())
