"""The inputs of a stage: a data set, its split, and a fingerprint of both."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from training.data.dataset import Dataset, load_dataset
from training.data.splits import Split, leave_one_out, time_split
from training.run.stage import digest

SPLITS: dict[str, Callable[[Dataset], Split]] = {"time": time_split, "leave-one-out": leave_one_out}


class Inputs(NamedTuple):
    """`fingerprint` changes with any interaction, title or split."""

    dataset: Dataset
    split: Split
    fingerprint: str


def load_inputs(data: Path, split_name: str) -> Inputs:
    """Reads the data set in directory `data` and splits it. Raises DataError."""
    dataset = load_dataset(data)
    split = SPLITS[split_name](dataset)
    return Inputs(dataset, split, fingerprint(split))


def fingerprint(split: Split) -> str:
    content = hashlib.sha256()
    for history in split.histories:
        content.update(f"{history.user_id}\x1f{history.train_end}".encode())
        content.update(history.items.tobytes())
        content.update(history.timestamps.tobytes())
        if history.typed is not None:
            typed = history.typed
            parts = (typed.weights, typed.is_popular, typed.is_near, typed.is_seen, typed.seen_items, typed.seen_from)
            for part in (*parts, typed.seen_until, *typed.against):
                content.update(part.tobytes())
    return digest([split.name, split.item_ids, split.titles, content.hexdigest()])
