"""Stage "mixture": choose how much item neighbours count in the forecast (see training/items/mixture.py).

In: a data set, a backbone. Out: `neighbors.safetensors` and a certificate. The weight β of likeness, the share λ of the
neighbours and their half-life are those with the best NDCG@10 on sampled valid targets. The language model reads no
memory here, because every row of the evaluation is compared with the row without memory: that row gets the λ that suits
it. Only the item vocabulary has neighbours; with the vocabulary "titles" the certificate says λ = 0.

The certificate also says whether events older than the window can help at all, as far as item neighbours can tell:
`valid_ndcg@10_recent` is what neighbours reach alone when they read the last K events, `valid_ndcg@10_long` when they
read K + M, and `long_minus_recent` is the difference with its 95 % interval by user. If the interval is not above zero,
expect little of memory.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.lm.padding import pad
from training.data.splits import Split, Target, sample_targets
from training.items import item_knn
from training.items.co_occurrence import keep_largest
from training.items.likeness import FEWEST_TITLES, LONGEST_RUN, MOST_TITLES, NUM_ALIKE
from training.items.mixture import (
    HALF_LIVES,
    LONG_HALF_LIVES,
    NEIGHBORS_FILE,
    SHARES,
    ChosenMixture,
    Forecast,
    alike_items,
    as_neighbors,
    choose_mixture,
    combined,
    long_against_recent,
)
from training.lm.backbone import Backbone, open_backbone
from training.lm.windows import Windows
from training.run.device import pick_device
from training.run.program import main_after_backbone
from training.run.recipes import Recipe
from training.run.stage import atomic_file, begin, digest, finish, is_done, read_certificate

LIKENESS_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
_MAX_NEIGHBORS = 200
_VERSION = 3  # of the table; 2: one neighbour per title; 3: also among alike titles


def stage_key(fingerprint: str, upstream: dict[str, Any], recipe: Recipe, seed: int) -> str:
    """Changes with everything that changes the mixture. `upstream` is the certificate of the backbone."""
    choices = [recipe.mixture_targets, recipe.max_memory, LIKENESS_WEIGHTS, SHARES, HALF_LIVES, LONG_HALF_LIVES]
    sizes = [_MAX_NEIGHBORS, NUM_ALIKE, LONGEST_RUN, FEWEST_TITLES, MOST_TITLES]
    return digest([_VERSION, fingerprint, upstream, *choices, *sizes, seed])


def run(
    split: Split, out: Path, *, backbone_dir: Path, recipe: Recipe, inputs: str, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Returns the certificate. Does nothing when `out` holds the result of the same inputs."""
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    backbone = open_backbone(backbone_dir, pick_device(device))
    if backbone.vocabulary != "items" or not recipe.mixture_targets:
        return finish(out, inputs, {"neighbor_share": 0.0})
    windows = Windows(split, backbone.prompt, recipe.max_memory)
    knn = item_knn.load_or_fit(split, seed=seed, directory=out / "item_knn")
    near, alike = keep_largest(knn.near, _MAX_NEIGHBORS), alike_items(split)
    tokens = np.array([backbone.prompt.title_tokens(title)[0] for title in split.titles])
    tables = {
        weight: as_neighbors(combined(near, alike, weight), tokens, split.popularity) for weight in LIKENESS_WEIGHTS
    }
    targets = sample_targets(split.valid, recipe.mixture_targets, seed)
    forecast = forecast_of(backbone, windows)
    chosen = choose_mixture(forecast, tables, split, tokens, targets, mask_seen=not split.has_repeats)
    lengths = recipe.recent_length, recipe.recent_length + recipe.max_memory
    nearness = combined(near, alike, chosen.likeness_weight)
    by_length = long_against_recent(nearness, split, targets, lengths, keep_seen=split.has_repeats)
    with atomic_file(out / NEIGHBORS_FILE) as draft:
        tables[chosen.likeness_weight].save(draft)
    return finish(out, inputs, {**_facts(chosen), **by_length})


def forecast_of(backbone: Backbone, windows: Windows) -> Forecast:
    """The language model's probabilities of the next item, without memory."""

    @torch.inference_mode()
    def forecast(targets: Sequence[Target]) -> tuple[list[list[int]], NDArray[np.float32]]:
        prompts = [windows.prompt_ending_at(target.user, target.position - 1) for target in targets]
        padded = pad(prompts, device=backbone.lm.device)
        logits = backbone.lm.top(backbone.lm.bottom(*padded), padded.mask, num_logits=1)[:, -1]
        return prompts, logits.float().softmax(dim=-1).numpy(force=True)

    return forecast


def _facts(chosen: ChosenMixture) -> dict[str, float]:
    return {
        "neighbor_share": chosen.share,
        "neighbor_half_life": chosen.half_life,
        "likeness_weight": chosen.likeness_weight,
        "valid_ndcg@10": round(chosen.valid_ndcg, 4),
        "valid_ndcg@10_alone": round(chosen.valid_ndcg_alone, 4),
    }


def main(argv: Sequence[str] | None = None) -> int:
    return main_after_backbone(__doc__ or "", run, stage_key, argv)


if __name__ == "__main__":
    sys.exit(main())
