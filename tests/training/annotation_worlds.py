"""Annotations made up for tests: known gains, and states from which a retriever can learn."""

import numpy as np

from training.lm.states import States
from training.memory.annotations import Annotation, AnnotationSet

D, M = 16, 8  # hidden size, memories of a target


def annotation(user: int, query: np.ndarray, gains: np.ndarray, num_tokens: int = 1) -> Annotation:
    log_probs = np.concatenate([[-9.0], -9.0 + gains * num_tokens]).astype(np.float32)
    return Annotation(user, 20, np.arange(len(gains)), query.astype(np.float16), log_probs, num_tokens)


def states_of(memories: list[np.ndarray]) -> States:
    arrays = {user: memory.astype(np.float16) for user, memory in enumerate(memories)}
    return States(D, dict.fromkeys(arrays, 0), arrays)


def learnable(num_users: int, rng: np.random.Generator, *, helps: bool) -> tuple[list[Annotation], list[np.ndarray]]:
    """Annotations and memories of a task that a retriever can learn.

    The query of each user is a linear map of one of the user's random memories. That memory has a gain, the others a
    small loss. All states share a large component, as the hidden states of a language model do.
    """
    world = np.random.default_rng(99)
    image, shared = world.normal(size=(D, D)) / D**0.5, 2 * world.normal(size=D)
    memories = [shared + rng.normal(size=(M, D)) for _ in range(num_users)]
    right = rng.integers(M, size=num_users)
    gains = np.full((num_users, M), -0.5)
    if helps:
        gains[np.arange(num_users), right] = 1.0
    queries = [shared + (memory[place] - shared) @ image for memory, place in zip(memories, right, strict=True)]
    return [annotation(user, queries[user], gains[user]) for user in range(num_users)], memories


def annotated(num_teach: int, *, helps: bool) -> AnnotationSet:
    """Besides, 100 annotations choose and 60 judge."""
    found, memories = learnable(num_teach + 160, np.random.default_rng(0), helps=helps)
    return AnnotationSet(found[:num_teach], found[num_teach:-60], found[-60:], states_of(memories))


def made_up(log_probs: list[float], num_tokens: int = 2) -> Annotation:
    memory = np.arange(len(log_probs) - 1)
    return Annotation(0, 9, memory, np.zeros(4, np.float16), np.array(log_probs, np.float32), num_tokens)
