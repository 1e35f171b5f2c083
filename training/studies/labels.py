"""`labels`: what the retriever should learn from.

`probability`      the paper's literal eq. 5, whole-title probabilities under a softmax
`log gain, τ = …`  gains in log-probability per token under a softmax of temperature τ
`marginal`         no labels: the likelihood of the truth when the retriever's distribution chooses the memory,
                   log Σ_m s_m p(y | z_t, z_m) with p from the annotations, the null slot being no memory

All learn from the same annotations, and are judged alike: the log-probability that the element ranked first adds.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model_store.memory.retriever import Retriever, choose
from training.annotate import Annotated, read_annotated
from training.memory.labels import Batch, collate
from training.run.recipes import Recipe
from training.run.stage import StageError, digest
from training.studies.finding import Finding, Value, compared
from training.studies.setting import Setting
from training.train_retriever import Training, train

TEMPERATURES = (0.03, 0.1, 0.3, 1.0)
Teach = Callable[[Path], Training]  # checkpoints → a retriever


def run(setting: Setting) -> Finding:
    made = setting.base
    annotated = read_annotated(made.stages / "annotations").with_memory()
    if not annotated.train or not annotated.valid:
        raise StageError("no annotated target has memory, so there is nothing to learn from")
    whole = collate(annotated.valid, annotated.states, "log_gain", temperature=1.0)
    users = np.array([each.user for each in annotated.valid])
    checkpoints = setting.work / "labels" / digest([made.bundle.manifest.model_dump(), setting.seed])
    lines: dict[str, dict[str, Value]] = {}
    for name, teach in _teachings(annotated, made.recipe, setting.seed).items():
        trained = teach(checkpoints / name.replace(" ", "-"))
        quality = trained.quality
        lines[name] = {
            **compared({"gain, nats": first_gains(trained.retriever, whole)}, users),
            "captured": quality.captured,
            "precision@1": quality.precision_at_1,
            "abstains": quality.abstains,
            **(_label_facts(trained) if "valid_kl" in trained.facts else {}),
        }
    return Finding(
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
            "gain of what is ranked first, nats": ["gain, nats"],
            "share": ["captured", "precision@1", "abstains"],
            "entropy of the labels, nats": ["label entropy"],
        },
        remarks=[
            f"Judged on {len(users)} annotated valid targets with memory; some element helps by {_oracle(whole):.4f} "
            f"nats on average. Uniform labels would have an entropy of {_uniform_entropy(whole):.2f}."
        ],
    )


def _label_facts(trained: Training) -> dict[str, Value]:
    names = {"label entropy": "label_entropy", "KL": "valid_kl", "uniform KL": "uniform_kl"}
    return {column: trained.facts[name] for column, name in names.items()}


def _teachings(annotated: Annotated, recipe: Recipe, seed: int) -> dict[str, Teach]:
    def by_labels(form: str, temperature: float) -> Teach:
        changed = replace(recipe, gain_form=form)
        return lambda at: train(annotated, changed, temperature=temperature, seed=seed, checkpoints=at)

    return {
        "probability": by_labels("probability", 1.0),
        **{f"log gain, τ = {each:g}": by_labels("log_gain", each) for each in TEMPERATURES},
        "marginal": lambda at: train(annotated, recipe, loss="marginal", temperature=1.0, seed=seed, checkpoints=at),
    }


@torch.inference_mode()
def first_gains(retriever: Retriever, batch: Batch) -> np.ndarray:
    """(targets,) of the element ranked first; zero where the retriever abstains."""
    choice = choose(retriever(batch.query, batch.memory, batch.mask), 1)
    gained: np.ndarray = (batch.gains.gather(1, choice.indices) * choice.mask).sum(dim=1).double().numpy()
    return gained


def _oracle(batch: Batch) -> float:
    return float(batch.gains.masked_fill(batch.mask == 0, 0.0).max(dim=1).values.clamp(min=0).mean())


def _uniform_entropy(batch: Batch) -> float:
    return float((1 + batch.mask.sum(dim=1)).double().log().mean())
