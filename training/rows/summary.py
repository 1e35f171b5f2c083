"""The recurrence of TRSR (arXiv 2403.13325): old behaviour is read block by block, and a short summary carried on.

    summary_n = select(summary_{n-1} followed by block_n)

In: a `select` (see `summariser.py`), a split, requests. Out: summaries, items in the order they were read. Each block
of a user is read once, whoever asks. Knows no model.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from training.data.splits import Split
from training.run.stage import progress

Summary = tuple[int, ...]
Select = Callable[[Sequence[Sequence[int]]], list[Summary]]  # what stays of each list


class Request(NamedTuple):
    """The summary of everything that `user` did before position `stop`."""

    user: int
    stop: int


def summarise(select: Select, split: Split, requests: Sequence[Request], block: int) -> dict[Request, Summary]:
    """From each user's first event, as a service would carry it on; the last block of a request may be short."""
    num_whole: dict[int, int] = {}  # user → blocks that are whole
    for user, stop in requests:
        num_whole[user] = max(num_whole.get(user, 0), stop // block)
    after: dict[tuple[int, int], Summary] = {(user, 0): () for user in num_whole}  # (user, blocks read)

    def read_on(user: int, number: int, stop: int) -> list[int]:
        return [*after[user, number], *split.histories[user].items[number * block : stop].tolist()]

    for number in progress(range(max(num_whole.values(), default=0)), desc="summaries", unit="block"):
        users = [user for user, count in num_whole.items() if count > number]
        summaries = select([read_on(user, number, (number + 1) * block) for user in users])
        after |= {(user, number + 1): summary for user, summary in zip(users, summaries, strict=True)}
    last = select([read_on(user, stop // block, stop) for user, stop in requests])
    return dict(zip(requests, last, strict=True))
