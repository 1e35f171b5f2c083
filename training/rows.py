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
from training.windows import Example, Windows

NUM_RESULTS = 10
ROWS = ("popularity", "copy_last", "bigrec", "random", "recent_beyond", "automr", "oracle")
SEEDED_ROWS = ("random",)
_BATCH = 16

Lists = list[list[int]]  # per target, rows of Split.item_ids, best first
Choose = Callable[[int, Example], tuple[int, ...] | None]  # which memories, given the number and the example of a target


@dataclass
class Contest:
    """What all rows compete on."""

    bundle: Bundle
    split: Split
    windows: Windows
    targets: Sequence[Target]
    examples: Sequence[Example]
    states: States
    annotations: Sequence[Annotation]  # in the order of the targets; empty unless the oracle takes part
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
            queries = [self._query(index, choose) for index in range(start, min(start + _BATCH, len(self.targets)))]
            lists += [[int(self._to_split[item.row]) for item in answer.items] for answer in recommend(self.bundle, queries)]
            bar.update(len(queries))
        bar.close()
        return lists

    def _query(self, index: int, choose: Choose) -> Query:
        example = self.examples[index]
        memory = self.states[example.user][example.memory_positions] if len(example.memory_positions) else None
        return Query(
            prompt=example.prompt,
            memory=np.zeros((0, self.bundle.lm.hidden_size), np.float16) if memory is None else memory,
            allowed=self.allowed(self.targets[index]),
            num_results=NUM_RESULTS,
            chosen=choose(index, example),
        )


def predict(contest: Contest, row: str, seed: int) -> Lists:
    """The lists of one row."""
    if row in ("popularity", "copy_last"):
        return _without_model(contest, row)
    return contest.with_memory(_chooser(contest, row, np.random.default_rng(seed)), row)


def _chooser(contest: Contest, row: str, rng: np.random.Generator) -> Choose:
    def random(index: int, example: Example) -> tuple[int, ...]:
        return (int(rng.integers(len(example.memory_positions))),) if len(example.memory_positions) else ()

    def oracle(index: int, example: Example) -> tuple[int, ...]:
        gains = contest.annotations[index].gains("log_gain")
        return (int(gains.argmax()),) if len(gains) and gains.max() > 0 else ()

    choosers: dict[str, Choose] = {
        "bigrec": lambda index, example: (),
        "random": random,
        "recent_beyond": lambda index, example: (len(example.memory_positions) - 1,) if len(example.memory_positions) else (),
        "automr": lambda index, example: None,
        "automr_plus": lambda index, example: None,
        "oracle": oracle,
    }
    return choosers[row]


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
