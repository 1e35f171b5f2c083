"""`voices`: how much each voice counts in the mixture, from the window and from older events, by data set.

The share of a voice is the mean weight that the gates give it; the shares of a data set sum to one. It says how much is
drawn from a voice, not how much worse a model without it would be. Further bundles (`--more BUNDLE DATA`) get columns
of their own. Targets are of the valid period, of users from whom the voices did not learn: of users whose events were
not used at all where there are any, else of those that ended the training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.voices.gate import FORECAST, POPULARITY
from model_store.voices.voices import Voices
from training.data.splits import Split, Target, sample_targets
from training.items.pasts import Pasts
from training.items.voice_setup import learning_targets
from training.run.device import pick_device
from training.run.inputs import Inputs, load_inputs
from training.run.recipes import Recipe, get_recipe
from training.run.stage import StageError
from training.studies.context import StudyContext, users_of
from training.studies.result import StudyResult, Value, means_and_gains

_BATCH = 64
PARTS = ("window", "older")


class VoicedData(NamedTuple):
    """A data set and the bundle whose voices were trained on it."""

    name: str
    bundle: Bundle
    split: Split
    recipe: Recipe
    seed: int


def run(context: StudyContext) -> StudyResult:
    sets = [_own(context), *(_opened(context, *paths) for paths in context.more)]
    names = _distinct([each.name for each in sets])
    lines: dict[str, dict[str, Value]] = {}
    panels, remarks = {}, []
    for name, each in zip(names, sets, strict=True):
        targets, whose = judging_targets(each)
        targets = sample_targets(targets, context.num_targets, context.seed)
        panels[f"share of the mixture, {name}"] = [f"{name}: {part}" for part in PARTS]
        for voice, shares in shares_by_voice(each, targets).items():
            found = means_and_gains({f"{name}: {part}": values for part, values in shares.items()}, users_of(targets))
            lines.setdefault(voice, {}).update(found)
        remarks.append(f"{name}: {len(targets)} targets of {whose}.")
    return StudyResult(
        question="how much does each voice count?",
        x="voice",
        columns={column: ".3f" for columns in panels.values() for column in columns},
        lines=lines,
        panels=panels,
        remarks=remarks,
        users="users from whom the voices did not learn their weights",
        has_bars=True,
    )


def _own(context: StudyContext) -> VoicedData:
    split, recipe = context.inputs.split, get_recipe(context.recipe_name)
    return VoicedData(context.inputs.dataset.name, context.base.bundle, split, recipe, context.seed)


def _opened(context: StudyContext, bundle_path: Path, data: Path) -> VoicedData:
    bundle = Bundle.open(bundle_path, device=pick_device(context.device))
    provenance = bundle.manifest.provenance
    if not {"recipe", "cut", "seed"} <= provenance.keys():
        raise StageError(f"{bundle_path}: the manifest does not tell how it was made; make it with training.pipeline")
    inputs: Inputs = load_inputs(data, provenance["cut"])
    return VoicedData(inputs.dataset.name, bundle, inputs.split, get_recipe(provenance["recipe"]), provenance["seed"])


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of equal data sets get a number."""
    return [name if names.count(name) == 1 else f"{name} {place}" for place, name in enumerate(names, 1)]


def voices_of(voiced: VoicedData) -> Voices:
    """Raises StageError."""
    if voiced.bundle.voices is None:
        raise StageError(f"the bundle of {voiced.name} has no voices: its vocabulary is text, or they were turned off")
    return voiced.bundle.voices


def judging_targets(voiced: VoicedData) -> tuple[list[Target], str]:
    """Valid targets of users from whom the weights were not learned, and who these users are."""
    teach, judge = learning_targets(voiced.split, voiced.recipe, len(voices_of(voiced)), voiced.seed)
    taught, ended = ({target.user for target in part} for part in (teach, judge))
    fresh = [target for target in voiced.split.valid if target.user not in taught | ended]
    if fresh:
        return fresh, "users who did not take part in the training of the voices"
    ending = [target for target in voiced.split.valid if target.user not in taught]
    if ending:
        return ending, "users who ended the training of the voices"
    return list(voiced.split.valid), "the user who taught the voices, because there is only one"


def shares_by_voice(voiced: VoicedData, targets: Sequence[Target]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Voice → part → (targets,) the weight of the voice in the mixture. The language model has no older part."""
    voices, manifest = voices_of(voiced), voiced.bundle.manifest
    pasts = Pasts(voiced.split, _tokens(voiced), length=manifest.voices.past_length if manifest.voices else 1)
    parts = [_weights(voices, pasts, targets[start : start + _BATCH]) for start in range(0, len(targets), _BATCH)]
    window, older = (np.concatenate(part) for part in zip(*parts, strict=True))
    found = {"language model": {"window": window[:, FORECAST]}}
    for column, name in enumerate(("popularity", *voices.channels), POPULARITY):
        found[name] = {"window": window[:, column], "older": older[:, column]}
    return found


def _tokens(voiced: VoicedData) -> NDArray[np.int64]:
    rows = voiced.bundle.catalogue.rows
    return voiced.bundle.tokens_of(np.array([rows[item_id] for item_id in voiced.split.item_ids], dtype=np.int64))


def _weights(
    voices: Voices, pasts: Pasts, targets: Sequence[Target]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(targets, 2 + C) of the window and of older events: language model, popularity, channels."""
    found = []
    for is_older, described in enumerate(voices.describe([pasts.past(target) for target in targets])):
        weights = voices.weigh(described, is_older=bool(is_older))
        found.append(np.concatenate([weights.overall.numpy(), weights.events.sum(dim=1).numpy()], axis=1))
    kept = found[1][:, [FORECAST]]  # the share of the window
    return (kept * found[0]).astype(np.float64), found[1].astype(np.float64)
