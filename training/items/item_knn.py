"""Item-kNN: two items are similar if users had them near each other; items similar to the recent history score high.

In: a split. Out: `item_knn.safetensors` with the similarities, and a scorer. From item i of the history to item j

    similarity(i, j) = c / (n_i^(1-b) · n_j^b + h)

c counts how often the train period has both at most `span` events of one user apart, n the events of one item. With
`span` None (anywhere in the history), b = 1/2 and h = 0 this is the cosine of the sets of users. `balance` b below 1/2
favours popular answers (Aiolli, RecSys 2013); `shrinkage` h reduces the similarity of rare pairs (Bell and Koren 2007).
Each item keeps its `num_neighbours` nearest. An event of the history has weight 2^(-age / half_life), age in events.
Items that the user had rank behind all others unless `keep_seen`. The settings are chosen by NDCG@10 on the valid
period, one after the other.

Events of one user and one time are a *basket*: their order means nothing (it is the order of a hash). So distances and
ages count events of other baskets only, and the items of the basket that is being filled, which has the time of the
target, are never recommended.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse

from training.data.splits import Split, Target, sample_targets
from training.items.co_occurrence import co_occurrences, keep_largest
from training.items.scoring import MAX_HISTORY, Scorer, ndcg_at_10, past_items, seen_last, true_items
from training.run.inputs import fingerprint
from training.run.stage import atomic_file, begin, digest, finish, is_done, progress, read_certificate

VALID_TARGETS = 3000
_VERSION = 2  # of the counts and ages; 2: by baskets
_FILE = "item_knn.safetensors"
_SWEEPS = 2  # over the settings; the second corrects what the first chose beside poor values of later settings
_EVENTS_AT_ONCE = 200_000  # whose pairs are in memory at a time


@dataclass(frozen=True)
class KnnSettings:
    span: int | None = 20
    balance: float = 0.5
    shrinkage: float = 0.0
    num_neighbours: int = 300
    half_life: float = 3.0
    keep_seen: bool = False


CHOICES: dict[str, tuple[Any, ...]] = {
    "span": (3, 10, 20, None),
    "half_life": (1.0, 2.0, 4.0, 10.0, 50.0),
    "balance": (0.0, 0.15, 0.3, 0.5, 0.7),
    "shrinkage": (0.0, 5.0, 20.0, 80.0),
    "num_neighbours": (50, 300, 2000),
    "keep_seen": (True, False),
}


# --- baskets ------------------------------------------------------------------------------------------------------


def basket_ages(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """(length,) for each event the number of events in strictly later baskets; `times` (length,) never fall."""
    ages: NDArray[np.int64] = len(times) - np.searchsorted(times, times, side="right")
    return ages


def basket_co_occurrences(split: Split, span: int | None) -> sparse.csr_matrix:
    """(N, N) float32, symmetric, empty diagonal: counts of pairs of one user's train events at most `span` apart.

    Two events of one basket are 0 apart. Otherwise the distance is 1 plus the number of events in the baskets between.
    With `span` None: the number of users who had both.
    """
    if span is None:
        return co_occurrences(split, None)
    items = np.concatenate([history.items[: history.train_end] for history in split.histories])
    after_last = _after_last_partner(split, span)
    shape = (len(split.item_ids), len(split.item_ids))
    counts = sparse.csr_matrix(shape, dtype=np.float32)
    for start in range(0, len(items), _EVENTS_AT_ONCE):
        first, second = _pairs(start, after_last[start : start + _EVENTS_AT_ONCE])
        ones = np.ones(len(first), np.float32)
        counts += sparse.csr_matrix((ones, (items[first], items[second])), shape)
    counts = (counts + counts.T).tocsr()
    counts.setdiag(0)
    counts.eliminate_zeros()
    return counts


def _after_last_partner(split: Split, span: int) -> NDArray[np.int64]:
    """(events,) for each train event, all users in a row: the place after the last event at most `span` after it."""
    lengths = np.array([history.train_end for history in split.histories])
    user = np.repeat(np.arange(len(lengths)), lengths)
    times = np.concatenate([history.timestamps[: history.train_end] for history in split.histories])
    is_last = (np.diff(user, append=-1) != 0) | (np.diff(times, append=0) != 0)  # of its basket
    basket_ends = np.flatnonzero(is_last) + 1
    after_own = basket_ends[np.cumsum(is_last) - is_last]
    after_user = np.cumsum(lengths)[user]
    # The basket that contains place `reached` is the last one that begins within the span.
    reached = after_own + span - 1
    last_place = np.minimum(reached, len(user) - 1)
    after_last: NDArray[np.int64] = np.where(reached < after_user, after_own[last_place], after_user)
    return after_last


def _pairs(start: int, after_last: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of both events of each pair. The events at `start`, `start` + 1, … pair with all later ones before
    `after_last`."""
    own = start + np.arange(len(after_last))
    counts = after_last - own - 1
    first = np.repeat(own, counts)
    offset = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    return first, first + 1 + offset


def _open_basket(split: Split, target: Target) -> NDArray[np.int32]:
    """The items that the user already had at the time of the target."""
    history = split.histories[target.user]
    start = np.searchsorted(history.timestamps[: target.position], history.timestamps[target.position], side="left")
    items: NDArray[np.int32] = history.items[start : target.position]
    return items


# --- similarities and scores --------------------------------------------------------------------------------------


def similarities(counts: sparse.csr_matrix, popularity: NDArray[np.int64], settings: KnnSettings) -> sparse.csr_matrix:
    """(N, N) float32: row i holds the nearest neighbours of item i and their similarities."""
    frequent = np.maximum(popularity, 1).astype(np.float32)
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    norms = frequent[rows] ** (1 - settings.balance) * frequent[counts.indices] ** settings.balance
    near = counts.copy()
    near.data /= norms + np.float32(settings.shrinkage)
    return keep_largest(near, settings.num_neighbours)


def knn_scores(
    near: sparse.csr_matrix,
    split: Split,
    targets: Sequence[Target],
    half_life: float,
    *,
    keep_seen: bool,
    length: int = MAX_HISTORY,
) -> NDArray[np.float32]:
    """(targets, N) scores ≥ 0, or −∞ for seen items that are not kept and for the items of the target's basket.

    Reads the last `length` events of a history.
    """
    histories = [past_items(split, target, length) for target in targets]
    ages = [basket_ages(_past_times(split, target, length)) for target in targets]
    rows = np.repeat(np.arange(len(targets)), [len(history) for history in histories])
    items = np.concatenate(histories)
    weights = np.exp2(-np.concatenate(ages) / half_life).astype(np.float32)
    history = sparse.csr_matrix((weights, (rows, items)), (len(targets), near.shape[0]))
    scores: NDArray[np.float32] = (history @ near).toarray()
    for row, target in enumerate(targets):
        scores[row, _open_basket(split, target)] = -np.inf
    return scores if keep_seen else seen_last(scores, split, targets)


def _past_times(split: Split, target: Target, length: int) -> NDArray[np.int64]:
    times: NDArray[np.int64] = split.histories[target.user].timestamps[
        max(0, target.position - length) : target.position
    ]
    return times


# --- the choice of settings ---------------------------------------------------------------------------------------


def choose_in_turn(
    start: Any, choices: Mapping[str, Sequence[Any]], quality: Callable[[Any], float], label: str
) -> Any:
    """A copy of the data class `start` with the best value of each field in `choices`, chosen one after the other with
    the others fixed."""
    best = start
    bar = progress(total=_SWEEPS * len(choices), desc=label, unit="setting")
    for _ in range(_SWEEPS):
        for name, values in choices.items():
            best = max((replace(best, **{name: value}) for value in values), key=quality)
            bar.update()
            bar.set_postfix(ndcg=f"{quality(best):.4f}")
    bar.close()
    return best


def at_grid_end(chosen: Mapping[str, Any], choices: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The settings whose chosen value is the first or last of those tried, so that a better one may lie beyond.

    A grid of true and false has no order, and one with a single value leaves no choice.
    """
    ordered = {name: each for name, each in choices.items() if len(each) > 1 and not isinstance(each[0], bool)}
    return {name: chosen[name] for name, values in ordered.items() if chosen[name] in (values[0], values[-1])}


class _Search:
    """Tries settings on valid targets; keeps the counts and similarities of the last trial."""

    def __init__(self, split: Split, targets: Sequence[Target]) -> None:
        self._split, self._targets, self._truths = split, targets, true_items(split, targets)
        self._counts: tuple[int | None, sparse.csr_matrix] = (0, None)  # 0 is not a span: nothing is cached yet
        self._near: tuple[KnnSettings | None, sparse.csr_matrix] = (None, None)
        self._tried: dict[KnnSettings, float] = {}

    def near(self, settings: KnnSettings) -> sparse.csr_matrix:
        key = replace(settings, half_life=0.0, keep_seen=True)  # neither changes the similarities
        if self._counts[0] != settings.span:
            self._counts = (settings.span, basket_co_occurrences(self._split, settings.span))
        if self._near[0] != key:
            self._near = (key, similarities(self._counts[1], self._split.popularity, settings))
        return self._near[1]

    def valid_ndcg(self, settings: KnnSettings) -> float:
        if settings not in self._tried:
            found = knn_scores(
                self.near(settings), self._split, self._targets, settings.half_life, keep_seen=settings.keep_seen
            )
            self._tried[settings] = float(ndcg_at_10(found, self._truths).mean())
        return self._tried[settings]

    def run(self) -> KnnSettings:
        best: KnnSettings = choose_in_turn(KnnSettings(), CHOICES, self.valid_ndcg, "item-kNN")
        return best


class ItemKnn(NamedTuple):
    near: sparse.csr_matrix  # (N, N), see `similarities`
    settings: KnnSettings


def load_or_fit(split: Split, *, seed: int, directory: Path) -> ItemKnn:
    """Loads the model from `directory` if it was made of the same inputs; otherwise chooses settings and saves it.

    `seed` draws the valid targets.
    """
    inputs = digest([_VERSION, fingerprint(split), CHOICES, VALID_TARGETS, seed])
    if not is_done(directory, inputs):
        begin(directory)
        search = _Search(split, sample_targets(split.valid, VALID_TARGETS, seed))
        best = search.run()
        save_matrix(search.near(best), directory / _FILE)
        facts = {"settings": asdict(best), "at_grid_end": at_grid_end(asdict(best), CHOICES)}
        finish(directory, inputs, {**facts, "valid_ndcg@10": round(search.valid_ndcg(best), 4)})
    return ItemKnn(load_matrix(directory / _FILE), KnnSettings(**read_certificate(directory)["settings"]))


def fit_item_knn(split: Split, *, seed: int, directory: Path) -> Scorer:
    near, settings = load_or_fit(split, seed=seed, directory=directory)
    return lambda targets: knn_scores(near, split, targets, settings.half_life, keep_seen=settings.keep_seen)


def save_matrix(matrix: sparse.csr_matrix, file: Path) -> None:
    arrays = {"data": matrix.data, "indices": matrix.indices.astype(np.int32), "indptr": matrix.indptr.astype(np.int64)}
    with atomic_file(file) as draft:
        save_file(arrays, draft)


def load_matrix(file: Path) -> sparse.csr_matrix:
    """The square matrix that `save_matrix` wrote."""
    arrays = load_file(file)
    num_items = len(arrays["indptr"]) - 1
    return sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), (num_items, num_items))
