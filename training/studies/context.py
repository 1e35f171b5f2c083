"""What all studies share: a data set, a bundle made from it, variants of the bundle, and measurements on valid targets.

In: inputs, the name of a recipe. Out: bundles with the results of their stages, and NDCG@10 by target. Everything is
kept in a work directory under names that depend on all inputs: studies of the same data share a backbone, and an
interrupted study continues. The test period is not used, and neither are the users from whom the retriever learned.
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
from training.lm.windows import Windows
from training.memory.judges import targets_of, user_parts
from training.rows.evaluation import Evaluation, Voters, cached_json, make_evaluation
from training.rows.latency import latency_summary, time_row
from training.rows.memory_choices import ChooseMemories, random_choice
from training.rows.row_metrics import metrics_by_target
from training.run.device import pick_device
from training.run.inputs import Inputs
from training.run.recipes import Recipe, get_recipe
from training.run.stage import StageError, digest

METRIC = "ndcg@10"
RANDOM_DRAWS = 3
_VERSION = 2  # of the measurements; results of another version are not used


@dataclass(frozen=True)
class TrainedBundle:
    bundle: Bundle
    stages: Path  # directory with the folders of its stages: sft, annotations, retriever
    recipe: Recipe


@dataclass
class StudyContext:
    inputs: Inputs
    recipe_name: str
    work: Path
    finished: tuple[Path, Path] | None = None  # a bundle that is trained already, and its stages
    other: Inputs | None = None  # the data set that `transfer` takes its retriever from
    more: Sequence[tuple[Path, Path]] = ()  # further bundles and their data sets, for `voices`
    model: str | None = None  # checkpoint; None for a model made from scratch
    num_targets: int = 500
    time_targets: int = 40
    mask_seen: bool | None = None  # None: where users of the data do not come back to items
    seed: int = 0
    device: str = "auto"

    @cached_property
    def base(self) -> TrainedBundle:
        """The finished bundle; without one, a bundle trained with the unchanged recipe."""
        if self.finished is None:
            return self.train(self.inputs)
        bundle = Bundle.open(self.finished[0], device=pick_device(self.device))
        return TrainedBundle(bundle, self.finished[1], get_recipe(self.recipe_name))

    def variant(self, **changes: Any) -> TrainedBundle:
        """A bundle trained with other values in fields of the recipe; the base where that changes nothing."""
        recipe = get_recipe(self.recipe_name)
        return self.base if replace(recipe, **changes) == recipe else self.train(self.inputs, **changes)

    def train(self, inputs: Inputs, **changes: Any) -> TrainedBundle:
        """A bundle of `inputs`; loaded where it is trained already."""
        recipe = replace(get_recipe(self.recipe_name), **changes)
        name = ", ".join([self.recipe_name, *(f"{field} {value}" for field, value in changes.items())])
        key = digest([inputs.fingerprint, recipe, self.model, self.seed])
        stages = self.work / "-".join(["backbone", *changes, key])
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
        return TrainedBundle(Bundle.open(stages / "bundle", device=pick_device(self.device)), stages, recipe)

    def judged(self, targets: Sequence[Target]) -> list[Target]:
        """The targets of users that neither taught nor chose the retriever of the base."""
        held_out = get_recipe(self.recipe_name).held_out_labels
        return targets_of(targets, user_parts(self.inputs.split, held_out=held_out).judge)

    def targets(self, min_history: int | None = None) -> list[Target]:
        """Sampled valid targets of the users that judge, with more than `min_history` earlier events.

        By default, with more than the window holds. Raises StageError where there are none.
        """
        least = self.base.bundle.manifest.prompt.recent_length if min_history is None else min_history
        found = [target for target in self.judged(self.inputs.split.valid) if target.position > least]
        if not found:
            raise StageError(
                f"of the valid targets of the users that judge, none has more than {least} earlier events, so none has"
                " memory"
            )
        return sample_targets(found, self.num_targets, self.seed)

    def evaluation(self, bundle: Bundle, targets: Sequence[Target], inputs: Inputs | None = None) -> Evaluation:
        """`inputs` differ from the context's where a study changes histories; the items are the same."""
        inputs = inputs or self.inputs
        mask_seen = not self.inputs.split.has_repeats if self.mask_seen is None else self.mask_seen
        key = [_VERSION, [(target.user, target.position) for target in targets], mask_seen]
        cache = self.work / "evaluations" / digest([inputs.fingerprint, bundle.manifest.model_dump(), key])
        return make_evaluation(bundle, inputs, targets, cache, mask_seen=mask_seen, work=cache, device=self.device)


# --- changed bundles and memories ---------------------------------------------------------------------------------


def with_manifest(bundle: Bundle, part: str, **changes: Any) -> Bundle:
    """Shallow copy with other values in one part of the manifest."""
    spec = getattr(bundle.manifest, part).model_copy(update=changes)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={part: spec}))


def without_null(retriever: Retriever) -> Retriever:
    """A copy that cannot abstain."""
    changed = copy.deepcopy(retriever)
    changed.has_null = False
    return changed


def with_windows(evaluation: Evaluation, windows: Windows) -> Evaluation:
    """The same targets and states, with the memories that `windows` give the targets."""
    return replace(evaluation, examples=[windows.example(target) for target in evaluation.targets])


# --- measurements -------------------------------------------------------------------------------------------------


def ndcg(evaluation: Evaluation, name: str, choose: ChooseMemories, *, voters: Voters = "all") -> NDArray[np.float64]:
    """(targets,) NDCG@10, cached as `name`. The name must differ for other memories, bundles or rules of choice.

    `choose` picks the states; `voters` are the events that vote, where the bundle has voices.
    """

    def compute() -> list[float]:
        lists = evaluation.rank_with_memory(choose, name, voters=voters)
        metrics = metrics_by_target(lists, evaluation.targets, evaluation.split)
        return [float(value) for value in metrics[METRIC]]

    return np.array(cached_json(evaluation.training.directory / f"{name}.json", compute))


def random_ndcg(evaluation: Evaluation, name: str, count: int) -> NDArray[np.float64]:
    """(targets,) NDCG@10 with `count` random memories, the mean of several draws."""
    draws = [ndcg(evaluation, f"{name}-{draw}", random_choice(count, draw)) for draw in range(RANDOM_DRAWS)]
    return np.mean(draws, axis=0)


def milliseconds(evaluation: Evaluation, name: str, num_targets: int) -> dict[str, Any]:
    """`ms` and `plain_ms` of one answer, with and without memory; cached as `name`."""
    file = evaluation.training.directory / f"{name}-{num_targets}.json"
    return latency_summary(cached_json(file, lambda: time_row(evaluation, "automr_plus", num_targets=num_targets)))


def num_memories(evaluation: Evaluation) -> float:
    """Mean number of memories of a target."""
    return float(np.mean([len(example.memory_positions) for example in evaluation.examples]))


def remarks_on_voices(bundle: Bundle) -> list[str]:
    """For studies of states, which read the same events with voices in all columns."""
    if bundle.voices is None:
        return []
    return ["The voices read all events in every column, also in `no memory`: the study is about states."]


def users_of(targets: Sequence[Target]) -> NDArray[np.int64]:
    return np.array([target.user for target in targets])
