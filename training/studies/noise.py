"""`noise`: what memory is worth where histories are not clean, or not complete.

Nothing is trained again: the histories before the targets are changed when they are read. `noise` is the share of
random interactions in the changed history, items drawn blindly and put anywhere; `kept` the share of true ones that is
left. Window and memory change alike, and so does the number of elements.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from training.data.splits import History, Split, Target
from training.run.inputs import Inputs, fingerprint
from training.studies.finding import Finding, Value, compared, gain_of
from training.studies.setting import Setting, ndcg, nothing, num_elements, random_ndcg, retrieved, users_of

SHARES_OF_NOISE = (0.0, 0.1, 0.3, 0.5)
SHARES_KEPT = (1.0, 0.5, 0.25)
Change = Callable[[History, np.random.Generator], History]  # of what is known before a target


def run(setting: Setting) -> Finding:
    targets = setting.targets()
    num_items = len(setting.inputs.split.item_ids)
    changes: dict[str, Change] = {
        **{f"noise {share:.0%}": noisy(share, num_items) for share in SHARES_OF_NOISE},
        **{f"kept {share:.0%}": thinned(share) for share in SHARES_KEPT},
    }
    return Finding(
        question="how much noise, and how little history, does memory bear?",
        x="histories",
        columns={
            "no memory": ".4f",
            "random": ".4f",
            "retrieved": ".4f",
            gain_of("retrieved"): "+.4f",
            "elements": ".1f",
        },
        lines={name: _line(setting, targets, change) for name, change in changes.items()},
        panels={"NDCG@10": ["no memory", "random", "retrieved"], "difference in NDCG@10": [gain_of("retrieved")]},
        remarks=["Targets are those that have memory in their true history; random: the mean of several draws."],
    )


def _line(setting: Setting, targets: Sequence[Target], change: Change) -> Mapping[str, Value]:
    split, moved = changed(setting.inputs.split, targets, change, setting.seed)
    inputs = Inputs(setting.inputs.dataset, split, fingerprint(split))
    contest = setting.contest(setting.base.bundle, moved, inputs)
    rows = {
        "no memory": ndcg(contest, "none", nothing),
        "random": random_ndcg(contest, "random", contest.bundle.manifest.retriever.top_k),
        "retrieved": ndcg(contest, "retrieved", retrieved),
    }
    return {
        **compared(rows, users_of(targets), reference="no memory"),
        "elements": num_elements(contest),
    }


def changed(split: Split, targets: Sequence[Target], change: Change, seed: int) -> tuple[Split, list[Target]]:
    """Every target gets a history of its own, changed before it and ended by it: target n is of history n."""
    histories, moved = [], []
    for number, target in enumerate(targets):
        rng = np.random.default_rng((seed, target.user, target.position))
        whole = split.histories[target.user]
        known = change(_part(whole, slice(0, target.position)), rng)
        truth = _part(whole, slice(target.position, target.position + 1))
        histories.append(_joined(known, truth))
        moved.append(Target(number, len(known.items)))
    return replace(split, histories=histories), moved


def noisy(share: float, num_items: int) -> Change:
    """Random events make up `share` of the result; each has the time of the true event that it follows."""

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


def thinned(share: float) -> Change:
    """The events left keep their order."""

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
