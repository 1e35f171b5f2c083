"""Packed training gives the loss of one prompt per target, and memory is what serving stores, where serving puts it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model_store.lm.split_lm import SplitLM
from tests.conftest import make_model
from tests.training.small import diary, small_lm, small_windows
from training.data.splits import Split, Target
from training.lm.likelihood import answer_log_probs, encode_answers
from training.lm.memory_states import Stretch
from training.lm.packing import (
    Block,
    PackedBatches,
    PackedRow,
    make_block,
    packed_loss,
    shuffled_baskets,
    target_row,
)
from training.lm.windows import Windows

SPLIT = diary()
EPOCH = 10_000  # blocks per step; one step is a whole epoch


@pytest.fixture(scope="module")
def windows() -> Windows:
    return small_windows(SPLIT)


@pytest.fixture(scope="module")
def lm() -> SplitLM:
    return small_lm()


@torch.inference_mode()
def loss(lm: SplitLM, rows: Sequence[PackedRow], reduction: str = "sum") -> float:
    return float(packed_loss(lm, rows, reduction=reduction))


def block_of(windows: Windows, user: int, start: int, stop: int) -> Block:
    return make_block(windows.prompt.head, windows.title_tokens(SPLIT.histories[user].items[start:stop]))


def stretch_of(windows: Windows, user: int, stop: int) -> Stretch:
    """The first titles of a history; places are positions."""
    titles = windows.title_tokens(SPLIT.histories[user].items[:stop])
    return Stretch(titles, windows.prompt.head, windows.recent_length)


@torch.inference_mode()
def window_state(lm: SplitLM, windows: Windows, user: int, position: int) -> Tensor:
    """(D,) of the window that ends at a position, read alone, as annotation and serving read it."""
    tokens = torch.tensor([windows.prompt_ending_at(user, position)])
    return lm.bottom(tokens, torch.ones_like(tokens))[0, -1]


def plain(windows: Windows, user: int, start: int, stop: int, *, from_title: int = 0) -> PackedRow:
    """A block without memory, with a loss from the given title on."""
    block = block_of(windows, user, start, stop)
    head = len(windows.prompt.head)
    return PackedRow(block, [], 0, loss_from=block.ends[from_title - 1] + 1 if from_title else head)


@torch.inference_mode()
def log_prob(logits: Tensor, tokens: Sequence[int], start: int) -> float:
    """Log-probability of tokens[start:], each predicted by the logits (T, V) before it."""
    log_probs = logits.float().log_softmax(dim=-1)
    return sum(float(log_probs[at - 1, tokens[at]]) for at in range(start, len(tokens)))


# --- without memory -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_loss_of_a_block_is_that_of_one_prompt_per_title(windows: Windows, lm: SplitLM) -> None:
    whole = make_model("llama")
    expected = 0.0
    for position in range(4, 8):
        answer = windows.prompt.title_tokens(SPLIT.titles[position])
        prompt = [*windows.prompt.head]
        for title in SPLIT.titles[4:position]:
            prompt += windows.prompt.title_tokens(title)
        logits = whole(torch.tensor([[*prompt, *answer]])).logits[0]
        expected -= log_prob(logits, [*prompt, *answer], len(prompt))
    assert loss(lm, [plain(windows, 0, 4, 8)]) == pytest.approx(expected, abs=1e-3, rel=1e-5)


def test_rows_of_a_batch_are_independent(windows: Windows, lm: SplitLM) -> None:
    rows = [plain(windows, 0, 0, 4), plain(windows, 1, 3, 5), plain(windows, 3, 2, 6, from_title=2)]
    assert loss(lm, rows) == pytest.approx(sum(loss(lm, [row]) for row in rows), rel=1e-5)


def test_the_mean_is_over_the_tokens_with_a_loss(windows: Windows, lm: SplitLM) -> None:
    rows = [plain(windows, 0, 0, 4), plain(windows, 1, 3, 5, from_title=1)]
    num_tokens = sum(len(row.block.tokens) - row.loss_from for row in rows)
    assert loss(lm, rows, "mean") == pytest.approx(loss(lm, rows) / num_tokens, rel=1e-5)


def test_the_ends_of_a_block_are_the_last_tokens_of_its_titles(windows: Windows) -> None:
    block = block_of(windows, 0, 0, 3)
    assert len(block.ends) == 3
    assert block.tokens == windows.prompt.tokens(SPLIT.titles[:3])
    ends = [len(windows.prompt.tokens(SPLIT.titles[: count + 1])) - 1 for count in range(3)]
    assert block.ends == ends


# --- with memory --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def by_hand(lm: SplitLM, block: Block, memory: Tensor, boundary: int, loss_from: int) -> float:
    """Runs the top half with `memory` (S, D) put before the last token of the boundary title."""
    tokens = torch.tensor([block.tokens])
    states = lm.bottom(tokens, torch.ones_like(tokens))[0]
    cut = block.ends[boundary]
    explicit = torch.cat([states[:cut], memory, states[cut:]])[None]
    logits = lm.top(explicit, torch.ones(explicit.shape[:2], dtype=torch.long))[0]
    without_memory = torch.cat([logits[:cut], logits[cut + len(memory) :]])
    if loss_from > cut:
        return -log_prob(without_memory, block.tokens, loss_from)
    # The token at the cut is not predicted, because a memory is before it.
    before = -log_prob(logits[:cut], block.tokens[:cut], loss_from)
    first = -float(logits[cut - 1].float().log_softmax(-1)[block.tokens[cut]])
    return before + first - log_prob(without_memory, block.tokens, cut + 1)


@pytest.mark.parametrize("boundary", [0, 1, 2])
@torch.inference_mode()
def test_memory_is_before_the_last_token_of_the_boundary_title(boundary: int, windows: Windows, lm: SplitLM) -> None:
    block, head = block_of(windows, 0, 4, 8), len(windows.prompt.head)
    row = PackedRow(block, [0, 3], boundary, head, stretch_of(windows, 0, 4))
    memory = torch.stack([window_state(lm, windows, 0, position) for position in (0, 3)])
    expected = by_hand(lm, block, memory, boundary, head)
    assert loss(lm, [row]) == pytest.approx(expected, rel=1e-4)


@torch.inference_mode()
def test_the_answer_after_memory_has_the_likelihood_of_annotation(windows: Windows, lm: SplitLM) -> None:
    block = block_of(windows, 0, 4, 8)
    rows = [PackedRow(block, [3], 2, block.ends[2] + 1, stretch_of(windows, 0, 4))]
    memory = window_state(lm, windows, 0, 3)[None, None]
    batch = encode_answers(lm, [windows.prompt_ending_at(0, 6)], [windows.prompt.title_tokens(SPLIT.titles[7])])
    expected = -float(answer_log_probs(lm, batch, memory, torch.ones(1, 1, dtype=torch.long), "insert"))
    assert loss(lm, rows) == pytest.approx(expected, rel=1e-4)


def test_gradients_reach_the_windows_of_the_memory(windows: Windows) -> None:
    lm = small_lm()
    lm.model.requires_grad_(True)
    block = block_of(windows, 0, 4, 8)
    only_older = sorted(set(windows.prompt_ending_at(0, 3)) - set(block.tokens))
    packed_loss(lm, [PackedRow(block, [3], 2, block.ends[2] + 1, stretch_of(windows, 0, 4))]).backward()
    gradient = lm.model.get_input_embeddings().weight.grad
    assert isinstance(gradient, Tensor)
    assert gradient[only_older].abs().sum() > 0, "the bottom half cannot learn which states to write"


@torch.inference_mode()
def test_retrieved_memories_are_the_most_similar_ones_in_order_of_time(windows: Windows, lm: SplitLM) -> None:
    block, source = block_of(windows, 0, 8, 12), stretch_of(windows, 0, 8)
    row = PackedRow(block, range(8), 1, block.ends[1] + 1, source, num_retrieved=2)
    tokens = torch.tensor([block.tokens])
    query = lm.bottom(tokens, torch.ones_like(tokens))[0, block.ends[1]]
    states = torch.stack([window_state(lm, windows, 0, position) for position in range(8)])
    alike = torch.cosine_similarity(states - states.mean(1, keepdim=True), query - query.mean(), dim=1)
    best = sorted(alike.argsort(descending=True)[:2].tolist())
    assert loss(lm, [row]) == pytest.approx(loss(lm, [row._replace(memory=best, num_retrieved=0)]), rel=1e-5)
    others = {loss(lm, [row._replace(memory=[a, b], num_retrieved=0)]) for a in range(8) for b in range(a + 1, 8)}
    assert len(others) > 20, "all choices give one loss, so the test proves nothing"


# --- which blocks a step holds ------------------------------------------------------------------------------------


def events_of(row: PackedRow, windows: Windows) -> list[int]:
    """The items of a block. Each item occurs once in the data, so it identifies a user and a position."""
    known = {windows.prompt.title_tokens(title): item for item, title in enumerate(SPLIT.titles)}
    starts = [len(windows.prompt.head), *(end + 1 for end in row.block.ends)]
    pairs = zip(starts, row.block.ends, strict=False)
    return [known[tuple(row.block.tokens[start : end + 1])] for start, end in pairs]


def memories_of(row: PackedRow, windows: Windows) -> list[int]:
    """The items with which the windows of the memory end."""
    known = {windows.prompt.title_tokens(title): item for item, title in enumerate(SPLIT.titles)}
    return [known[row.source.titles[place]] for place in row.memory] if row.source else []


def owners() -> dict[int, tuple[int, int]]:
    """item → (user, position)"""
    return {
        item: (user, at) for user, each in enumerate(SPLIT.histories) for at, item in enumerate(each.items.tolist())
    }


@pytest.mark.parametrize("seed", range(4))
def test_an_epoch_trains_on_every_title_of_the_train_period_once(seed: int, windows: Windows) -> None:
    rows = PackedBatches(windows, num_blocks=EPOCH, memory_share=0.5, seed=seed)(0)
    times = Counter(item for row in rows for item in events_of(row, windows))
    for item, (user, position) in owners().items():
        train_end = SPLIT.histories[user].train_end
        if position >= train_end:
            assert times[item] == 0, f"user {user}, position {position} is after the train period"
        elif position < train_end - 1:
            assert times[item] == 1, f"user {user}, position {position} is trained {times[item]} times"
    for row in rows:
        assert row.loss_from == len(windows.prompt.head), "not every title has a loss"


@pytest.mark.parametrize("seed", range(4))
def test_memory_comes_from_earlier_blocks_of_the_same_user(seed: int, windows: Windows) -> None:
    rows = PackedBatches(windows, num_blocks=EPOCH, memory_share=0.9, seed=seed)(0)
    of_item, num_memories = owners(), 0
    for row in rows:
        items = events_of(row, windows)
        user, first = of_item[items[0]]
        places = [of_item[item] for item in memories_of(row, windows)]
        assert places == sorted(places), "memory is not in time order"
        assert len(places) <= windows.max_memory
        for owner, position in places:
            assert owner == user, "memory of another user"
            assert position < first, "memory contains titles of the block itself or later ones"
        for place, (owner, position) in zip(row.memory, places, strict=True):
            assert row.source is not None
            assert row.source.window(place) == windows.prompt_ending_at(owner, position), "not a window of K titles"
        num_memories += len(places)
    assert num_memories > 0, "no block has memory, so the test proves nothing"


def test_without_memory_share_no_block_has_memory(windows: Windows) -> None:
    rows = PackedBatches(windows, num_blocks=EPOCH, memory_share=0, seed=0)(0)
    assert not any(row.memory for row in rows)


def test_memory_begins_at_memory_from(windows: Windows) -> None:
    batches = PackedBatches(windows, num_blocks=EPOCH, memory_share=0.9, seed=0, memory_from=2)
    assert [any(row.memory for row in batches(step)) for step in range(4)] == [False, False, True, True]


def test_a_step_has_the_same_rows_after_a_resume(windows: Windows) -> None:
    first = PackedBatches(windows, num_blocks=3, memory_share=0.5, seed=1)
    walked = [first(step) for step in range(12)]
    for step in (11, 5):
        resumed = PackedBatches(windows, num_blocks=3, memory_share=0.5, seed=1)(step)
        assert resumed == walked[step], f"step {step} differs after a resume"
    assert PackedBatches(windows, num_blocks=3, memory_share=0.5, seed=2)(0) != walked[0], (
        "two seeds give the same rows"
    )


# --- validation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [Target(0, 20), Target(0, 3), Target(2, 1), Target(3, 20)])
@torch.inference_mode()
def test_a_target_has_the_loss_of_its_prompt(target: Target, windows: Windows, lm: SplitLM) -> None:
    rows = [target_row(windows, target, num_memories=0)]
    example = windows.example(target)
    nothing = torch.zeros(1, 0, lm.hidden_size), torch.zeros(1, 0, dtype=torch.long)
    expected = -float(answer_log_probs(lm, encode_answers(lm, [example.prompt], [example.answer]), *nothing, "insert"))
    assert loss(lm, rows) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("num_memories", [2, 1000])
@pytest.mark.parametrize("position", [4, 8, 29])
def test_the_memory_of_a_target_is_older_than_its_window(position: int, num_memories: int, windows: Windows) -> None:
    row = target_row(windows, Target(0, position), num_memories=num_memories)
    expected = windows.memory_positions(Target(0, position)).tolist()[-num_memories:]
    assert memories_of(row, windows) == expected, "item n is at position n of user 0"
    assert events_of(row, windows) == list(range(position - 3, position + 1))
    assert row.source is not None
    found = [row.source.window(place) for place in row.memory]
    assert found == [windows.prompt_ending_at(0, at) for at in expected], "not the windows that are stored"


@torch.inference_mode()
def test_targets_of_one_batch_keep_their_own_memory(windows: Windows, lm: SplitLM) -> None:
    wanted = [Target(0, 20), Target(3, 12), Target(2, 1)]
    rows = [target_row(windows, target, num_memories=10) for target in wanted]
    assert loss(lm, rows) == pytest.approx(sum(loss(lm, [row]) for row in rows), rel=1e-4)


# --- how much memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2,), (1, 5), (3, 3, 10_000), (0,)])
def test_memory_has_one_of_the_sizes_or_is_complete(sizes: tuple[int, ...], windows: Windows) -> None:
    batches = PackedBatches(windows, num_blocks=EPOCH, memory_share=1.0, memory_sizes=sizes, seed=0)
    found = Counter[int]()
    for step in range(20):
        rows = batches(step)
        earlier = [0] * len(SPLIT.histories)
        for row in rows:
            user = owners()[events_of(row, windows)[0]][0]
            available = min(earlier[user], windows.max_memory)
            assert len(row.memory) in {min(size, available) for size in sizes}, f"{len(row.memory)} of {available}"
            assert len(set(row.memory)) == len(row.memory), "a memory occurs twice"
            earlier[user] += len(row.block.ends)
            found[len(row.memory)] += 1
    assert all(found[size] for size in sizes if size < windows.max_memory), "a size never occurs"


def test_there_is_no_memory_before_memory_from(windows: Windows) -> None:
    batches = PackedBatches(windows, num_blocks=EPOCH, memory_share=1.0, memory_from=3, seed=0)
    has_memory = [any(row.memory for row in batches(step)) for step in range(6)]
    assert has_memory == [False] * 3 + [True] * 3


def test_retrieved_memory_begins_late_and_has_its_share(windows: Windows) -> None:
    batches = PackedBatches(
        windows,
        num_blocks=EPOCH,
        memory_share=1.0,
        retrieved_share=0.5,
        retrieved_from=30,
        retrieved_sizes=(1, 4),
        seed=0,
    )
    rows = [[row for row in batches(step) if row.memory] for step in range(60)]
    assert not any(row.num_retrieved for step in rows[:30] for row in step)
    retrieved = [row for step in rows[30:] for row in step if row.num_retrieved]
    assert 0.3 < len(retrieved) / sum(map(len, rows[30:])) < 0.7
    assert {row.num_retrieved for row in retrieved} == {1, 4}
    for row in retrieved:
        assert row.memory == list(range(row.memory[0], row.memory[-1] + 1)), "a memory cannot be retrieved"


# --- baskets ------------------------------------------------------------------------------------------------------


def in_baskets(size: int) -> Split:
    """The diary, with `size` events of a user at one time."""
    histories = [replace(each, timestamps=np.arange(len(each.items)) // size) for each in SPLIT.histories]
    return replace(SPLIT, histories=histories)


def read_items(split: Split, step: int, seed: int = 0) -> list[int]:
    """The first user's items in the order in which an epoch reads them; a step is an epoch."""
    windows = small_windows(split)
    rows = PackedBatches(windows, num_blocks=EPOCH, memory_share=0.5, seed=seed)(step)
    return [item for row in rows for item in events_of(row, windows) if item < len(SPLIT.histories[0].items)]


def test_a_basket_is_read_in_a_new_order_in_each_epoch_and_for_each_seed() -> None:
    split = in_baskets(5)
    orders = [read_items(split, step, seed) for step, seed in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] == read_items(split, 0, 0), "the same seed and epoch read another order"
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        times = [split.histories[0].timestamps[item] for item in dict.fromkeys(order)]
        assert times == sorted(times), "the order of different times was changed"


def test_without_equal_times_the_order_stays_and_no_event_after_the_train_period_is_read() -> None:
    history = SPLIT.histories[0]
    assert shuffled_baskets(history, np.random.default_rng(0)).tolist() == list(range(history.train_end))
    one_time = replace(history, timestamps=np.zeros_like(history.timestamps))
    rng = np.random.default_rng(0)
    drawn = [shuffled_baskets(one_time, rng).tolist() for _ in range(400)]
    assert all(sorted(order) == list(range(history.train_end)) for order in drawn)
    first = np.bincount([order[0] for order in drawn], minlength=history.train_end)
    assert first.min() > 0 and first.max() < 60, "some orders are much more frequent than others"


def test_a_memory_window_has_the_order_of_its_epoch() -> None:
    windows = small_windows(in_baskets(4))
    rows = PackedBatches(windows, num_blocks=EPOCH, memory_share=1.0, memory_sizes=(10_000,), seed=0)(0)
    by_source: dict[int, list[PackedRow]] = {}
    for row in rows:
        by_source.setdefault(id(row.source), []).append(row)
    for chapter in by_source.values():
        read = [item for row in chapter for item in events_of(row, windows)]
        for row in chapter:
            remembered = memories_of(row, windows)
            start = read.index(remembered[0]) if remembered else 0
            assert read[start : start + len(remembered)] == remembered, "blocks and memories disagree"


def test_valid_targets_keep_the_stored_order() -> None:
    windows = small_windows(in_baskets(30))
    row = target_row(windows, Target(0, 20), num_memories=4)
    assert events_of(row, windows) == [17, 18, 19, 20] and memories_of(row, windows) == [13, 14, 15, 16]
