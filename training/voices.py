"""Stage "voices": what else says something about the next item, beside the language model (see model_store/voices).

In: a data set, a backbone. Out: `voices.safetensors` and a certificate. Tables of near items and facts of items come
from the train period; the networks that weigh them are trained on sampled valid targets. Three quarters of their users
teach; one quarter ends the training and chooses how much memory counts (0, ¼, ½, ¾ or all of what was learned).
Only the item vocabulary has voices; with the vocabulary "titles" the certificate has no tables.

The certificate says what memory adds on the users who did not teach: `valid_ndcg@10_window`, `valid_ndcg@10_memory` and
`memory_minus_window` with its 95 % interval by user.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.lm.padding import pad
from model_store.manifest import VoicesSpec
from model_store.voices.voices import Voices
from training.data.splits import Split, Target, sample_targets
from training.items.channels import channel_tables, item_facts
from training.items.pasts import Pasts
from training.items.voice_files import VOICES_FILE
from training.items.voice_ranks import choose_memory_scale, memory_facts, voice_shares
from training.items.voting import Forecast, train_voices
from training.lm.backbone import Backbone, open_backbone
from training.lm.windows import Windows
from training.run.device import pick_device
from training.run.program import main_after_backbone
from training.run.recipes import Recipe
from training.run.stage import atomic_file, begin, digest, finish, is_done, progress, read_certificate

_VERSION = 2
_JUDGING = 0.25  # share of the users
_BATCH = 64
_MOST_NUMBERS = 600_000_000  # of all forecasts together; above, fewer targets are sampled


def stage_key(fingerprint: str, upstream: dict[str, Any], recipe: Recipe, seed: int) -> str:
    """Changes with everything that changes the voices. `upstream` is the certificate of the backbone."""
    return digest([_VERSION, fingerprint, upstream, recipe.voices_targets, recipe.max_past, recipe.recent_length, seed])


def run(
    split: Split, out: Path, *, backbone_dir: Path, recipe: Recipe, inputs: str, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Returns the certificate. Does nothing when `out` holds the result of the same inputs."""
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    backbone = open_backbone(backbone_dir, pick_device(device))
    if backbone.vocabulary != "items" or not recipe.voices_targets:
        return finish(out, inputs, {"spec": None})
    tokens = np.array([backbone.prompt.title_tokens(title)[0] for title in split.titles], dtype=np.int64)
    voices, pasts = untrained(split, tokens, recipe, seed)
    teach, judge = learning_targets(split, recipe, len(voices), seed)
    forecast = cached_forecast(backbone, Windows(split, backbone.prompt, recipe.max_memory), [*teach, *judge])
    steps = train_voices(voices, pasts, teach, judge, forecast, seed=seed)
    scale = choose_memory_scale(voices, pasts, judge, forecast)
    facts = {
        "spec": voices.spec.model_dump(),
        "memory_scale": scale,
        "targets": {"teach": len(teach), "judge": len(judge)},
        **memory_facts(voices, pasts, judge, forecast),
        "shares": voice_shares(voices, pasts, judge, forecast),
        "steps": {name: [round(step.before, 4), round(step.lowest, 4), step.epoch] for name, step in steps.items()},
    }
    with atomic_file(out / VOICES_FILE) as draft:
        voices.save(draft)
    return finish(out, inputs, facts)


def untrained(split: Split, tokens: NDArray[np.int64], recipe: Recipe, seed: int = 0) -> tuple[Voices, Pasts]:
    """Voices of the train period whose networks are not trained, and the pasts that they read."""
    tables = channel_tables(split, tokens)
    spec = VoicesSpec(
        tables=tuple(tables),
        recent_length=recipe.recent_length,
        past_length=max(recipe.max_past, recipe.recent_length),
        has_returns=split.has_repeats,
    )
    torch.manual_seed(seed)  # of the first weights
    return Voices(spec, item_facts(split, tokens), tables), Pasts(split, tokens, length=spec.past_length)


def learning_targets(split: Split, recipe: Recipe, num_tokens: int, seed: int) -> tuple[list[Target], list[Target]]:
    """The sampled valid targets that teach, and those that judge. `num_tokens` is V."""
    count = min(recipe.voices_targets, _MOST_NUMBERS // max(1, num_tokens))
    return split_by_user(sample_targets(split.valid, count, seed), seed)


def split_by_user(targets: Sequence[Target], seed: int) -> tuple[list[Target], list[Target]]:
    """Targets of the users who teach, and of those who judge. Each part has a user where there are two."""
    users = np.unique([target.user for target in targets])
    count = min(max(1, round(_JUDGING * len(users))), len(users) - 1)
    judging = set(np.random.default_rng(seed).permutation(users)[:count].tolist())
    return (
        [target for target in targets if target.user not in judging],
        [target for target in targets if target.user in judging],
    )


def cached_forecast(backbone: Backbone, windows: Windows, targets: Sequence[Target]) -> Forecast:
    """The language model's probabilities of the next item without memory, in float16, computed once per target."""
    parts, rows = [], {target: row for row, target in enumerate(targets)}
    for start in progress(range(0, len(targets), _BATCH), desc="forecasts", unit="batch"):
        parts.append(forecast_of(backbone, windows, targets[start : start + _BATCH]).astype(np.float16))
    found = np.concatenate(parts)
    return lambda wanted: found[[rows[target] for target in wanted]].astype(np.float32)


@torch.inference_mode()
def forecast_of(backbone: Backbone, windows: Windows, targets: Sequence[Target]) -> NDArray[np.float32]:
    """(targets, V)"""
    prompts = [windows.prompt_ending_at(target.user, target.position - 1) for target in targets]
    padded = pad(prompts, device=backbone.lm.device)
    logits = backbone.lm.top(backbone.lm.bottom(*padded), padded.mask, num_logits=1)[:, -1]
    found: NDArray[np.float32] = logits.float().softmax(dim=-1).numpy(force=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    return main_after_backbone(__doc__ or "", run, stage_key, argv)


if __name__ == "__main__":
    sys.exit(main())
