"""The rows of the evaluation table: for each target, the ten items a method would show.

`popularity` and `copy_last` need no model. The others are one bundle with different memories in front of its top half:
none (`bigrec`), a random one (`random`, a fresh draw per seed), the most recent one beyond the window
(`recent_beyond`), the retriever's choice (`automr`; `automr_plus` where the top half was tuned to read memory), the
single element that helps the truth most (`oracle`, an upper bound that knows the answer).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.inference import Query, recommend
from training.annotate import Annotation
from training.data.splits import Split, Target
from training.metrics import popularity_tie_order
from training.stage import progress
from training.states import States
from training.windows import Example

NUM_RESULTS = 10
ROWS = ("popularity", "copy_last", "bigrec", "random", "recent_beyond", "automr", "automr_plus", "oracle")
SEEDED_ROWS = ("random",)
_BATCH = 16

Lists = list[list[int]]  # per target, rows of Split.item_ids, best first
Choose = Callable[[Example], tuple[int, ...] | None]  # which memories of a target's


@dataclass
class Contest:
    """What all rows compete on."""

    bundle: Bundle
    split: Split
    targets: Sequence[Target]
    examples: Sequence[Example]
    states: States
    annotate: Callable[[], list[Annotation]]  # the targets, in any order; only the oracle asks for it
    mask_seen: bool = False

    def __post_init__(self) -> None:
        rows = self.bundle.catalogue.rows
        self._to_bundle = np.array([rows[item_id] for item_id in self.split.item_ids])
        self._to_split = np.full(len(self.bundle.catalogue), -1)
        self._to_split[self._to_bundle] = np.arange(len(self._to_bundle))

    def allowed(self, target: Target) -> NDArray[np.bool_]:
        """All items left by the split; with `mask_seen`, without those the user had already."""
        mask = self._to_split >= 0
        if self.mask_seen:
            mask[self._to_bundle[self.split.histories[target.user].items[: target.position]]] = False
        return mask

    def with_memory(self, choose: Choose, label: str) -> Lists:
        """What the bundle generates when `choose` picks the memories; None leaves it to the retriever."""
        lists: Lists = []
        bar = progress(total=len(self.targets), desc=label, unit="target")
        for start in range(0, len(self.targets), _BATCH):
            batch = slice(start, start + _BATCH)
            pairs = zip(self.targets[batch], self.examples[batch], strict=True)
            answers = recommend(self.bundle, [self._query(target, example, choose) for target, example in pairs])
            lists += [[int(self._to_split[item.row]) for item in answer.items] for answer in answers]
            bar.update(len(answers))
        bar.close()
        return lists

    def _query(self, target: Target, example: Example, choose: Choose) -> Query:
        return Query(
            prompt=example.prompt,
            memory=self.states.at(example.user, example.memory_positions),
            allowed=self.allowed(target),
            num_results=NUM_RESULTS,
            chosen=choose(example),
        )


def predict(contest: Contest, row: str, seed: int) -> Lists:
    """The lists of one row."""
    if row in ("popularity", "copy_last"):
        return _without_model(contest, row)
    return contest.with_memory(_chooser(contest, row, np.random.default_rng(seed)), row)


def _chooser(contest: Contest, row: str, rng: np.random.Generator) -> Choose:
    """Places in a target's memory, oldest first."""
    if row == "oracle":
        best = {(found.user, found.position): _best(found) for found in contest.annotate()}
        return lambda example: best[example.user, example.position]
    choosers: dict[str, Choose] = {
        "bigrec": lambda example: (),
        "random": lambda example: tuple(rng.permutation(len(example.memory_positions))[:1].tolist()),
        "recent_beyond": lambda example: tuple(range(len(example.memory_positions)))[-1:],
        "automr": lambda example: None,
        "automr_plus": lambda example: None,
    }
    return choosers[row]


def _best(annotation: Annotation) -> tuple[int, ...]:
    """The element that helps the truth most, if any does."""
    gains = annotation.gains("log_gain")
    return (int(gains.argmax()),) if gains.max(initial=0) > 0 else ()


def _without_model(contest: Contest, row: str) -> Lists:
    """The most popular items of the train period; `copy_last` puts the last item first."""
    split = contest.split
    popular = np.argsort(popularity_tie_order(split.popularity, split.item_ids)).tolist()
    lists: Lists = []
    for target in contest.targets:
        history = split.histories[target.user].items[: target.position]
        seen = set(history.tolist()) if contest.mask_seen else set()
        first = [int(history[-1])] if row == "copy_last" and not contest.mask_seen else []
        fresh = (item for item in popular if item not in seen and item not in first)
        lists.append([*first, *(item for item, _ in zip(fresh, range(NUM_RESULTS - len(first)), strict=False))])
    return lists
