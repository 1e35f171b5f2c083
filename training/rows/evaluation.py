"""What all rows share: a bundle, its data, the targets, and how a language model turns prompts and memories into lists.

In: a bundle, its data, targets. Out: an `Evaluation`. A row of the table is a function of an evaluation and a seed that
gives one list for each target. From a target it may read only the events before the target's position.
"""

import copy
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.answers import Query
from model_store.bundle import Bundle
from model_store.inference import recommend
from model_store.text.prompt import Prompt
from training.data.splits import Split, Target
from training.lm.states import States, spans_of, window_states
from training.lm.windows import Example, Windows
from training.memory.annotations import Annotation, read_annotations, write_annotations
from training.rows.memory_choices import ChooseMemories
from training.run.inputs import Inputs
from training.run.recipes import RECIPES, Recipe
from training.run.stage import StageError, progress, write_json

NUM_RESULTS = 10
_BATCH = 16
_TOKENS_PER_BATCH = 4096  # tokens of the prompts; beams need a multiple of their memory

RankedLists = list[list[int]]  # for each target, rows of Split.item_ids, best first
T = TypeVar("T")


@dataclass(frozen=True)
class TrainingSetup:
    """What rows that train a model need: where results are kept, and how the bundle was trained."""

    directory: Path
    fingerprint: str  # of the data and its cut
    device: str
    recipe: Recipe | None  # None where the bundle does not name a known one
    model: str | None  # checkpoint; None for a model made from scratch

    def require_recipe(self) -> Recipe:
        """Raises StageError."""
        if self.recipe is None:
            raise StageError(
                "the bundle does not name the recipe that it was trained with, or names an unknown one, so a row that"
                " trains a model cannot be compared with it; make the bundle with training.pipeline, or leave that"
                " row out with --models"
            )
        return self.recipe


@dataclass
class Evaluation:
    bundle: Bundle
    split: Split
    targets: Sequence[Target]
    examples: Sequence[Example]  # of the targets, in the same order
    states: States  # of all memories
    annotate: Callable[[], list[Annotation]]  # annotations of the targets, in any order; expensive
    states_by: Callable[[Bundle], States]  # the same memories, as another language model encodes them; kept on disk
    training: TrainingSetup
    mask_seen: bool = False
    results: dict[Any, Any] = field(default_factory=dict)  # see `compute_once`

    def __post_init__(self) -> None:
        rows = self.bundle.catalogue.rows
        self._to_bundle = np.array([rows[item_id] for item_id in self.split.item_ids])
        self._to_split = np.full(len(self.bundle.catalogue), -1)
        self._to_split[self._to_bundle] = np.arange(len(self._to_bundle))

    @property
    def recent_length(self) -> int:
        """K, the number of items in the window."""
        return self.bundle.manifest.prompt.recent_length

    def with_neighbor_share(self, share: float) -> "Evaluation":
        """Shallow copy in which item neighbours have the share λ = `share`. Rows are timed with this call included."""
        changed = copy.copy(self)
        changed.bundle = with_neighbor_share(self.bundle, share)
        return changed

    def compute_once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of the first `compute` with this key. Copies made by `replace` share the results.

        A result must therefore not depend on the targets.
        """
        if key not in self.results:
            self.results[key] = compute()
        found: T = self.results[key]
        return found

    def title_vectors(self) -> NDArray[np.float32]:
        """(N, D) embeddings of the titles of the split's items, by the language model."""
        return self.bundle.index.vectors(self._to_bundle)

    def as_read_by(self, bundle: Bundle) -> "Evaluation":
        """A copy with another bundle of the same catalogue, whose language model makes the states of its memories.

        `annotate` stays that of the first bundle.
        """
        windows = Windows(self.split, bundle.prompt, bundle.manifest.memory.max_elements)
        states = self.compute_once(("states", bundle.manifest.space), lambda: self.states_by(bundle))
        examples = [windows.example(target) for target in self.targets]
        return replace(self, bundle=bundle, examples=examples, states=states)

    def memory(self, example: Example) -> list[int]:
        """The items of the memory, oldest first."""
        items: list[int] = self.split.histories[example.user].items[example.memory_positions].tolist()
        return items

    def recent(self, example: Example) -> list[int]:
        """The items of the window, oldest first."""
        start = max(0, example.position - self.recent_length)
        items: list[int] = self.split.histories[example.user].items[start : example.position].tolist()
        return items

    def allowed(self, target: Target) -> NDArray[np.bool_]:
        """(items of the bundle,) the items of the split; with `mask_seen` without the items of the user's history."""
        mask = self._to_split >= 0
        if self.mask_seen:
            mask[self._to_bundle[self.split.histories[target.user].items[: target.position]]] = False
        return mask

    def rank_with_memory(self, choose: ChooseMemories, label: str) -> RankedLists:
        """What the bundle generates from window and memory. `label` names the progress bar."""

        def query(place: int) -> Query:
            example = self.examples[place]
            memory = self.bundle.codec.round_trip(self.states.at(example.user, example.memory_positions))
            return self._query(place, example.prompt, memory, choose(example))

        longest = max(len(example.prompt) for example in self.examples)
        return self._rank(self.bundle, query, label, longest=longest)

    def rank_with_items(self, bundle: Bundle, shown: Sequence[Sequence[int]], label: str) -> RankedLists:
        """What `bundle` generates without memory from a prompt with these items for each target, however many."""
        titles = self.split.titles
        prompts = [long_prompt(bundle.prompt, [titles[item] for item in items]) for items in shown]
        return self.rank_with_prompts(bundle, prompts, label)

    def rank_with_prompts(self, bundle: Bundle, prompts: Sequence[Sequence[int]], label: str) -> RankedLists:
        """What `bundle` generates without memory from one prompt for each target.

        The catalogue of `bundle` must have the same rows as this evaluation's.
        """
        nothing = np.zeros((0, bundle.lm.hidden_size), dtype=np.float16)
        longest = max(map(len, prompts))
        return self._rank(bundle, lambda place: self._query(place, prompts[place], nothing, ()), label, longest=longest)

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

    def _rank(self, bundle: Bundle, query: Callable[[int], Query], label: str, *, longest: int) -> RankedLists:
        """`query` gives the query of the n-th target; `longest` is the length of the longest prompt in tokens."""
        batch_size = max(1, min(_BATCH, _TOKENS_PER_BATCH // longest))
        lists: RankedLists = []
        bar = progress(total=len(self.targets), desc=label, unit="target")
        for start in range(0, len(self.targets), batch_size):
            batch = range(start, min(start + batch_size, len(self.targets)))
            answers = recommend(bundle, [query(place) for place in batch])
            lists += [[int(self._to_split[item.row]) for item in answer.items] for answer in answers]
            bar.update(len(answers))
        bar.close()
        return lists


Rank = Callable[[Evaluation, int], RankedLists]  # a row: (evaluation, seed) → lists


def make_evaluation(
    bundle: Bundle,
    inputs: Inputs,
    targets: Sequence[Target],
    cache: Path,
    *,
    mask_seen: bool = False,
    work: Path | None = None,
    device: str = "auto",
) -> Evaluation:
    """Computes the states of the memories, or reads them from `cache`.

    `cache` belongs to these targets. `work` keeps the models that rows train, which any targets may use; by default it
    is a folder of `cache`.
    """
    windows = Windows(inputs.split, bundle.prompt, bundle.manifest.memory.max_elements)
    spans = spans_of(windows, targets)
    states = window_states(bundle.lm, windows, spans, cache / "states")
    model = bundle.manifest.provenance.get("model")

    def annotate() -> list[Annotation]:
        directory, recipe = cache / "annotations", Recipe(combine=bundle.manifest.retriever.combine)
        write_annotations(bundle.lm, windows, targets, states, recipe=recipe, directory=directory)
        return read_annotations(directory)

    def states_by(other: Bundle) -> States:
        read = Windows(inputs.split, other.prompt, other.manifest.memory.max_elements)
        return window_states(other.lm, read, spans, cache / f"states-{other.manifest.space}")

    return Evaluation(
        bundle=bundle,
        split=inputs.split,
        targets=targets,
        examples=[windows.example(target) for target in targets],
        states=states,
        annotate=annotate,
        states_by=states_by,
        training=TrainingSetup(work or cache / "work", inputs.fingerprint, device, recipe_of(bundle), model),
        mask_seen=mask_seen,
    )


def with_neighbor_share(bundle: Bundle, share: float) -> Bundle:
    generation = bundle.manifest.generation.model_copy(update={"neighbor_share": share})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"generation": generation}))


def is_memory_tuned(bundle: Bundle) -> bool:
    """Whether the generator was tuned to read memory."""
    return "memory-aware" in (bundle.manifest.backbone.adapter or "")


def recipe_of(bundle: Bundle) -> Recipe | None:
    """The recipe that the bundle's provenance names. None where it names no recipe and model, or an unknown recipe."""
    provenance = bundle.manifest.provenance
    return RECIPES.get(provenance["recipe"]) if {"recipe", "model"} <= provenance.keys() else None


def long_prompt(prompt: Prompt, titles: Sequence[str]) -> list[int]:
    """Tokens of the head and of all `titles`; `Prompt.tokens` would keep the last K titles only."""
    return [*prompt.head, *(token for title in titles for token in prompt.title_tokens(title))]


def cached_json(file: Path, compute: Callable[[], Any]) -> Any:
    """The content of `file`, which `compute` gives where the file does not exist. Intervals come back as lists."""
    if not file.is_file():
        write_json(file, compute())
    return json.loads(file.read_text())
