"""Histories as prompts: the window before a target, and the windows that make its memory.

In: a split, a prompt writer (`model_store.text.prompt`). Out: token lists. Item rows become titles only here, so that
all stages show the model the same text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.lm.split_lm import SplitLM
from model_store.text.history import window_ending_at
from model_store.text.prompt import ItemPrompt, Prompt
from training.data.splits import Split, Target
from training.lm.likelihood import EncodedBatch, encode_answers


@dataclass(frozen=True)
class Example:
    """A target with everything that may be known before it.

    `answer` are the tokens of the true title. `memory_positions` are positions in the user's history, oldest first.
    `excluded` are the tokens of items that the user had already, if users of this data set do not repeat items: memory
    that only rules them out is no help. They are used with the item vocabulary only, because the first token of a
    title belongs to other titles too.
    """

    user: int
    position: int
    prompt: list[int]
    answer: tuple[int, ...]
    memory_positions: np.ndarray
    excluded: tuple[int, ...] = ()


class Windows:
    """Writes the prompts of one split. `max_memory` is M."""

    def __init__(self, split: Split, prompt: Prompt, max_memory: int) -> None:
        self.split, self.prompt, self.max_memory = split, prompt, max_memory

    @property
    def recent_length(self) -> int:
        return self.prompt.spec.recent_length

    def titles(self, items: Sequence[int] | np.ndarray) -> list[str]:
        return [self.split.titles[item] for item in items]

    def title_tokens(self, items: Sequence[int] | np.ndarray) -> list[tuple[int, ...]]:
        """The tokens of each title."""
        return [self.prompt.title_tokens(title) for title in self.titles(items)]

    def prompt_ending_at(self, user: int, position: int) -> list[int]:
        """x_{u,h_m} of the paper: the prompt of the window that ends with the event at `position`."""
        items = self.split.histories[user].items.tolist()
        return self.prompt.tokens(self.titles(window_ending_at(items, position, self.recent_length)))

    def memory_positions(self, target: Target) -> np.ndarray:
        """Positions of the newest M events that are older than the K recent ones, oldest first."""
        end = max(0, target.position - self.recent_length)
        return np.arange(max(0, end - self.max_memory), end)

    def example(self, target: Target) -> Example:
        items = self.split.histories[target.user].items
        answer = self.prompt.title_tokens(self.split.titles[items[target.position]])
        return Example(
            user=target.user,
            position=target.position,
            prompt=self.prompt_ending_at(target.user, target.position - 1),
            answer=answer,
            memory_positions=self.memory_positions(target),
            excluded=self._excluded(items[: target.position], answer),
        )

    def _excluded(self, items: np.ndarray, answer: tuple[int, ...]) -> tuple[int, ...]:
        if self.split.has_repeats or not isinstance(self.prompt, ItemPrompt):
            return ()
        seen = {token for title in self.titles(items) for token in self.prompt.title_tokens(title)}
        return tuple(sorted(seen - set(answer)))


def encode_examples(lm: SplitLM, examples: Sequence[Example]) -> EncodedBatch:
    return encode_answers(
        lm,
        [example.prompt for example in examples],
        [example.answer for example in examples],
        [example.excluded for example in examples],
    )


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[np.ndarray]:
    """Yields indices of rows of similar length. A batch has at most `max_tokens` tokens after padding, or one row."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        longest_next = lengths[order[stop]] if stop < len(order) else 0
        if stop == len(order) or longest_next * (stop + 1 - start) > max_tokens:
            yield order[start:stop]
            start = stop


def groups_of_similar_length(lengths: Sequence[int]) -> Iterator[NDArray[np.int64]]:
    """Yields indices of rows. The longest row of a group is at most 1.5 times as long as its shortest."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop, row in enumerate(order):
        if 2 * lengths[row] > 3 * lengths[order[start]]:
            yield order[start:stop]
            start = stop
    yield order[start:]
