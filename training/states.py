"""Layer-L states of many windows, computed once and kept: the memory of training users.

In: a split model, users, positions. Out: shards of safetensors, one tensor (length, D) float16 per user, so that tuning,
annotation and evaluation share the work of the bottom half. Resumes at the first missing shard.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from model_store.inference import encode
from model_store.split_lm import SplitLM
from training.data.splits import Target
from training.stage import progress
from training.windows import Windows, token_batches

_USERS_PER_SHARD = 64
_TOKENS_PER_BATCH = 16_384

States = dict[int, NDArray[np.float16]]


def encode_prompts(lm: SplitLM, prompts: Sequence[Sequence[int]]) -> NDArray[np.float16]:
    """(W, D) in the order of `prompts`, batched by length."""
    states = np.empty((len(prompts), lm.hidden_size), dtype=np.float16)
    for rows in token_batches([len(prompt) for prompt in prompts], _TOKENS_PER_BATCH):
        states[rows] = encode(lm, [prompts[row] for row in rows])
    return states


def window_states(lm: SplitLM, windows: Windows, spans: dict[int, tuple[int, int]], directory: Path) -> States:
    """States of the windows ending at positions [start, stop) of each user; row p of a user's array is position p.

    Rows outside the span are zero. Ask always with the same spans for one directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    users = sorted(spans)
    shards = [users[start : start + _USERS_PER_SHARD] for start in range(0, len(users), _USERS_PER_SHARD)]
    for number, shard in enumerate(progress(shards, desc="states", unit="shard")):
        file = directory / f"states-{number:05d}.safetensors"
        if not file.is_file():
            draft = file.with_suffix(".draft")
            save_file({str(user): array for user, array in _encode_shard(lm, windows, shard, spans).items()}, draft)
            draft.replace(file)
    return load_states(directory)


def load_states(directory: Path) -> States:
    return {
        int(user): array for file in sorted(directory.glob("states-*.safetensors")) for user, array in load_file(file).items()
    }


def _encode_shard(lm: SplitLM, windows: Windows, users: Sequence[int], spans: dict[int, tuple[int, int]]) -> States:
    places = [(user, position) for user in users for position in range(*spans[user])]
    encoded = encode_prompts(lm, [windows.prompt_ending_at(user, position) for user, position in places])
    states = {user: np.zeros((max(spans[user][1], 1), lm.hidden_size), dtype=np.float16) for user in users}
    for (user, position), state in zip(places, encoded, strict=True):
        states[user][position] = state
    return states


def spans_of(windows: Windows, targets: Sequence[Target]) -> dict[int, tuple[int, int]]:
    """The positions whose states the memories of these targets need, per user."""
    spans: dict[int, tuple[int, int]] = {}
    for target in targets:
        positions = windows.example(target).memory_positions
        if len(positions):
            start, stop = spans.get(target.user, (int(positions[0]), 0))
            spans[target.user] = (min(start, int(positions[0])), max(stop, int(positions[-1]) + 1))
    return spans
