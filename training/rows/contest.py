"""What all rows of the evaluation compete on, and how a row asks a language model for its lists.

In: a bundle, its data, targets. Out: a `Contest`, which turns memories or prompts into ranked items. A row is a
function of a contest; what it may know of a target ends right before the target's position.
"""

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.inference import Query, recommend
from model_store.text.prompt import Prompt
from training.annotate import Annotation, read_shards, write_shards
from training.data.splits import Split, Target
from training.lm.states import States, spans_of, window_states
from training.lm.windows import Example, Windows
from training.run.inputs import Inputs
from training.run.recipes import RECIPES, Recipe
from training.run.stage import StageError, progress

NUM_RESULTS = 10
_BATCH = 16
_TOKENS_PER_BATCH = 4096  # of prompts; beams multiply what they take

Lists = list[list[int]]  # per target, rows of Split.item_ids, best first
Choose = Callable[[Example], tuple[int, ...] | None]  # which memories of a target's
T = TypeVar("T")


@dataclass(frozen=True)
class Workshop:
    """For rows with a training of their own: a directory for its results, and how the bundle was made."""

    directory: Path
    fingerprint: str  # of the data and its cut
    device: str
    recipe: Recipe | None  # None where the bundle does not say
    model: str | None  # the checkpoint; None for a model made from scratch

    def need_recipe(self) -> Recipe:
        """Raises StageError."""
        if self.recipe is None:
            raise StageError(
                "the bundle does not say by which recipe it was made, or by one unknown here, so a row of another"
                " training would prove nothing; make it with training.pipeline, or leave that row out with --models"
            )
        return self.recipe


@dataclass
class Contest:
    bundle: Bundle
    split: Split
    targets: Sequence[Target]
    examples: Sequence[Example]
    states: States
    annotate: Callable[[], list[Annotation]]  # the targets, in any order; only the oracle asks for it
    mask_seen: bool = False
    workshop: Workshop | None = None
    prepared: dict[Any, Any] = field(default_factory=dict)  # what rows made for any targets; see `once`

    def __post_init__(self) -> None:
        rows = self.bundle.catalogue.rows
        self._to_bundle = np.array([rows[item_id] for item_id in self.split.item_ids])
        self._to_split = np.full(len(self.bundle.catalogue), -1)
        self._to_split[self._to_bundle] = np.arange(len(self._to_bundle))

    @property
    def recent_length(self) -> int:
        return self.bundle.manifest.prompt.recent_length

    def hearing(self, neighbor_share: float) -> "Contest":
        """The same, where item neighbours have this share λ. Cheap: rows are timed with it."""
        twin = copy.copy(self)
        twin.bundle = with_neighbor_share(self.bundle, neighbor_share)
        return twin

    def need_workshop(self) -> Workshop:
        """Raises StageError."""
        if self.workshop is None:
            raise StageError("this contest has no workshop, so no row of it can be trained")
        return self.workshop

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned the first time: a contest over other targets, made by `replace`, shares it."""
        if key not in self.prepared:
            self.prepared[key] = make()
        found: T = self.prepared[key]
        return found

    def title_vectors(self) -> NDArray[np.float32]:
        """(N, D) of the split's items, as the language model embeds their titles."""
        return self.bundle.index.vectors(self._to_bundle)

    def prompt_of(self, items: Sequence[int]) -> list[int]:
        """A prompt of any number of titles."""
        return long_prompt(self.bundle.prompt, [self.split.titles[item] for item in items])

    def memory(self, example: Example) -> list[int]:
        """The items that memory is made of, oldest first."""
        items: list[int] = self.split.histories[example.user].items[example.memory_positions].tolist()
        return items

    def recent(self, example: Example) -> list[int]:
        """The items of the prompt, oldest first."""
        start = max(0, example.position - self.recent_length)
        items: list[int] = self.split.histories[example.user].items[start : example.position].tolist()
        return items

    def allowed(self, target: Target) -> NDArray[np.bool_]:
        """(N of the bundle,) all items left by the split; with `mask_seen`, without those the user had already."""
        mask = self._to_split >= 0
        if self.mask_seen:
            mask[self._to_bundle[self.split.histories[target.user].items[: target.position]]] = False
        return mask

    def with_memory(self, choose: Choose, label: str) -> Lists:
        """What the bundle generates when `choose` picks the memories; None leaves it to the retriever."""

        def query(place: int) -> Query:
            example = self.examples[place]
            memory = self.bundle.codec.as_stored(self.states.at(example.user, example.memory_positions))
            return self._query(place, example.prompt, memory, choose(example))

        longest = max(len(example.prompt) for example in self.examples)
        return self._ask(self.bundle, query, label, longest=longest)

    def with_prompts(self, bundle: Bundle, prompts: Sequence[Sequence[int]], label: str) -> Lists:
        """What `bundle` generates from one prompt a target, without memory; its catalogue must have the same rows."""
        nothing = np.zeros((0, bundle.lm.hidden_size), dtype=np.float16)
        longest = max(map(len, prompts))
        return self._ask(bundle, lambda place: self._query(place, prompts[place], nothing, ()), label, longest=longest)

    def _query(
        self, place: int, prompt: Sequence[int], memory: NDArray[np.float16], chosen: tuple[int, ...] | None
    ) -> Query:
        return Query(
            prompt=prompt,
            memory=memory,
            allowed=self.allowed(self.targets[place]),
            num_results=NUM_RESULTS,
            chosen=chosen,
        )

    def _ask(self, bundle: Bundle, query: Callable[[int], Query], label: str, *, longest: int) -> Lists:
        """`query` of each place among the targets; a batch of prompts of `longest` tokens must fit into memory."""
        batch_size = max(1, min(_BATCH, _TOKENS_PER_BATCH // longest))
        lists: Lists = []
        bar = progress(total=len(self.targets), desc=label, unit="target")
        for start in range(0, len(self.targets), batch_size):
            batch = range(start, min(start + batch_size, len(self.targets)))
            answers = recommend(bundle, [query(place) for place in batch])
            lists += [[int(self._to_split[item.row]) for item in answer.items] for answer in answers]
            bar.update(len(answers))
        bar.close()
        return lists


def make_contest(
    bundle: Bundle,
    inputs: Inputs,
    targets: Sequence[Target],
    cache: Path,
    *,
    mask_seen: bool = False,
    work: Path | None = None,
    device: str = "auto",
) -> Contest:
    """`cache` is for these targets alone; `work` keeps what rows train, which any targets may use."""
    windows = Windows(inputs.split, bundle.prompt, bundle.manifest.memory.max_elements)
    states = window_states(bundle.lm, windows, spans_of(windows, targets), cache / "states")

    def annotate() -> list[Annotation]:
        directory, recipe = cache / "annotations", Recipe(combine=bundle.manifest.retriever.combine)
        write_shards(bundle.lm, windows, targets, states, recipe=recipe, directory=directory)
        return read_shards(directory)

    return Contest(
        bundle=bundle,
        split=inputs.split,
        targets=targets,
        examples=[windows.example(target) for target in targets],
        states=states,
        annotate=annotate,
        mask_seen=mask_seen,
        workshop=_workshop(bundle, inputs.fingerprint, work or cache / "work", device),
    )


def _workshop(bundle: Bundle, fingerprint: str, directory: Path, device: str) -> Workshop:
    return Workshop(directory, fingerprint, device, recipe_of(bundle), bundle.manifest.provenance.get("model"))


def with_neighbor_share(bundle: Bundle, share: float) -> Bundle:
    generation = bundle.manifest.generation.model_copy(update={"neighbor_share": share})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"generation": generation}))


def recipe_of(bundle: Bundle) -> Recipe | None:
    """None where the bundle does not say how it was made (its stages ran one by one), or by what nobody knows here."""
    made = bundle.manifest.provenance
    return RECIPES.get(made["recipe"]) if {"recipe", "model"} <= made.keys() else None


def long_prompt(prompt: Prompt, titles: Sequence[str]) -> list[int]:
    """As `Prompt.tokens`, but of all `titles`, more than K or not."""
    return [*prompt.head, *(token for title in titles for token in prompt.title_tokens(title))]
