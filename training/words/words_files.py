"""The files of the stage "words" beside the folder of the bundle: selectors, and the weights of the rows."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from model_store.words.ranker import Ranker
from model_store.words.selector import Selector
from training.run.stage import atomic_file
from training.words.training import Learned

WORDS, ROWS_FILE = "words", "rows.safetensors"  # the folder of the bundle; the weights of the rows
_SELECTORS = ("warm-up", "grpo")


def write_rows(learned: Learned, out: Path) -> None:
    owners: dict[str, Selector | Ranker] = {**learned.selectors, **learned.rankers}
    arrays = {f"{owner}/{name}": array for owner, part in owners.items() for name, array in part.arrays().items()}
    with atomic_file(out / ROWS_FILE) as draft:
        save_file(arrays, draft)


def read_rows(out: Path) -> tuple[dict[str, Selector], dict[str, Ranker]]:
    """The selectors, and the weights of each row, as `write_rows` saved them."""
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in load_file(out / ROWS_FILE).items():
        owner, _, rest = name.partition("/")
        parts.setdefault(owner, {})[rest] = array
    selectors = {name: Selector.from_arrays(parts.pop(name)) for name in _SELECTORS}
    return selectors, {name: Ranker.from_arrays(part) for name, part in parts.items()}
