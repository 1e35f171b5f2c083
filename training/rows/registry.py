"""The rows of the evaluation table: for each target, the ten items a method would show.

No language model: `popularity`, `copy_last`, `item_knn`, `sasrec_bce`, `sasrec`.

As published, the language model alone. No memory: `bigrec`. No memory, but more or other titles in the prompt:
`rella_replace`, `rella_extend` (the bundle as it is), `trsr` and `full_history` (each trained for it, once per
workshop). `automr`: the retriever's choice before a generator that never saw memory.

AutoMR +, whose generator was tuned to read memory, and which listens to item neighbours (model_store/neighbors.py),
with different memories before its top half: none (`no_memory`), the retriever's choice (`automr_plus`), random ones
(`random`, a fresh draw per seed), the most recent ones beyond the window (`recent_beyond`), the single element that
helps the truth most (`oracle`, an upper bound that knows the answer). `automr_plus_lm`: its memory, no neighbours;
`neighbors`: these alone.

Where a bundle has no neighbours, and where its generator is the paper's, all is the language model's alone: `no_memory`
and `neighbors` are then `bigrec`, and `automr_plus_lm` the bundle's own row (see `row_of`).
"""

from collections.abc import Callable

import numpy as np

from model_store.bundle import Bundle
from training.annotate import Annotation
from training.rows.baselines import BASELINES, fit_baseline, ranked_lists
from training.rows.contest import NUM_RESULTS, Choose, Contest, Lists, make_contest, recipe_of
from training.rows.full_history import full_history
from training.rows.rella import extended, replaced
from training.rows.trsr import trsr
from training.run.metrics import popularity_tie_order
from training.run.stage import pick_device

__all__ = [
    "NUM_RESULTS",
    "ROWS",
    "SEEDED_ROWS",
    "Contest",
    "Lists",
    "make_contest",
    "neighbor_share",
    "predict",
    "row_of",
    "rows_of",
]

RowOf = Callable[[Contest, int], Lists]  # (contest, seed) → lists

SEEDED_ROWS = ("random", "sasrec_bce", "sasrec")
MEMORY_ROWS = ("random", "recent_beyond", "automr_plus", "oracle")  # AutoMR + with one memory or another
_HEAR_NEIGHBORS = ("no_memory", *MEMORY_ROWS)
_NEARLY_ALL = 1 - 1e-6  # λ of neighbours alone: the language model decides between equals
_NEED_RECIPE = ("trsr", "full_history")


def predict(contest: Contest, row: str, seed: int) -> Lists:
    """The lists of one row. Raises StageError where the row needs what the bundle does not tell."""
    return _ROWS[row](contest.hearing(neighbor_share(contest.bundle, row)), seed)


def neighbor_share(bundle: Bundle, row: str) -> float:
    """λ: how much of the row's forecast is the item neighbours'. They are part of AutoMR +, of nothing published."""
    share = bundle.manifest.generation.neighbor_share if _is_tuned(bundle) else 0.0
    if row == "neighbors":
        return _NEARLY_ALL if share else 0.0
    return share if row in _HEAR_NEIGHBORS else 0.0


def row_of(row: str, bundle: Bundle) -> str:
    """The row that stands for `row`.

    AutoMR with a tuned generator is another row than the paper's, and a bundle has but one of the two; without
    neighbours, rows that differ by them alone are one.
    """
    own = "automr_plus" if _is_tuned(bundle) else "automr"
    stands_for = {"automr": own, "automr_plus": own}
    if not neighbor_share(bundle, "no_memory"):
        stands_for |= {"no_memory": "bigrec", "neighbors": "bigrec", "automr_plus_lm": own}
    return stands_for.get(row, row)


def rows_of(bundle: Bundle) -> tuple[str, ...]:
    """All rows that this bundle can have; who does not know its recipe cannot train another model by it."""
    missing = _NEED_RECIPE if recipe_of(bundle) is None else ()
    return tuple(row for row in ROWS if row_of(row, bundle) == row and row not in missing)


def _is_tuned(bundle: Bundle) -> bool:
    """Its generator saw memory."""
    return "memory-aware" in (bundle.manifest.backbone.adapter or "")


def _popularity(contest: Contest, seed: int) -> Lists:
    return _most_popular(contest, copy_last=False)


def _copy_last(contest: Contest, seed: int) -> Lists:
    """The last item again, then the most popular."""
    return _most_popular(contest, copy_last=not contest.mask_seen)


def _most_popular(contest: Contest, *, copy_last: bool) -> Lists:
    """Of the train period."""
    split = contest.split
    popular = np.argsort(popularity_tie_order(split.popularity, split.item_ids)).tolist()
    lists: Lists = []
    for target in contest.targets:
        history = split.histories[target.user].items[: target.position]
        seen = set(history.tolist()) if contest.mask_seen else set()
        first = [int(history[-1])] if copy_last else []
        fresh = (item for item in popular if item not in seen and item not in first)
        lists.append([*first, *(item for item, _ in zip(fresh, range(NUM_RESULTS - len(first)), strict=False))])
    return lists


def _baseline(name: str) -> RowOf:
    """Fitted once per workshop and seed."""

    def lists(contest: Contest, seed: int) -> Lists:
        workshop = contest.need_workshop()
        directory = workshop.directory / f"{name}-{workshop.fingerprint}"
        device = pick_device(workshop.device)
        scorer = contest.once((name, seed), lambda: fit_baseline(name, contest.split, seed, directory, device))
        return ranked_lists(scorer, contest.split, contest.targets, NUM_RESULTS, mask_seen=contest.mask_seen)

    return lists


def _nothing(contest: Contest, seed: int) -> Choose:
    return lambda example: ()


def _retriever(contest: Contest, seed: int) -> Choose:
    return lambda example: None


def _random(contest: Contest, seed: int) -> Choose:
    """As many as the retriever may take."""
    rng, top_k = np.random.default_rng(seed), contest.bundle.manifest.retriever.top_k
    return lambda example: tuple(np.sort(rng.permutation(len(example.memory_positions))[:top_k]).tolist())


def _recent_beyond(contest: Contest, seed: int) -> Choose:
    top_k = contest.bundle.manifest.retriever.top_k
    return lambda example: tuple(range(len(example.memory_positions)))[-top_k:]


def _oracle(contest: Contest, seed: int) -> Choose:
    best = {(found.user, found.position): _best(found) for found in contest.annotate()}
    return lambda example: best[example.user, example.position]


def _best(annotation: Annotation) -> tuple[int, ...]:
    """The element that helps the truth most, if any does."""
    gains = annotation.gains("log_gain")
    return (int(gains.argmax()),) if gains.max(initial=0) > 0 else ()


def _with_memory(row: str, chooser: Callable[[Contest, int], Choose]) -> RowOf:
    return lambda contest, seed: contest.with_memory(chooser(contest, seed), row)


_ROWS: dict[str, RowOf] = {
    "popularity": _popularity,
    "copy_last": _copy_last,
    **{name: _baseline(name) for name in BASELINES},
    "bigrec": _with_memory("bigrec", _nothing),
    "rella_replace": lambda contest, seed: replaced(contest),
    "rella_extend": lambda contest, seed: extended(contest),
    "trsr": trsr,
    "full_history": full_history,
    "automr": _with_memory("automr", _retriever),
    "neighbors": _with_memory("neighbors", _nothing),
    "no_memory": _with_memory("no_memory", _nothing),
    "random": _with_memory("random", _random),
    "recent_beyond": _with_memory("recent_beyond", _recent_beyond),
    "automr_plus_lm": _with_memory("automr_plus_lm", _retriever),
    "automr_plus": _with_memory("automr_plus", _retriever),
    "oracle": _with_memory("oracle", _oracle),
}
ROWS = tuple(_ROWS)
