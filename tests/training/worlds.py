"""Small splits with known right answers, and what a scorer ranks first in them. Titles are numbers."""

from collections.abc import Sequence

import numpy as np

from training.data.splits import History, Split, Target
from training.items.scoring import Scorer, top_items, unseen
from training.run.metrics import popularity_tie_order


def world(sequences: Sequence[Sequence[int]], *, train_ends: Sequence[int]) -> Split:
    """One user per sequence of item rows. After the train period, targets are alternately valid and test."""
    num_items = 1 + max(max(sequence) for sequence in sequences)
    histories = [
        History(f"u{user}", np.array(items, dtype=np.int32), np.arange(len(items)), end, True)
        for user, (items, end) in enumerate(zip(sequences, train_ends, strict=True))
    ]
    trained = np.concatenate([history.items[: history.train_end] for history in histories])
    late = [Target(user, at) for user, each in enumerate(histories) for at in range(each.train_end, len(each.items))]
    return Split(
        name="time",
        item_ids=[f"i{row:04}" for row in range(num_items)],
        titles=[str(row) for row in range(num_items)],
        attributes=[{} for _ in range(num_items)],
        popularity=np.bincount(trained, minlength=num_items),
        title_class=np.arange(num_items, dtype=np.int32),
        histories=histories,
        valid=late[::2],
        test=late[1::2],
        train=[],
    )


def chain(num_items: int = 40, num_users: int = 60, length: int = 14) -> Split:
    """After item i comes item i + 1 for every user: the last event tells the next, and popularity does not."""
    starts = np.random.default_rng(0).integers(num_items, size=num_users)
    sequences = [[(start + step) % num_items for step in range(length)] for start in starts.tolist()]
    return world(sequences, train_ends=[length - 4] * num_users)


def communities(num_items: int = 40, num_users: int = 60, length: int = 12, seed: int = 0) -> Split:
    """Each user has items of one half of all items, without repeats."""
    rng = np.random.default_rng(seed)
    half = num_items // 2
    sequences = [(rng.permutation(half)[:length] + half * (user % 2)).tolist() for user in range(num_users)]
    return world(sequences, train_ends=[length - 4] * num_users)


def top_of_test(scorer: Scorer, split: Split, *, num: int, mask_seen: bool = False) -> list[list[int]]:
    """The `num` best items of each test target; `mask_seen` leaves out what the user had before."""
    tie_order = popularity_tie_order(split.popularity, split.item_ids)
    return top_items(scorer(split.test), tie_order, num, unseen(split, split.test) if mask_seen else None)
