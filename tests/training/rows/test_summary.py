"""The recurrence: block by block and all at once are the same, each block is read once, the future is not read."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tests.training.small import diary
from training.rows.summary import Request, Summary, summarise

BLOCK = 4
SPLIT = diary((30, 14, 2))


def largest_two(lists: Sequence[Sequence[int]]) -> list[Summary]:
    """Of the items as numbers mixed by a fixed rule, so that what stays is neither the oldest nor the newest."""
    return [tuple(item for item in items if item in sorted(items, key=_mixed)[-2:]) for items in lists]


def _mixed(item: int) -> int:
    return item * 7919 % 101


def everything(stop: int, user: int = 0) -> Summary:
    """The recurrence as it is written in the paper, by one loop over the history of one user."""
    items = SPLIT.histories[user].items[:stop].tolist()
    summary: Summary = ()
    for start in range(0, stop, BLOCK):
        (summary,) = largest_two([[*summary, *items[start : start + BLOCK]]])
    return summary


def test_a_summary_is_the_loop_over_blocks() -> None:
    requests = [Request(user, stop) for user, length in ((0, 30), (1, 14), (2, 2)) for stop in range(length + 1)]
    found = summarise(largest_two, SPLIT, requests, BLOCK)
    assert found.keys() == set(requests)
    for request, summary in found.items():
        assert summary == everything(request.stop, request.user), f"{request}"


def test_who_else_asks_changes_nothing() -> None:
    alone = summarise(largest_two, SPLIT, [Request(0, 17)], BLOCK)
    together = summarise(largest_two, SPLIT, [Request(1, 3), Request(0, 29), Request(0, 17), Request(0, 0)], BLOCK)
    assert together[Request(0, 17)] == alone[Request(0, 17)]
    assert together[Request(0, 0)] == ()
    assert summarise(largest_two, SPLIT, [], BLOCK) == {}


def test_it_goes_on_from_the_summary_before() -> None:
    found = summarise(largest_two, SPLIT, [Request(0, 2 * BLOCK), Request(0, 3 * BLOCK)], BLOCK)
    block = SPLIT.histories[0].items[2 * BLOCK : 3 * BLOCK].tolist()
    assert [found[Request(0, 3 * BLOCK)]] == largest_two([[*found[Request(0, 2 * BLOCK)], *block]])


def test_later_events_change_nothing() -> None:
    items = SPLIT.histories[0].items.copy()
    items[17:] = items[17:][::-1]
    other = replace(SPLIT, histories=[replace(SPLIT.histories[0], items=items), *SPLIT.histories[1:]])
    requests = [Request(0, stop) for stop in range(18)]
    assert summarise(largest_two, other, requests, BLOCK) == summarise(largest_two, SPLIT, requests, BLOCK)
    later = [Request(0, 25)]
    assert summarise(largest_two, other, later, BLOCK) != summarise(largest_two, SPLIT, later, BLOCK), "tests nothing"


def test_a_block_is_read_once_whoever_asks() -> None:
    read: list[tuple[int, ...]] = []

    def counted(lists: Sequence[Sequence[int]]) -> list[Summary]:
        read.extend(tuple(items)[-BLOCK:] for items in lists)
        return largest_two(lists)

    summarise(counted, SPLIT, [Request(0, 28), Request(0, 28 - BLOCK), Request(0, BLOCK)], BLOCK)
    blocks = [tuple(SPLIT.histories[0].items[start : start + BLOCK].tolist()) for start in range(0, 28, BLOCK)]
    assert [each for each in read if each in blocks] == blocks
    assert np.ptp([len(each) for each in read[: len(blocks)]]) == 0, "a block is whole"
