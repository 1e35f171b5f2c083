"""What a row of the evaluation table is: its name, its method, and what it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_store.bundle import Bundle
from training.rows.evaluation import Evaluation, Rank

Place = Callable[[Evaluation, int], Path | None]  # (evaluation, seed) → the folder of what a row trained, if it did


def any_bundle(bundle: Bundle) -> bool:
    return True


@dataclass(frozen=True)
class EvaluationRow:
    label: str  # name in the report
    explanation: str  # one sentence in the report
    rank: Rank
    is_seeded: bool = False  # lists differ by seed, so several seeds are drawn
    is_timed: bool = True  # a language model answers, so its time can be compared with that of the window alone
    is_costly: bool = False  # hours on a CPU: only `--models all` or its name computes it
    trains: str = ""  # the language model that the row tunes by the bundle's recipe, as text for people
    reads_bigrec: bool = False  # it tunes one only where the bundle's generator cannot be BIGRec's
    place: Place | None = None  # where the certificate of what it trained or chose is
    fits: Callable[[Bundle], bool] = any_bundle  # whether a bundle has what the row needs
    differs_in_memory: bool = False  # differs from `no_memory` in its memory only
