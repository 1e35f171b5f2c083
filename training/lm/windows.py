"""Histories as prompts: the window before a target, the windows that make its memory.

Rows of items become titles here and nowhere else in training, so that all stages show the model the same text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model_store.lm.split_lm import SplitLM
from model_store.text.history import window_ending_at
from model_store.text.prompt import ItemPrompt, Prompt
from training.data.splits import Split, Target
from training.lm.likelihood import Read, read


@dataclass(frozen=True)
class Example:
    """A target with what may be known before it; `memory_positions` are of the user's history, oldest first.

    `excluded` are the tokens of items that the user had and, as nobody comes back to an item, will not choose: what
    memory says of them is no help. Item vocabulary only; a title's first token belongs to other titles too.
    """

    user: int
    position: int
    prompt: list[int]
    answer: tuple[int, ...]
    memory_positions: np.ndarray
    excluded: tuple[int, ...] = ()


class Windows:
    """Prompts over one split. `max_memory` is M."""

    def __init__(self, split: Split, prompt: Prompt, max_memory: int) -> None:
        self.split, self.prompt, self.max_memory = split, prompt, max_memory

    @property
    def recent_length(self) -> int:
        return self.prompt.spec.recent_length

    def titles(self, items: Sequence[int] | np.ndarray) -> list[str]:
        return [self.split.titles[item] for item in items]

    def prompt_ending_at(self, user: int, position: int) -> list[int]:
        """x_{u,h_m}: the prompt of the window that ends with the event at `position`."""
        items = self.split.histories[user].items.tolist()
        return self.prompt.tokens(self.titles(window_ending_at(items, position, self.recent_length)))

    def memory_positions(self, target: Target) -> np.ndarray:
        """Everything older than the K recent events, the newest M of it, oldest first."""
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
        had = {token for title in self.titles(items) for token in self.prompt.title_tokens(title)}
        return tuple(sorted(had - set(answer)))


def read_examples(lm: SplitLM, examples: Sequence[Example]) -> Read:
    return read(
        lm,
        [example.prompt for example in examples],
        [example.answer for example in examples],
        [example.excluded for example in examples],
    )


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[np.ndarray]:
    """Indices of rows of like length, each batch at most `max_tokens` padded tokens (or one row)."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        longest_next = lengths[order[stop]] if stop < len(order) else 0
        if stop == len(order) or longest_next * (stop + 1 - start) > max_tokens:
            yield order[start:stop]
            start = stop
