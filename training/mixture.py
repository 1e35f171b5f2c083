"""How far to trust what was read next to what: the share λ of item neighbours (see model_store/neighbors.py).

In: a data set, a backbone. Out: `neighbors.safetensors` and a certificate with λ and the half-life, both chosen by
NDCG@10 on sampled valid targets. The language model reads no memory here: the row without memory, which all others are
compared with, gets the λ that suits it. Only the item vocabulary has neighbours; with titles the stage says so and
is done.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from model_store.neighbors import Neighbors, mix
from model_store.split_lm import pad_left
from training.backbone import Backbone, open_backbone
from training.baselines.item_knn import fitted
from training.baselines.scoring import truths
from training.data.splits import Split, Target, sample_targets
from training.inputs import load_inputs
from training.recipes import Recipe, get_recipe
from training.stage import (
    begin,
    digest,
    finish,
    is_done,
    pick_device,
    progress,
    read_certificate,
    run_stage,
    stage_parser,
    whole_file,
)
from training.windows import Windows

NEIGHBORS_FILE = "neighbors.safetensors"
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
HALF_LIVES = (0.5, 1.0, 2.0, 4.0)
_MAX_NEIGHBOURS = 200
_BATCH = 64


def as_neighbors(near: sparse.csr_matrix, tokens: Sequence[int]) -> Neighbors:
    """From a matrix over items to one over their tokens (N,); items of one title add up. The nearest of each row."""
    table = _nearest(near).tocoo()
    renamed, num_tokens = np.asarray(tokens), max(tokens) + 1
    matrix = sparse.csr_matrix(
        (table.data, (renamed[table.row], renamed[table.col])), shape=(num_tokens, num_tokens), dtype=np.float32
    )
    matrix.sum_duplicates()
    return Neighbors(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data)


def _nearest(near: sparse.csr_matrix) -> sparse.csr_matrix:
    rows = np.repeat(np.arange(near.shape[0]), np.diff(near.indptr))
    order = np.lexsort((-near.data, rows))
    kept = order[np.arange(len(rows)) - near.indptr[rows] < _MAX_NEIGHBOURS]
    return sparse.csr_matrix((near.data[kept], (rows[kept], near.indices[kept])), near.shape)


@torch.inference_mode()
def choose_mixture(
    backbone: Backbone, neighbors: Neighbors, windows: Windows, targets: Sequence[Target], *, mask_seen: bool
) -> dict[str, float]:
    """The share and half-life with the best NDCG@10; of equals the smaller share."""
    split = windows.split
    tokens = np.array([backbone.prompt.title_tokens(title)[0] for title in split.titles])
    gained = {(share, half_life): 0.0 for share in SHARES for half_life in HALF_LIVES}
    for start in progress(range(0, len(targets), _BATCH), desc="mixture", unit="batch"):
        batch = targets[start : start + _BATCH]
        prompts = [windows.prompt_ending_at(target.user, target.position - 1) for target in batch]
        padded = pad_left(prompts, backbone.lm.device)
        states = backbone.lm.bottom(*padded)
        log_probs = backbone.lm.top(states, padded.mask, num_logits=1)[:, -1].float().log_softmax(dim=-1).cpu()
        wanted = tokens[truths(split, batch)]
        hidden = _seen(split, batch, tokens) if mask_seen else [np.empty(0, dtype=np.int64)] * len(batch)
        for half_life in HALF_LIVES:
            votes = [neighbors.votes(prompt, log_probs.shape[1], half_life) for prompt in prompts]
            for share in SHARES:
                mixed = mix(log_probs, np.stack(votes), share).numpy()
                gained[share, half_life] += _ndcg(mixed, wanted, hidden)
    share, half_life = max(gained, key=lambda pair: (gained[pair], -pair[0]))
    return {
        "neighbor_share": share,
        "neighbor_half_life": half_life,
        "valid_ndcg@10": round(gained[share, half_life] / len(targets), 4),
        "valid_ndcg@10_alone": round(gained[0.0, half_life] / len(targets), 4),
    }


def _seen(split: Split, targets: Sequence[Target], tokens: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [tokens[split.histories[target.user].items[: target.position]] for target in targets]


def _ndcg(scores: NDArray[np.float32], wanted: NDArray[np.int64], hidden: Sequence[NDArray[np.int64]]) -> float:
    """Sum over the rows."""
    own = scores[np.arange(len(wanted)), wanted]
    before = (scores > own[:, None]).sum(axis=1)
    before -= np.array(
        [(row[np.unique(gone)] > mine).sum() for row, gone, mine in zip(scores, hidden, own, strict=True)]
    )
    return float(np.where(before < 10, 1 / np.log2(before + 2.0), 0.0).sum())


def stage_key(fingerprint: str, upstream: dict[str, Any], recipe: Recipe, seed: int) -> str:
    """`upstream` is the certificate of the backbone."""
    return digest([fingerprint, upstream, recipe.mixture_targets, SHARES, HALF_LIVES, _MAX_NEIGHBOURS, seed])


def run(
    split: Split, out: Path, *, backbone_dir: Path, recipe: Recipe, inputs: str, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Returns the certificate; does nothing when the stage is done already."""
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    backbone = open_backbone(backbone_dir, pick_device(device))
    if backbone.vocabulary != "items" or not recipe.mixture_targets:
        return finish(out, inputs, {"neighbor_share": 0.0})
    windows = Windows(split, backbone.prompt, recipe.max_memory)
    near = fitted(split, seed=seed, directory=out / "item_knn").near
    neighbors = as_neighbors(near, [backbone.prompt.title_tokens(title)[0] for title in split.titles])
    targets = sample_targets(split.valid, recipe.mixture_targets, seed)
    chosen = choose_mixture(backbone, neighbors, windows, targets, mask_seen=not split.has_repeats)
    with whole_file(out / NEIGHBORS_FILE) as draft:
        neighbors.save(draft)
    return finish(out, inputs, chosen)


def main(argv: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__ or "", needs=["backbone"])

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        _, split, fingerprint = load_inputs(arguments.data, arguments.cut)
        recipe = get_recipe(arguments.recipe)
        upstream = read_certificate(arguments.backbone)
        return run(
            split,
            arguments.out,
            backbone_dir=arguments.backbone,
            recipe=recipe,
            inputs=stage_key(fingerprint, upstream, recipe, arguments.seed),
            seed=arguments.seed,
            device=arguments.device,
        )

    return run_stage(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
