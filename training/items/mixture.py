"""How item neighbours are mixed into the language model's forecast: the neighbour table, λ and its half-life.

In: tables of near items, a forecast of the language model. Out: a `ChosenMixture`, and the `Mixture` that serving uses
(`model_store.neighbors`). How near items are is

    nearness = co-occurrence (`item_knn.py`) + β · likeness of titles (`likeness.py`)

with each part cut to its largest entries per row, and likeness scaled so that for β = 1 the median row sums are equal.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_store.neighbors import ItemNeighbors, Mixture
from training.data.splits import Split, Target
from training.items.item_knn import knn_scores
from training.items.likeness import likeness
from training.items.scoring import ndcg_at_10, true_items
from training.run.metrics import ndcg, paired_bootstrap
from training.run.stage import progress, read_certificate

NEIGHBORS_FILE = "neighbors.safetensors"
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
HALF_LIVES = (0.5, 1.0, 2.0, 4.0)
LONG_HALF_LIVES = (1.0, 3.0, 10.0, 30.0, 100.0)
_BATCH = 64
_LONG_BATCH = 256  # targets whose scores of all items are in memory at a time

# The prompts of some targets, and (targets, V) probabilities of the next token that the language model gives alone.
Forecast = Callable[[Sequence[Target]], tuple[Sequence[Sequence[int]], NDArray[np.float32]]]


def combined(near: sparse.csr_matrix, alike: sparse.csr_matrix, weight: float) -> sparse.csr_matrix:
    """(N, N) nearness with β = `weight`, see the module's formula."""
    near_sums, alike_sums = (np.asarray(table.sum(axis=1)).ravel() for table in (near, alike))
    if not weight or not alike_sums.any():
        return near
    scale = np.median(near_sums[near_sums > 0]) / np.median(alike_sums[alike_sums > 0]) if near_sums.any() else 1.0
    return (near + alike * np.float32(weight * scale)).tocsr()


def alike_items(split: Split) -> sparse.csr_matrix:
    """(N, N) likeness of titles. Only the most popular item of a title is a neighbour, as in `as_neighbors`."""
    shown = _most_popular(split.title_class, split.popularity)
    number = np.unique(split.title_class, return_inverse=True)[1]
    table = likeness([split.titles[item] for item in shown])[number].tocoo()
    return sparse.csr_matrix((table.data, (table.row, shown[table.col])), (len(number), len(number)))


def as_neighbors(
    near: sparse.csr_matrix, tokens: Sequence[int] | NDArray[np.int64], popularity: NDArray[np.int64]
) -> ItemNeighbors:
    """Turns a matrix over items into one over their tokens (N,); items of equal title share a token.

    The rows of items with one token are added. In the columns only the most popular item of a token stays, because it
    is the one that is shown: if all of them counted, a common title would rank before better ones.
    """
    renamed = np.asarray(tokens)
    num_tokens = int(renamed.max()) + 1
    is_shown = np.zeros(len(renamed), dtype=np.bool_)
    is_shown[_most_popular(renamed, popularity)] = True
    table = near.tocoo()
    kept = is_shown[table.col]
    rows, columns = renamed[table.row[kept]], renamed[table.col[kept]]
    matrix = sparse.csr_matrix((table.data[kept], (rows, columns)), (num_tokens, num_tokens), dtype=np.float32)
    matrix.sum_duplicates()
    return ItemNeighbors(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data)


def _most_popular(titles: NDArray[np.integer], popularity: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T,) the most popular item of each title, by rising title number; `titles` (N,) numbers the items' titles."""
    order = np.lexsort((-popularity, titles))
    return order[np.diff(titles[order], prepend=-1) > 0]


class ChosenMixture(NamedTuple):
    """β, half-life and λ, and the NDCG@10 on the targets by which they were chosen."""

    likeness_weight: float
    half_life: float
    share: float
    valid_ndcg: float
    valid_ndcg_alone: float  # of the language model alone


def choose_mixture(
    forecast: Forecast,
    tables: Mapping[float, ItemNeighbors],
    split: Split,
    tokens: NDArray[np.int64],
    targets: Sequence[Target],
    *,
    mask_seen: bool,
) -> ChosenMixture:
    """The β (the keys of `tables`), half-life and λ with the best NDCG@10; of equals the first.

    `tokens` (N,) are the items' tokens.
    """
    gained = dict.fromkeys(product(tables, HALF_LIVES, SHARES), 0.0)
    for start in progress(range(0, len(targets), _BATCH), desc="mixture", unit="batch"):
        batch = targets[start : start + _BATCH]
        prompts, alone = forecast(batch)
        wanted = tokens[true_items(split, batch)]
        hidden = _seen(split, batch, tokens) if mask_seen else [np.empty(0, dtype=np.int64)] * len(batch)
        for weight, half_life in product(tables, HALF_LIVES):
            votes = np.stack([tables[weight].votes(prompt, alone.shape[1], half_life) for prompt in prompts])
            for share in SHARES:
                mixed = alone + np.float32(share / (1 - share)) * votes  # ranks like `Mixture.mixed`, but costs less
                gained[weight, half_life, share] += float(ndcg(_ranks(mixed, wanted, hidden)).sum())
    best = max(gained, key=lambda candidate: gained[candidate])
    without = gained[best[0], best[1], 0.0]
    return ChosenMixture(*best, gained[best] / len(targets), without / len(targets))


def _seen(split: Split, targets: Sequence[Target], tokens: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [tokens[split.histories[target.user].items[: target.position]] for target in targets]


def _ranks(
    scores: NDArray[np.float32], wanted: NDArray[np.int64], hidden: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """(targets,) how many tokens score higher than the wanted one; tokens in `hidden` are not counted."""
    own = scores[np.arange(len(wanted)), wanted]
    before: NDArray[np.int64] = (scores > own[:, None]).sum(axis=1)
    before -= np.array(
        [(row[np.unique(tokens)] > score).sum() for row, tokens, score in zip(scores, hidden, own, strict=True)]
    )
    return before


def long_against_recent(
    near: sparse.csr_matrix, split: Split, targets: Sequence[Target], lengths: tuple[int, int], *, keep_seen: bool
) -> dict[str, Any]:
    """NDCG@10 of the neighbours alone when they read the shorter and the longer of `lengths`, and the difference.

    Each length gets the half-life that suits it best. The difference has a 95 % interval by user.
    """

    def alone(length: int, half_life: float) -> NDArray[np.float64]:
        parts = [targets[start : start + _LONG_BATCH] for start in range(0, len(targets), _LONG_BATCH)]
        score = partial(knn_scores, near, split, half_life=half_life, keep_seen=keep_seen, length=length)
        return np.concatenate([ndcg_at_10(score(part), true_items(split, part)) for part in parts])

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
    """The result of `training.mixture`; None where λ is 0. Raises StageError when that stage has not finished."""
    chosen = read_certificate(directory)
    if not chosen["neighbor_share"]:
        return None
    return Mixture(
        ItemNeighbors.load(directory / NEIGHBORS_FILE), chosen["neighbor_share"], chosen["neighbor_half_life"]
    )
