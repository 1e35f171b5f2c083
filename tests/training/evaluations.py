"""A small evaluation for the tests of the rows: users of the twenty books in the bundle of the tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model_store.answers import Query
from model_store.bundle import Bundle
from model_store.inference import recommend
from model_store.manifest import RetrieverSpec
from model_store.voices.voices import Voices
from tests.conftest import TITLES, small_voices, write_bundle
from tests.training.small import TINY, shop
from training.data.splits import Split, Target, time_split
from training.rows import summariser
from training.rows.evaluation import Evaluation, make_evaluation
from training.rows.registry import predict
from training.run.inputs import Inputs, fingerprint
from training.run.loop import Schedule

DATASET = shop()
SPLIT = time_split(DATASET)
SHORT, LONG = Target(0, 2), Target(0, 25)  # two earlier events are no memory with K = 3
TARGETS = [SHORT, LONG, *SPLIT.test[:6]]
SHAPE = replace(TINY.shape, hidden_size=32)
RECIPE = replace(TINY, shape=SHAPE, max_memory=20)  # as `write_bundle` says


def small_evaluation(bundle: Bundle, cache: Path, split: Split = SPLIT, **options: Any) -> Evaluation:
    """Its training setup names a recipe, so rows that train a model can be computed."""
    inputs = Inputs(DATASET, split, fingerprint(split))
    evaluation = make_evaluation(bundle, inputs, options.pop("targets", TARGETS), cache, device="cpu", **options)
    return replace(evaluation, training=replace(evaluation.training, recipe=RECIPE))


def memory_aware(bundle: Bundle) -> Bundle:
    """A copy whose generator counts as tuned to read memory, so that BIGRec needs another one."""
    backbone = bundle.manifest.backbone.model_copy(update={"adapter": "memory-aware"})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"backbone": backbone}))


def bundle_with_voices(path: Path, voices: Voices | None = None, **options: Any) -> Bundle:
    """A memory-aware bundle with item tokens and (by default random) voices, whose retriever never abstains."""
    retriever = RetrieverSpec(width=16, top_k=1)
    voices = voices or small_voices(len(TITLES))
    write_bundle(path, vocabulary="items", retriever=retriever, voices=voices, **options)
    bundle = Bundle.open(path)
    torch.nn.init.constant_(bundle.retriever.null.bias, -1e4)
    return memory_aware(bundle)


def queries_of(evaluation: Evaluation, row: str, seed: int = 0) -> list[Query]:
    """What the bundle is asked, by target."""
    read: list[Query] = []

    def spy(bundle: Bundle, queries: list[Query]) -> Any:
        read.extend(queries)
        return recommend(bundle, queries)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.rows.evaluation.recommend", spy)
        predict(evaluation, row, seed)
    return read


def with_other_future(evaluation: Evaluation, target: Target) -> Evaluation:
    """A copy with one target. The user's history differs from the target on; nothing is computed yet."""
    histories = list(evaluation.split.histories)
    items = histories[target.user].items.copy()
    items[target.position :] = (items[target.position :] + 7) % len(evaluation.split.item_ids)
    histories[target.user] = replace(histories[target.user], items=items)
    place = list(evaluation.targets).index(target)
    return replace(
        evaluation,
        split=replace(evaluation.split, histories=histories),
        targets=[target],
        examples=[evaluation.examples[place]],
        results={},
    )


def prompts_of(evaluation: Evaluation, row: str, seed: int = 0) -> list[list[int]]:
    """The prompts that the language model reads, by target."""
    return [list(query.prompt) for query in queries_of(evaluation, row, seed)]


def items_in(bundle: Bundle, split: Split, prompt: list[int]) -> list[int]:
    """The items whose titles are in a prompt."""
    known = {bundle.prompt.title_tokens(title): item for item, title in enumerate(split.titles)}
    items, title = [], []
    for token in prompt[len(bundle.prompt.head) :]:
        title.append(token)
        if tuple(title) in known:
            items.append(known[tuple(title)])
            title = []
    assert not title, "the prompt ends within a title"
    return items


def shorten_summariser(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(summariser, "NUM_EXAMPLES", 12)
    patched.setattr(summariser, "SCHEDULE", Schedule(max_steps=4, learning_rate=1e-2, evaluate_every=2))
