"""What all rows share: a bundle, its data, the targets, and how a language model turns prompts and memories into lists.

In: a bundle, its data, targets. Out: an `Evaluation`. A row of the table is a function of an evaluation and a seed that
gives one list for each target. From a target it may read only the events before the target's position and its time.

Every row obeys one rule of what is shown (`Evaluation.hidden`): no item that lies in the current basket, which are the
events at the time of the target, and with `mask_seen` no item that the user had.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.answers import PastRows, Query
from model_store.bundle import Bundle
from model_store.inference import recommend
from model_store.text.prompt import Prompt
from model_store.voices.voices import Voices
from training.data.splits import Split, Target
from training.items.scoring import Scorer, top_items
from training.lm.states import States, spans_of, window_states
from training.lm.windows import Example, Windows
from training.memory.annotations import Annotation, read_annotations, write_annotations
from training.rows.memory_choices import ChooseMemories
from training.run.inputs import Inputs
from training.run.metrics import popularity_tie_order
from training.run.recipes import RECIPES, Recipe
from training.run.stage import StageError, progress, write_json

NUM_RESULTS = 10
_BATCH, _BATCH_OF_ITEM_TOKENS = 16, 64  # targets; an item token needs no beam search
_SCORED = 256  # targets whose scores of all items are in memory at a time
_TOKENS_PER_BATCH = 4096  # tokens of the prompts; beams need a multiple of their memory

RankedLists = list[list[int]]  # for each target, rows of Split.item_ids, best first
Voters = Literal["all", "window", "none"]  # the events that vote; "none": the language model alone
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


class Memory(NamedTuple):
    """What a query knows beside the prompt. `states` (M, D), oldest first; `chosen` and `past` as in `Query`."""

    states: NDArray[np.float16]
    chosen: tuple[int, ...] | None
    past: PastRows | None = None


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
    past_length: int | None = None  # events that voices read; None as the manifest says
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

    @property
    def voices(self) -> Voices:
        """Raises StageError."""
        if self.bundle.voices is None:
            raise StageError("the bundle has no voices, so it cannot have the rows of single voices")
        return self.bundle.voices

    @property
    def tokens(self) -> NDArray[np.int64]:
        """(N,) the first tokens of the titles of the split's items."""
        return self.bundle.tokens_of(self._to_bundle)

    def with_voices(self, voices: Voices | None) -> "Evaluation":
        """A copy with other voices of the same bundle."""
        return replace(self, bundle=replace(self.bundle, voices=voices))

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

    # ---- what a query may show and know

    def hidden(self, target: Target) -> NDArray[np.int32]:
        """The items that no row shows: those of the current basket, and with `mask_seen` all that the user had."""
        history = self.split.histories[target.user]
        return history.hidden(target.position, hides_seen=self.mask_seen)

    def allowed_items(self, targets: Sequence[Target]) -> NDArray[np.bool_]:
        """(targets, N)"""
        mask = np.ones((len(targets), len(self.split.item_ids)), dtype=np.bool_)
        for row, target in enumerate(targets):
            mask[row, self.hidden(target)] = False
        return mask

    def allowed(self, target: Target) -> NDArray[np.bool_]:
        """(items of the bundle,) the items of the split that may be shown."""
        mask = self._to_split >= 0
        mask[self._to_bundle[self.hidden(target)]] = False
        return mask

    def past(self, target: Target, voters: Voters = "all") -> PastRows | None:
        """The newest events before the target, as many as voices read; None where no event votes."""
        spec = self.bundle.manifest.voices
        if voters == "none" or spec is None:
            return None
        length = spec.recent_length if voters == "window" else self.past_length or spec.past_length
        history = self.split.histories[target.user]
        span = slice(max(0, target.position - length), target.position)
        times: list[int] = history.timestamps[span].tolist()
        now = int(history.timestamps[target.position])
        if history.typed is None:
            return PastRows(self.rows_of(history.items[span]), times, now)
        weights = history.typed.weights[span].tolist()
        against = history.typed.against_at(now)
        pairs = list(zip(self.rows_of(against.items), against.weights.tolist(), strict=True))
        return PastRows(self.rows_of(history.items[span]), times, now, weights, pairs)

    def rows_of(self, items: NDArray[np.integer]) -> list[int]:
        """Rows of the bundle's catalogue."""
        rows: list[int] = self._to_bundle[items].tolist()
        return rows

    def own_states(self, place: int) -> NDArray[np.float16]:
        """(M, D) the states of the n-th target's memory, as the store keeps them."""
        example = self.examples[place]
        return self.bundle.codec.round_trip(self.states.at(example.user, example.memory_positions))

    # ---- lists

    def rank_with_memory(self, choose: ChooseMemories, label: str, *, voters: Voters = "all") -> RankedLists:
        """What the bundle ranks from the window, the states of `choose`, and the events that vote.

        `label` names the progress bar.
        """

        def remember(place: int) -> Memory:
            chosen = choose(self.examples[place])
            return Memory(self.own_states(place), chosen, self.past(self.targets[place], voters))

        return self.rank(remember, label, with_voices=voters != "none")

    def rank(self, remember: Callable[[int], Memory], label: str, *, with_voices: bool = True) -> RankedLists:
        """What the bundle ranks from the window, and from what `remember` gives for the n-th target."""
        bundle = self.bundle if with_voices else without_voices(self.bundle)
        return self._rank(bundle, [example.prompt for example in self.examples], remember, label)

    def rank_with_items(self, bundle: Bundle, shown: Sequence[Sequence[int]], label: str) -> RankedLists:
        """What `bundle` generates without memory from a prompt with these items for each target, however many."""
        titles = self.split.titles
        prompts = [long_prompt(bundle.prompt, [titles[item] for item in items]) for items in shown]
        return self.rank_with_prompts(bundle, prompts, label)

    def rank_with_prompts(self, bundle: Bundle, prompts: Sequence[Sequence[int]], label: str) -> RankedLists:
        """What the language model of `bundle` generates without memory and voices from one prompt for each target.

        The catalogue of `bundle` must have the same rows as this evaluation's.
        """
        nothing = Memory(np.zeros((0, bundle.lm.hidden_size), dtype=np.float16), ())
        return self._rank(without_voices(bundle), prompts, lambda place: nothing, label)

    def rank_with_scores(self, score: Scorer) -> RankedLists:
        """The items with the highest scores; equal scores by popularity, then by item id."""
        tie_order = popularity_tie_order(self.split.popularity, self.split.item_ids)
        lists: RankedLists = []
        for start in range(0, len(self.targets), _SCORED):
            part = self.targets[start : start + _SCORED]
            lists += top_items(score(part), tie_order, NUM_RESULTS, self.allowed_items(part))
        return lists

    def _rank(
        self,
        bundle: Bundle,
        prompts: Sequence[Sequence[int]],
        remember: Callable[[int], Memory],
        label: str,
    ) -> RankedLists:
        batch_size = _batch_size(bundle, longest=max(map(len, prompts)))
        lists: RankedLists = []
        bar = progress(total=len(self.targets), desc=label, unit="target")
        for start in range(0, len(self.targets), batch_size):
            batch = range(start, min(start + batch_size, len(self.targets)))
            answers = recommend(bundle, [self._query(place, prompts[place], remember(place)) for place in batch])
            lists += [[int(self._to_split[item.row]) for item in answer.items] for answer in answers]
            bar.update(len(answers))
        bar.close()
        return lists

    def _query(self, place: int, prompt: Sequence[int], memory: Memory) -> Query:
        return Query(
            prompt=prompt,
            memory=memory.states,
            allowed=self.allowed(self.targets[place]),
            num_results=NUM_RESULTS,
            chosen=memory.chosen,
            past=memory.past,
        )


def _batch_size(bundle: Bundle, *, longest: int) -> int:
    """`longest`: tokens of the longest prompt."""
    most = _BATCH_OF_ITEM_TOKENS if bundle.manifest.vocabulary == "items" else _BATCH
    return max(1, min(most, _TOKENS_PER_BATCH // longest))


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


def without_voices(bundle: Bundle) -> Bundle:
    """A copy that ranks by its language model alone."""
    return bundle if bundle.voices is None else replace(bundle, voices=None)


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
