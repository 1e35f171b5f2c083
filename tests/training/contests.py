"""A small contest for the tests of rows: readers of the twenty books that the bundle of the tests knows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_store.bundle import Bundle
from model_store.inference import recommend
from tests.training.small import TINY, shop
from training.data.splits import Split, Target, time_split
from training.rows import summariser
from training.rows.contest import Contest, make_contest
from training.rows.registry import predict
from training.run.inputs import Inputs, fingerprint
from training.run.loop import Schedule

DATASET = shop()
SPLIT = time_split(DATASET)
SHORT, LONG = Target(0, 2), Target(0, 25)  # two events make no memory where K = 3
TARGETS = [SHORT, LONG, *SPLIT.test[:6]]
SHAPE = replace(TINY.shape, hidden_size=32)
RECIPE = replace(TINY, shape=SHAPE, max_memory=20)  # as `write_bundle` says


def small_contest(bundle: Bundle, cache: Path, split: Split = SPLIT, **options: Any) -> Contest:
    """With a workshop for rows that need a training of their own."""
    inputs = Inputs(DATASET, split, fingerprint(split))
    contest = make_contest(bundle, inputs, options.pop("targets", TARGETS), cache, device="cpu", **options)
    return replace(contest, workshop=replace(contest.need_workshop(), recipe=RECIPE))


def with_other_future(contest: Contest, target: Target) -> Contest:
    """The same up to `target`, which is its only one; nothing prepared."""
    histories = list(contest.split.histories)
    items = histories[target.user].items.copy()
    items[target.position :] = (items[target.position :] + 7) % len(contest.split.item_ids)
    histories[target.user] = replace(histories[target.user], items=items)
    place = list(contest.targets).index(target)
    return replace(
        contest,
        split=replace(contest.split, histories=histories),
        targets=[target],
        examples=[contest.examples[place]],
        prepared={},
    )


def prompts_of(contest: Contest, row: str, seed: int = 0) -> list[list[int]]:
    """What the language model reads, by target."""
    read: list[list[int]] = []

    def spy(bundle: Bundle, queries: list[Any]) -> Any:
        read.extend(list(query.prompt) for query in queries)
        return recommend(bundle, queries)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.rows.contest.recommend", spy)
        predict(contest, row, seed)
    return read


def items_in(bundle: Bundle, split: Split, prompt: list[int]) -> list[int]:
    """The items whose titles a prompt shows."""
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
