"""Stage "voices": trains the voices beside the language model (see model_store/voices).

In: a data set, a backbone. Out: `voices.safetensors` and a certificate. Tables of near items and facts of items come
from the train period; the networks that weigh them are trained on sampled valid targets. Three quarters of their users
teach; one quarter ends the training and chooses how memory is used: how much of what was learned (0, ¼, ½, ¾ or all),
and how much less an item of older events counts, so that new items are ranked no worse (`voice_ranks.MemoryUse`).
Only the item vocabulary has voices; with the vocabulary "titles" the certificate has no tables.

The certificate says what memory adds on the users who did not teach: `valid_ndcg@10_window`, `valid_ndcg@10_memory` and
`memory_minus_window` with its 95 % interval by user.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.splits import Split
from training.items.voice_files import VOICES_FILE
from training.items.voice_ranks import choose_memory_use, memory_facts, voice_shares
from training.items.voice_setup import learning_targets, untrained
from training.items.voting import train_voices
from training.lm.backbone import open_backbone
from training.lm.forecasts import cached_forecast
from training.lm.windows import Windows
from training.run.device import pick_device
from training.run.program import main_after_backbone
from training.run.recipes import Recipe
from training.run.stage import atomic_file, begin, digest, finish, is_done, read_certificate

_VERSION = 5


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
    use = choose_memory_use(voices, pasts, judge, forecast)
    facts = {
        "spec": voices.spec.model_dump(),
        "memory_use": use._asdict(),
        "targets": {"teach": len(teach), "judge": len(judge)},
        **memory_facts(voices, pasts, judge, forecast),
        "shares": voice_shares(voices, pasts, judge, forecast),
        "steps": {name: [round(step.before, 4), round(step.lowest, 4), step.epoch] for name, step in steps.items()},
    }
    with atomic_file(out / VOICES_FILE) as draft:
        voices.save(draft)
    return finish(out, inputs, facts)


def main(argv: Sequence[str] | None = None) -> int:
    return main_after_backbone(__doc__ or "", run, stage_key, argv)


if __name__ == "__main__":
    sys.exit(main())
