"""How far to trust what was read next to what, and what is called alike (see model_store/neighbors.py).

In: a data set, a backbone. Out: `neighbors.safetensors` and a certificate. How near items are is

    nearness = co-occurrence (baselines/item_knn.py) + β · likeness of titles (likeness.py)

each cut to the nearest of a row, and likeness scaled so that with β = 1 the median sums of their rows are equal. β, the
share λ of the neighbours and their half-life are those with the best NDCG@10 on sampled valid targets. The language
model reads no memory here: the row without memory, which all others are compared with, gets the λ that suits it. Only
the item vocabulary has neighbours; with titles the stage says so and is done.

The certificate also says whether anything older than the window can help here at all, as far as item neighbours know:
`valid_ndcg@10_recent` is what they reach alone when they read the last K events, `valid_ndcg@10_long` when they read
K + M, each at the half-life that suits it, and `long_minus_recent` the difference with its 95 % interval by user. Where
it is not above zero, expect little of memory.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from model_store.lm.split_lm import pad_left
from model_store.neighbors import Mixture, Neighbors
from training.data.splits import Split, Target, sample_targets
from training.items.likeness import FEWEST_TITLES, LONGEST_RUN, MOST_TITLES, NUM_ALIKE, likeness
from training.lm.backbone import Backbone, open_backbone
from training.lm.windows import Windows
from training.rows import item_knn
from training.rows.scoring import ndcg_at_10, truths
from training.run.after_backbone import main_after_backbone
from training.run.metrics import ndcg, paired_bootstrap
from training.run.recipes import Recipe
from training.run.stage import (
    begin,
    digest,
    finish,
    is_done,
    pick_device,
    progress,
    read_certificate,
    whole_file,
)

NEIGHBORS_FILE = "neighbors.safetensors"
LIKENESS_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
HALF_LIVES = (0.5, 1.0, 2.0, 4.0)
LONG_HALF_LIVES = (1.0, 3.0, 10.0, 30.0, 100.0)
_MAX_NEIGHBOURS = 200
_TABLE = 3  # since 2, of items of one title only one is a neighbour; since 3, of alike ones, too
_BATCH = 64
_LONG_BATCH = 256  # targets whose scores of all items are in memory at a time


def as_neighbors(near: sparse.csr_matrix, tokens: Sequence[int], popularity: NDArray[np.int64]) -> Neighbors:
    """From a matrix over items to one over their tokens (N,).

    Items of one title add up in what is near them. Near to others is only the most popular one, which would be shown:
    with the votes for all of them a common title would rank before its betters.
    """
    renamed, num_tokens = np.asarray(tokens), max(tokens) + 1
    is_shown = np.zeros(len(renamed), dtype=np.bool_)
    is_shown[_most_popular(renamed, popularity)] = True
    table = near.tocoo()
    kept = is_shown[table.col]
    rows, columns = renamed[table.row[kept]], renamed[table.col[kept]]
    matrix = sparse.csr_matrix((table.data[kept], (rows, columns)), (num_tokens, num_tokens), dtype=np.float32)
    matrix.sum_duplicates()
    return Neighbors(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data)


def _most_popular(titles: NDArray[np.integer], popularity: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T,) the item of each title, by rising number of the title; `titles` (N,) of the items."""
    order = np.lexsort((-popularity, titles))
    return order[np.diff(titles[order], prepend=-1) > 0]


def alike_items(split: Split) -> sparse.csr_matrix:
    """(N, N) likeness. Only the most popular item of a title is a neighbour, as in `as_neighbors`."""
    shown = _most_popular(split.title_class, split.popularity)
    number = np.unique(split.title_class, return_inverse=True)[1]
    table = likeness([split.titles[item] for item in shown])[number].tocoo()
    return sparse.csr_matrix((table.data, (table.row, shown[table.col])), (len(number), len(number)))


def _nearest(near: sparse.csr_matrix) -> sparse.csr_matrix:
    rows = np.repeat(np.arange(near.shape[0]), np.diff(near.indptr))
    order = np.lexsort((-near.data, rows))
    kept = order[np.arange(len(rows)) - near.indptr[rows] < _MAX_NEIGHBOURS]
    return sparse.csr_matrix((near.data[kept], (rows[kept], near.indices[kept])), near.shape)


def combined(near: sparse.csr_matrix, alike: sparse.csr_matrix, weight: float) -> sparse.csr_matrix:
    """(N, N) nearness, see above."""
    said, spelled = (np.asarray(table.sum(axis=1)).ravel() for table in (near, alike))
    if not weight or not spelled.any():
        return near
    scale = np.median(said[said > 0]) / np.median(spelled[spelled > 0]) if said.any() else 1.0
    return (near + alike * np.float32(weight * scale)).tocsr()


class Choice(NamedTuple):
    """`valid_ndcg` is NDCG@10 on the targets of the choice."""

    likeness_weight: float
    half_life: float
    share: float
    valid_ndcg: float
    valid_ndcg_alone: float  # of the language model


@torch.inference_mode()
def choose_mixture(
    backbone: Backbone,
    tables: Mapping[float, Neighbors],
    windows: Windows,
    targets: Sequence[Target],
    *,
    mask_seen: bool,
) -> Choice:
    """Of `tables` by the weight of likeness, and of half-lives and shares, what ranks best; of equals the first."""
    split = windows.split
    tokens = np.array([backbone.prompt.title_tokens(title)[0] for title in split.titles])
    gained = dict.fromkeys(product(tables, HALF_LIVES, SHARES), 0.0)
    for start in progress(range(0, len(targets), _BATCH), desc="mixture", unit="batch"):
        batch = targets[start : start + _BATCH]
        prompts = [windows.prompt_ending_at(target.user, target.position - 1) for target in batch]
        padded = pad_left(prompts, backbone.lm.device)
        states = backbone.lm.bottom(*padded)
        forecast = backbone.lm.top(states, padded.mask, num_logits=1)[:, -1].float().softmax(dim=-1).numpy(force=True)
        wanted = tokens[truths(split, batch)]
        hidden = _seen(split, batch, tokens) if mask_seen else [np.empty(0, dtype=np.int64)] * len(batch)
        for weight, half_life in product(tables, HALF_LIVES):
            votes = np.stack([tables[weight].votes(prompt, forecast.shape[1], half_life) for prompt in prompts])
            for share in SHARES:
                mixed = forecast + np.float32(share / (1 - share)) * votes  # ranks as `mix` does, and costs less
                gained[weight, half_life, share] += float(ndcg(_ranks(mixed, wanted, hidden)).sum())
    best = max(gained, key=lambda candidate: gained[candidate])
    alone = gained[best[0], best[1], 0.0]
    return Choice(*best, gained[best] / len(targets), alone / len(targets))


def _seen(split: Split, targets: Sequence[Target], tokens: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [tokens[split.histories[target.user].items[: target.position]] for target in targets]


def _ranks(
    scores: NDArray[np.float32], wanted: NDArray[np.int64], hidden: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    own = scores[np.arange(len(wanted)), wanted]
    before: NDArray[np.int64] = (scores > own[:, None]).sum(axis=1)
    before -= np.array(
        [(row[np.unique(gone)] > mine).sum() for row, gone, mine in zip(scores, hidden, own, strict=True)]
    )
    return before


def reach(
    near: sparse.csr_matrix, split: Split, targets: Sequence[Target], lengths: tuple[int, int], *, keep_seen: bool
) -> dict[str, Any]:
    """What the neighbours alone reach when they read the shorter and the longer of `lengths`, see above."""

    def alone(length: int, half_life: float) -> NDArray[np.float64]:
        parts = [targets[start : start + _LONG_BATCH] for start in range(0, len(targets), _LONG_BATCH)]
        score = partial(item_knn.score, near, split, half_life=half_life, keep_seen=keep_seen, length=length)
        return np.concatenate([ndcg_at_10(score(part), truths(split, part)) for part in parts])

    recent, long = (
        max((alone(length, half_life) for half_life in LONG_HALF_LIVES), key=np.mean)
        for length in progress(lengths, desc="recent against long", unit="length")
    )
    drawn = paired_bootstrap({"recent": recent, "long": long}, np.array([target.user for target in targets]))
    return {
        "valid_ndcg@10_recent": round(drawn.means["recent"], 4),
        "valid_ndcg@10_long": round(drawn.means["long"], 4),
        "long_minus_recent": [round(value, 5) for value in drawn.difference("long", "recent")],
    }


def read_mixture(directory: Path) -> Mixture | None:
    """Of a stage that is done; None where neighbours have no say."""
    chosen = read_certificate(directory)
    if not chosen["neighbor_share"]:
        return None
    return Mixture(Neighbors.load(directory / NEIGHBORS_FILE), chosen["neighbor_share"], chosen["neighbor_half_life"])


def stage_key(fingerprint: str, upstream: dict[str, Any], recipe: Recipe, seed: int) -> str:
    """`upstream` is the certificate of the backbone."""
    asked = [recipe.mixture_targets, recipe.max_memory, LIKENESS_WEIGHTS, SHARES, HALF_LIVES, LONG_HALF_LIVES]
    sizes = [_MAX_NEIGHBOURS, NUM_ALIKE, LONGEST_RUN, FEWEST_TITLES, MOST_TITLES]
    return digest([_TABLE, fingerprint, upstream, *asked, *sizes, seed])


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
    near, alike = _nearest(item_knn.fitted(split, seed=seed, directory=out / "item_knn").near), alike_items(split)
    tokens = [backbone.prompt.title_tokens(title)[0] for title in split.titles]
    tables = {
        weight: as_neighbors(combined(near, alike, weight), tokens, split.popularity) for weight in LIKENESS_WEIGHTS
    }
    targets = sample_targets(split.valid, recipe.mixture_targets, seed)
    chosen = choose_mixture(backbone, tables, windows, targets, mask_seen=not split.has_repeats)
    lengths = recipe.recent_length, recipe.recent_length + recipe.max_memory
    nearness = combined(near, alike, chosen.likeness_weight)
    reached = reach(nearness, split, targets, lengths, keep_seen=split.has_repeats)
    with whole_file(out / NEIGHBORS_FILE) as draft:
        tables[chosen.likeness_weight].save(draft)
    return finish(out, inputs, {**_facts(chosen), **reached})


def _facts(chosen: Choice) -> dict[str, float]:
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
