"""`noise`: memory with noisy or incomplete histories.

Nothing is trained again; the histories before the targets are changed when they are read. The lines `noise` add random
items at random places, as this share of the changed history. The lines `kept` keep a random share of the true events.
Window and memory both change, and so does the number of memories.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from training.data.splits import History, Split, Target
from training.rows.memory_choices import no_memory, retriever_choice
from training.run.inputs import Inputs, fingerprint
from training.studies.context import StudyContext, ndcg, num_memories, random_ndcg, users_of
from training.studies.result import StudyResult, Value, gain_column, means_and_gains

SHARES_OF_NOISE = (0.0, 0.1, 0.3, 0.5)
SHARES_KEPT = (1.0, 0.5, 0.25)
ChangeHistory = Callable[[History, np.random.Generator], History]  # of the events before a target


def run(context: StudyContext) -> StudyResult:
    targets = context.targets()
    num_items = len(context.inputs.split.item_ids)
    changes: dict[str, ChangeHistory] = {
        **{f"noise {share:.0%}": add_noise(share, num_items) for share in SHARES_OF_NOISE},
        **{f"kept {share:.0%}": keep_share(share) for share in SHARES_KEPT},
    }
    return StudyResult(
        question="how much noise, and how short a history, does memory tolerate?",
        x="histories",
        columns={
            "no memory": ".4f",
            "random": ".4f",
            "retrieved": ".4f",
            gain_column("retrieved"): "+.4f",
            "elements": ".1f",
        },
        lines={name: _line(context, targets, change) for name, change in changes.items()},
        panels={"NDCG@10": ["no memory", "random", "retrieved"], "difference in NDCG@10": [gain_column("retrieved")]},
        remarks=[
            "All targets have memory in their true history. `random` is the mean of several draws of states.",
            "Voices, where the bundle has them, read the window only in `no memory`, and all events in the others.",
        ],
    )


def _line(context: StudyContext, targets: Sequence[Target], change: ChangeHistory) -> Mapping[str, Value]:
    split, new_targets = change_histories(context.inputs.split, targets, change, context.seed)
    inputs = Inputs(context.inputs.dataset, split, fingerprint(split))
    evaluation = context.evaluation(context.base.bundle, new_targets, inputs)
    rows = {
        "no memory": ndcg(evaluation, "none", no_memory, voters="window"),
        "random": random_ndcg(evaluation, "random", evaluation.bundle.manifest.retriever.top_k),
        "retrieved": ndcg(evaluation, "retrieved", retriever_choice),
    }
    return {
        **means_and_gains(rows, users_of(targets), reference="no memory"),
        "elements": num_memories(evaluation),
    }


def change_histories(
    split: Split, targets: Sequence[Target], change: ChangeHistory, seed: int
) -> tuple[Split, list[Target]]:
    """Each target gets a history of its own: the changed events before it, then the target. Target n has history n."""
    histories, new_targets = [], []
    for number, target in enumerate(targets):
        rng = np.random.default_rng((seed, target.user, target.position))
        whole = split.histories[target.user]
        known = change(_part(whole, slice(0, target.position)), rng)
        truth = _part(whole, slice(target.position, target.position + 1))
        histories.append(_joined(known, truth))
        new_targets.append(Target(number, len(known.items)))
    return replace(split, histories=histories), new_targets


def add_noise(share: float, num_items: int) -> ChangeHistory:
    """Random events make up `share` of the result. Each has the timestamp of the true event before it."""

    def change(history: History, rng: np.random.Generator) -> History:
        count = len(history.items)
        num_new = round(count * share / (1 - share))
        places = np.sort(rng.integers(count + 1, size=num_new))
        times = history.timestamps[np.maximum(places - 1, 0)]
        items = rng.integers(num_items, size=num_new).astype(history.items.dtype)
        return replace(
            history,
            items=np.insert(history.items, places, items),
            timestamps=np.insert(history.timestamps, places, times),
        )

    return change


def keep_share(share: float) -> ChangeHistory:
    """Keeps a random `share` of the events, in their order."""

    def change(history: History, rng: np.random.Generator) -> History:
        count = len(history.items)
        return _part(history, np.sort(rng.permutation(count)[: round(share * count)]))

    return change


def _part(history: History, places: slice | np.ndarray) -> History:
    return replace(history, items=history.items[places], timestamps=history.timestamps[places])


def _joined(first: History, second: History) -> History:
    return replace(
        first,
        items=np.concatenate([first.items, second.items]),
        timestamps=np.concatenate([first.timestamps, second.timestamps]),
    )
