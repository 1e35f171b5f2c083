"""Learns the weights of the ranking: a softmax over the candidates of each target, with the answers as labels.

In: features of targets. Out: weights (X, F), convex to learn, by L-BFGS. Features that a row may not use have weight
zero. How far weights with memory are used (`Ranker.memory_scale`) is chosen on other users.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.words.evidence import CONTEXT, FEATURES
from model_store.words.index import Values
from model_store.words.ranker import Ranker
from training.words.examples import Example
from training.words.metrics import CUT, ndcg_of_list

RIDGE = 3e-3
MEMORY_SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
_STEPS = 40

FeaturesOf = Callable[[Example], Values]


class _Stacked(NamedTuple):
    """The candidates of all targets in a row. `owner` (n,): the number of the target."""

    features: torch.Tensor  # (n, F)
    owner: torch.Tensor
    contexts: torch.Tensor  # (targets, X)
    labels: torch.Tensor  # (n,) sum to one for each target


def fit_weights(examples: Sequence[Example], features_of: FeaturesOf, names: Sequence[str], spread: Values) -> Values:
    """(X, F) weights of the features in `names`, from targets that have an answer among the candidates."""
    used = [FEATURES.index(name) for name in names]
    stacked = _stack([example for example in examples if example.is_answer.any()], features_of, used, spread)
    weights = torch.zeros(len(CONTEXT), len(used), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = _loss(weights, stacked) + RIDGE * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    learned = np.zeros((len(CONTEXT), len(FEATURES)), dtype=np.float32)
    learned[:, used] = weights.detach().numpy()
    return learned


def spread_of(examples: Sequence[Example]) -> Values:
    """(F,) how much each feature differs among candidates, with everything in memory chosen."""
    columns = np.concatenate([_centred(example.evidence.with_chosen(_all(example))) for example in examples], axis=1)
    return np.maximum(columns.std(axis=1), 1e-3).astype(np.float32)


def choose_scale(ranker: Ranker, examples: Sequence[Example], features_of: FeaturesOf) -> Ranker:
    """`ranker` with the memory scale of the best mean NDCG@100; 0 unless that gains more than one standard error."""
    with_memory = [example for example in examples if len(example.pools["profile"])]
    if not with_memory:
        return _scaled(ranker, 0.0)
    found = {scale: ndcgs(_scaled(ranker, scale), with_memory, features_of) for scale in MEMORY_SCALES}
    best = max(MEMORY_SCALES, key=lambda scale: float(found[scale].mean()))
    gain = _by_user(found[best] - found[0.0], [example.target.user for example in with_memory])
    pays = gain.mean() > gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else False
    return _scaled(ranker, best if pays else 0.0)


def ndcgs(ranker: Ranker, examples: Sequence[Example], features_of: FeaturesOf) -> NDArray[np.float64]:
    """(examples,) NDCG@100."""
    return np.array([_ndcg(ranker, example, features_of(example)) for example in examples])


def _ndcg(ranker: Ranker, example: Example, features: Values) -> float:
    scores = ranker.scores(features, example.evidence.context)
    order = np.argsort(-scores, kind="stable")[:CUT]
    return ndcg_of_list(example.evidence.rows[order], example.target.answers, CUT)


def _scaled(ranker: Ranker, scale: float) -> Ranker:
    return Ranker(ranker.alone, ranker.joint, ranker.spread, scale)


def _by_user(values: NDArray[np.float64], users: Sequence[int]) -> NDArray[np.float64]:
    """Sums by user, over the mean number of targets of a user."""
    _, whose = np.unique(users, return_inverse=True)
    sums = np.bincount(whose, weights=values)
    return sums * len(sums) / len(values)


def _stack(examples: Sequence[Example], features_of: FeaturesOf, used: list[int], spread: Values) -> _Stacked:
    lengths = [len(example.evidence.rows) for example in examples]
    features = np.empty((sum(lengths), len(used)), dtype=np.float32)
    labels = np.empty(sum(lengths), dtype=np.float32)
    start = 0
    for example, length in zip(examples, lengths, strict=True):
        values = _centred(features_of(example)[used]) / spread[used, None]
        features[start : start + length] = values.T
        labels[start : start + length] = example.is_answer / example.is_answer.sum()
        start += length
    owner = torch.repeat_interleave(torch.arange(len(examples)), torch.tensor(lengths))
    contexts = torch.tensor(np.stack([example.evidence.context for example in examples]))
    return _Stacked(torch.from_numpy(features), owner, contexts, torch.from_numpy(labels))


def _loss(weights: torch.Tensor, data: _Stacked) -> torch.Tensor:
    """Mean cross-entropy. Scores are below the largest of their target before they are raised to powers of e."""
    each = data.contexts @ weights
    scores = (data.features * each[data.owner]).sum(dim=1)
    num = len(data.contexts)
    peak = torch.full((num,), -torch.inf).scatter_reduce(0, data.owner, scores.detach(), "amax")
    shifted = scores - peak[data.owner]
    total = torch.zeros(num).index_add(0, data.owner, shifted.exp())
    return (total.log() - torch.zeros(num).index_add(0, data.owner, data.labels * shifted)).mean()


def _centred(features: Values) -> Values:
    """Without the mean of each feature over the candidates, which changes no ranking."""
    return features - features.mean(axis=1, keepdims=True)


def _all(example: Example) -> list[int]:
    return list(range(len(example.evidence.pool.near)))
