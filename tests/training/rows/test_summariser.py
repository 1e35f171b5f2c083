"""Summaries: the recurrence over blocks, and the chooser that keeps S titles by their value to the language model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.bundle import Bundle
from tests.training.evaluations import SPLIT, shorten_summariser
from tests.training.small import diary
from training.rows import summariser
from training.rows.summariser import (
    ChooserExample,
    HistoryStart,
    Summariser,
    Summary,
    SummarySizes,
    chooser_examples,
    label_weights,
    summarise_histories,
)
from training.run.loop import Schedule

SIZES = SummarySizes(block=5, summary=2)
LISTS = [[3, 1, 4, 15, 9, 2], [6, 5, 3], [8, 9, 7, 0, 11, 12, 13]]


@pytest.fixture
def chooser(bundle: Bundle) -> Summariser:
    torch.manual_seed(0)
    rows = np.array([bundle.catalogue.rows[item_id] for item_id in SPLIT.item_ids])
    return Summariser(bundle, SPLIT.titles, bundle.index.vectors(rows), SIZES)


def test_s_titles_are_kept_in_their_order(chooser: Summariser) -> None:
    for items, kept in zip(LISTS, chooser.select(LISTS), strict=True):
        assert len(kept) == SIZES.summary
        later = iter(items)
        assert all(item in later for item in kept), f"{kept} is not in the order of {items}"


def test_the_kept_titles_do_not_depend_on_the_other_lists(chooser: Summariser) -> None:
    together = chooser.select(LISTS)
    assert together == [chooser.select([items])[0] for items in LISTS]
    assert chooser.select([]) == []


def test_up_to_s_titles_are_all_kept_and_repeats_are_dropped(chooser: Summariser) -> None:
    assert chooser.select([[], [4], [4, 4, 5], [5, 4, 5]]) == [(), (4,), (4, 5), (4, 5)]


def test_the_chooser_reads_the_list_as_one_prompt_and_each_title(chooser: Summariser) -> None:
    inputs = chooser.encode(LISTS)
    for row, items in enumerate(LISTS):
        tokens = [token for item in items for token in chooser.prompt.title_tokens(SPLIT.titles[item])]
        ids = torch.tensor([[*chooser.prompt.head, *tokens]])
        end = chooser.lm.top_hidden(chooser.lm.bottom(ids, torch.ones_like(ids)), torch.ones_like(ids))[0, -1]
        torch.testing.assert_close(inputs.end[row], end, atol=1e-4, rtol=1e-4)
        assert np.array_equal(inputs.titles[row, : len(items)].numpy(), chooser.vectors[items])
        assert inputs.mask[row].tolist() == [1] * len(items) + [0] * (SIZES.num_candidates - len(items))


def test_the_value_of_a_title_is_the_log_probability_of_the_following_titles(chooser: Summariser) -> None:
    example = ChooserExample([3, 8], [1, 6, 1])
    answer = [token for item in example.following for token in chooser.prompt.title_tokens(SPLIT.titles[item])]
    for candidate, value in zip(example.candidates, chooser.title_values(example).tolist(), strict=True):
        prompt = [*chooser.prompt.head, *chooser.prompt.title_tokens(SPLIT.titles[candidate])]
        ids = torch.tensor([[*prompt, *answer]])
        log_probs = chooser.lm.top(chooser.lm.bottom(ids, torch.ones_like(ids)), torch.ones_like(ids)).log_softmax(-1)
        expected = log_probs[0, len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum()
        assert value == pytest.approx(float(expected), rel=1e-4)


def test_label_weights_have_the_order_of_the_values_and_do_not_depend_on_their_scale() -> None:
    values = torch.tensor([-30.0, -10.0, -20.0])
    weights = label_weights(values)
    assert float(weights.sum()) == pytest.approx(1)
    assert weights.argsort().tolist() == values.argsort().tolist()
    torch.testing.assert_close(label_weights(5 * values - 3), weights)
    torch.testing.assert_close(label_weights(torch.full((4,), -7.0)), torch.full((4,), 0.25))


def test_examples_are_of_the_train_period_and_in_order() -> None:
    split = diary((40, 14, 9, 2))
    examples = chooser_examples(split, SIZES, seed=0)
    assert len(examples) == summariser.NUM_EXAMPLES
    trained = {int(item) for history in split.histories for item in history.items[: history.train_end]}
    for example in examples:
        assert example.following and {*example.candidates, *example.following} <= trained
        assert example.candidates == sorted(example.candidates), "the candidates are not in the order of time"
        assert len(example.candidates) == SIZES.num_candidates
        assert example.following[0] == example.candidates[-1] + 1, "the following items must be the next ones"
    assert chooser_examples(split, SIZES, seed=0) == examples
    assert chooser_examples(split, SIZES, seed=1) != examples
    assert chooser_examples(diary((8, 2)), SIZES, seed=0) == [], "these histories are too short"


def test_the_chooser_learns_the_values(chooser: Summariser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With values that prefer low item numbers, it keeps these items in lists that it was not trained on."""
    monkeypatch.setattr(summariser, "NUM_EXAMPLES", 150)
    monkeypatch.setattr(summariser, "SCHEDULE", Schedule(max_steps=200, learning_rate=1e-2, evaluate_every=50))
    monkeypatch.setattr(
        Summariser, "title_values", lambda self, example: torch.tensor([-float(item) for item in example.candidates])
    )
    before = [sum(kept) for kept in chooser.select(LISTS)]
    loss = chooser.train(SPLIT, seed=0, checkpoints=tmp_path)
    assert loss is not None and loss < 0.1
    after = [sum(kept) for kept in chooser.select(LISTS)]
    best = [sum(sorted(items)[: SIZES.summary]) for items in LISTS]
    assert sum(after) - sum(best) <= (sum(before) - sum(best)) / 3, f"{after} of {best} at best, {before} before"


def test_without_long_histories_nothing_is_trained(
    chooser: Summariser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_summariser(monkeypatch)
    short = replace(SPLIT, histories=[replace(history, train_end=3) for history in SPLIT.histories])
    assert chooser.train(short, seed=0, checkpoints=tmp_path) is None


# --- the recurrence ---------------------------------------------------------------------------------------------------

BLOCK = 4
DIARY = diary((30, 14, 2))


def keep_two(lists: Sequence[Sequence[int]]) -> list[Summary]:
    """Keeps two items by a fixed rule that prefers neither old nor new items."""
    return [tuple(item for item in items if item in sorted(items, key=_mixed)[-2:]) for items in lists]


def _mixed(item: int) -> int:
    return item * 7919 % 101


def expected_summary(stop: int, user: int = 0) -> Summary:
    """The recurrence of the paper as a loop over the history of one user."""
    items = DIARY.histories[user].items[:stop].tolist()
    summary: Summary = ()
    for start in range(0, stop, BLOCK):
        (summary,) = keep_two([[*summary, *items[start : start + BLOCK]]])
    return summary


def test_a_summary_equals_the_loop_over_blocks() -> None:
    starts = [HistoryStart(user, stop) for user, length in ((0, 30), (1, 14), (2, 2)) for stop in range(length + 1)]
    found = summarise_histories(keep_two, DIARY, starts, BLOCK)
    assert found.keys() == set(starts)
    for start, summary in found.items():
        assert summary == expected_summary(start.stop, start.user), f"{start}"


def test_a_summary_does_not_depend_on_the_other_histories() -> None:
    alone = summarise_histories(keep_two, DIARY, [HistoryStart(0, 17)], BLOCK)
    together = summarise_histories(
        keep_two, DIARY, [HistoryStart(1, 3), HistoryStart(0, 29), HistoryStart(0, 17), HistoryStart(0, 0)], BLOCK
    )
    assert together[HistoryStart(0, 17)] == alone[HistoryStart(0, 17)]
    assert together[HistoryStart(0, 0)] == ()
    assert summarise_histories(keep_two, DIARY, [], BLOCK) == {}


def test_a_summary_continues_the_summary_before_it() -> None:
    found = summarise_histories(keep_two, DIARY, [HistoryStart(0, 2 * BLOCK), HistoryStart(0, 3 * BLOCK)], BLOCK)
    block = DIARY.histories[0].items[2 * BLOCK : 3 * BLOCK].tolist()
    assert [found[HistoryStart(0, 3 * BLOCK)]] == keep_two([[*found[HistoryStart(0, 2 * BLOCK)], *block]])


def test_a_summary_does_not_depend_on_later_events() -> None:
    items = DIARY.histories[0].items.copy()
    items[17:] = items[17:][::-1]
    other = replace(DIARY, histories=[replace(DIARY.histories[0], items=items), *DIARY.histories[1:]])
    starts = [HistoryStart(0, stop) for stop in range(18)]
    assert summarise_histories(keep_two, other, starts, BLOCK) == summarise_histories(keep_two, DIARY, starts, BLOCK)
    later = [HistoryStart(0, 25)]
    assert summarise_histories(keep_two, other, later, BLOCK) != summarise_histories(keep_two, DIARY, later, BLOCK), (
        "the changed history must matter somewhere"
    )


def test_each_block_is_read_once() -> None:
    read: list[tuple[int, ...]] = []

    def counted(lists: Sequence[Sequence[int]]) -> list[Summary]:
        read.extend(tuple(items)[-BLOCK:] for items in lists)
        return keep_two(lists)

    summarise_histories(
        counted, DIARY, [HistoryStart(0, 28), HistoryStart(0, 28 - BLOCK), HistoryStart(0, BLOCK)], BLOCK
    )
    blocks = [tuple(DIARY.histories[0].items[start : start + BLOCK].tolist()) for start in range(0, 28, BLOCK)]
    assert [each for each in read if each in blocks] == blocks
    assert np.ptp([len(each) for each in read[: len(blocks)]]) == 0, "all blocks must be whole"
