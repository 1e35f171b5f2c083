"""What all studies work with: a data set, a bundle made of it, variants of the bundle, and contests on valid targets.

In: inputs, the name of a recipe. Out: bundles beside the results of their stages, and NDCG@10 for each target. All is
kept in a work directory under names that change with whatever it depends on, so that studies of the same data share a
backbone, and a study that was interrupted goes on where it was. Nothing here looks at the test period.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.memory.retriever import Retriever
from training import pipeline
from training.data.splits import Target, sample_targets
from training.evaluate import cached
from training.lm.windows import Windows
from training.rows import latency
from training.rows.contest import Choose, Contest, make_contest
from training.rows.scores import score
from training.run.inputs import Inputs
from training.run.recipes import Recipe, get_recipe
from training.run.stage import StageError, digest, pick_device

METRIC = "ndcg@10"
RANDOM_DRAWS = 3


@dataclass(frozen=True)
class Made:
    """A bundle and the directory of its stages: `sft`, `annotations`, `retriever`."""

    bundle: Bundle
    stages: Path
    recipe: Recipe


@dataclass
class Setting:
    inputs: Inputs
    recipe_name: str
    work: Path
    given: tuple[Path, Path] | None = None  # a bundle made before, and its stages
    other: Inputs | None = None  # where `transfer` takes its retriever from
    model: str | None = None
    num_targets: int = 500
    time_targets: int = 40
    mask_seen: bool = False
    seed: int = 0
    device: str = "auto"

    @cached_property
    def base(self) -> Made:
        """The bundle given, or one made by the recipe as it is."""
        if self.given is None:
            return self.make(self.inputs)
        bundle = Bundle.open(self.given[0], device=pick_device(self.device))
        return Made(bundle, self.given[1], get_recipe(self.recipe_name))

    def variant(self, **changes: Any) -> Made:
        """The same with other fields of the recipe, trained anew; the base where nothing changes."""
        recipe = get_recipe(self.recipe_name)
        return self.base if replace(recipe, **changes) == recipe else self.make(self.inputs, **changes)

    def make(self, inputs: Inputs, **changes: Any) -> Made:
        recipe = replace(get_recipe(self.recipe_name), **changes)
        name = ", ".join([self.recipe_name, *(f"{field} {value}" for field, value in changes.items())])
        stages = self.work / "-".join(
            ["backbone", *changes, digest([inputs.fingerprint, recipe, self.model, self.seed])]
        )
        pipeline.run(
            inputs,
            stages / "bundle",
            recipe_name=name,
            recipe=recipe,
            work=stages,
            model=self.model,
            seed=self.seed,
            device=self.device,
        )
        return Made(Bundle.open(stages / "bundle", device=pick_device(self.device)), stages, recipe)

    def targets(self, beyond: int | None = None) -> list[Target]:
        """Of the valid period, those with more earlier events than the window holds, or than `beyond`."""
        beyond = self.base.bundle.manifest.prompt.recent_length if beyond is None else beyond
        found = [target for target in self.inputs.split.valid if target.position > beyond]
        if not found:
            raise StageError(f"no valid target has more than {beyond} earlier events, so none has memory to study")
        return sample_targets(found, self.num_targets, self.seed)

    def contest(self, bundle: Bundle, targets: Sequence[Target], inputs: Inputs | None = None) -> Contest:
        """`inputs` where they are not the setting's: other histories, the same items."""
        inputs = inputs or self.inputs
        asked = [[(target.user, target.position) for target in targets], self.mask_seen]
        cache = self.work / "contests" / digest([inputs.fingerprint, bundle.manifest.model_dump(), asked])
        return make_contest(bundle, inputs, targets, cache, mask_seen=self.mask_seen, work=cache, device=self.device)


def with_manifest(bundle: Bundle, part: str, **changes: Any) -> Bundle:
    """The same bundle with other numbers in one part of its manifest."""
    spec = getattr(bundle.manifest, part).model_copy(update=changes)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={part: spec}))


def without_null(retriever: Retriever) -> Retriever:
    """The same, which cannot abstain."""
    twin = copy.deepcopy(retriever)
    twin.has_null = False
    return twin


def with_examples(contest: Contest, windows: Windows) -> Contest:
    """The same targets and states with the memory that `windows` give them."""
    return replace(contest, examples=[windows.example(target) for target in contest.targets])


def num_elements(contest: Contest) -> float:
    """Memory elements of a target, on average."""
    return float(np.mean([len(example.memory_positions) for example in contest.examples]))


# --- who chooses the memories -------------------------------------------------------------------------------------


def nothing(example: Any) -> tuple[int, ...]:
    return ()


def retrieved(example: Any) -> None:
    """What the retriever takes."""


def at_random(num_memories: int, draw: int) -> Choose:
    rng = np.random.default_rng(draw)
    return lambda example: tuple(np.sort(rng.permutation(len(example.memory_positions))[:num_memories]).tolist())


def newest(num_memories: int) -> Choose:
    return lambda example: tuple(range(len(example.memory_positions)))[-num_memories:] if num_memories else ()


def best_single(contest: Contest) -> Choose:
    """The element that helps the truth most, or none: knows the answer."""
    gains = {(found.user, found.position): found.gains("log_gain") for found in contest.annotate()}

    def choose(example: Any) -> tuple[int, ...]:
        gain = gains[example.user, example.position]
        return (int(gain.argmax()),) if gain.max(initial=0) > 0 else ()

    return choose


# --- what is measured ---------------------------------------------------------------------------------------------


def ndcg(contest: Contest, name: str, choose: Choose) -> NDArray[np.float64]:
    """(targets,), kept in the contest's workshop under `name`, which must say what `choose` and the contest do not."""

    def compute() -> list[float]:
        lists = contest.with_memory(choose, name)
        return [float(value) for value in score(lists, contest.targets, contest.split)[METRIC]]

    return np.array(cached(contest.need_workshop().directory / f"{name}.json", compute))


def random_ndcg(contest: Contest, name: str, num_memories: int) -> NDArray[np.float64]:
    """(targets,) mean of several draws."""
    draws = [ndcg(contest, f"{name}-{draw}", at_random(num_memories, draw)) for draw in range(RANDOM_DRAWS)]
    return np.mean(draws, axis=0)


def milliseconds(contest: Contest, name: str, num_targets: int) -> dict[str, Any]:
    """`ms` and `plain_ms` of one answer, with and without memory; kept as `ndcg` does."""
    file = contest.need_workshop().directory / f"{name}-{num_targets}.json"
    return latency.summarise(cached(file, lambda: latency.time_row(contest, "automr_plus", num_targets=num_targets)))


def users_of(targets: Sequence[Target]) -> NDArray[np.int64]:
    return np.array([target.user for target in targets])
