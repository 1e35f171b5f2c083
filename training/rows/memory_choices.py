"""Rules that choose the states which the generator reads. In: an example. Out: places in its memory, oldest first."""

from collections.abc import Callable, Sequence

import numpy as np

from training.lm.windows import Example
from training.memory.annotations import Annotation

ChooseMemories = Callable[[Example], tuple[int, ...] | None]  # None leaves the choice to the bundle's retriever


def no_memory(example: Example) -> tuple[int, ...]:
    return ()


def retriever_choice(example: Example) -> None:
    return None


def random_choice(count: int, seed: int) -> ChooseMemories:
    """`count` random memories. Each call draws again, so the choice depends on the order of the examples."""
    rng = np.random.default_rng(seed)
    return lambda example: tuple(np.sort(rng.permutation(len(example.memory_positions))[:count]).tolist())


def newest_choice(count: int) -> ChooseMemories:
    def choose(example: Example) -> tuple[int, ...]:
        num_memories = len(example.memory_positions)
        return tuple(range(max(0, num_memories - count), num_memories))

    return choose


def best_single_choice(annotations: Sequence[Annotation]) -> ChooseMemories:
    """The one memory that raises the probability of the true title most, or none: this rule knows the answer."""
    gains = {(each.user, each.position): each.gains("log_gain") for each in annotations}

    def choose(example: Example) -> tuple[int, ...]:
        gain = gains[example.user, example.position]
        return (int(gain.argmax()),) if gain.max(initial=0) > 0 else ()

    return choose
