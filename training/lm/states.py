"""Layer-L states of many windows, computed once and stored: the memory of training users.

In: a split model, users, positions. Out: shards of safetensors with one float16 tensor per user. The bottom half reads
each window once, however many targets have it in their memory. An interrupted run continues at the first missing shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from model_store.inference import encode
from model_store.lm.split_lm import SplitLM
from training.data.splits import Target
from training.lm.windows import Windows, token_batches
from training.run.stage import atomic_file, progress

_USERS_PER_SHARD = 64
_TOKENS_PER_BATCH = 16_384

Spans = dict[int, tuple[int, int]]  # user → [start, stop), positions in the user's history


@dataclass(frozen=True)
class States:
    """Row i of `arrays[user]` (length, D) is the state of the window that ends at position `starts[user]` + i."""

    hidden_size: int
    starts: dict[int, int]
    arrays: dict[int, NDArray[np.float16]]

    def at(self, user: int, positions: np.ndarray) -> NDArray[np.float16]:
        """(len(positions), D) states of windows that end at these positions of the user's history."""
        if not len(positions):
            return np.zeros((0, self.hidden_size), dtype=np.float16)
        return self.arrays[user][positions - self.starts[user]]


def encode_prompts(lm: SplitLM, prompts: Sequence[Sequence[int]]) -> NDArray[np.float16]:
    """(W, D) states in the order of `prompts`; batches are made of prompts of similar length."""
    states = np.empty((len(prompts), lm.hidden_size), dtype=np.float16)
    for rows in token_batches([len(prompt) for prompt in prompts], _TOKENS_PER_BATCH):
        states[rows] = encode(lm, [prompts[row] for row in rows])
    return states


def window_states(lm: SplitLM, windows: Windows, spans: Spans, directory: Path) -> States:
    """States of the windows that end at the positions of each user's span.

    One directory belongs to one set of spans: call with the same spans each time.
    """
    directory.mkdir(parents=True, exist_ok=True)
    users = sorted(spans)
    shards = [users[start : start + _USERS_PER_SHARD] for start in range(0, len(users), _USERS_PER_SHARD)]
    bar = progress(total=_num_windows(spans, users), desc="states", unit="window")
    for number, shard in enumerate(shards):
        file = directory / f"states-{number:05d}.safetensors"
        if not file.is_file():
            encoded = _encode_shard(lm, windows, {user: spans[user] for user in shard})
            with atomic_file(file) as draft:
                save_file(encoded, draft)
        bar.update(_num_windows(spans, shard))
    bar.close()
    return load_states(directory, lm.hidden_size)


def _num_windows(spans: Spans, users: Sequence[int]) -> int:
    return sum(spans[user][1] - spans[user][0] for user in users)


def load_states(directory: Path, hidden_size: int) -> States:
    states = States(hidden_size, {}, {})
    for file in sorted(directory.glob("states-*.safetensors")):
        for name, array in load_file(file).items():
            user, start = map(int, name.split(":"))
            states.starts[user], states.arrays[user] = start, array
    return states


def _encode_shard(lm: SplitLM, windows: Windows, spans: Spans) -> dict[str, NDArray[np.float16]]:
    """One tensor per user, named "user:start"."""
    prompts = [windows.prompt_ending_at(user, at) for user, span in spans.items() for at in range(*span)]
    ends = np.cumsum([stop - start for start, stop in spans.values()])
    arrays = np.split(encode_prompts(lm, prompts), ends[:-1])
    return {f"{user}:{start}": array.copy() for (user, (start, _)), array in zip(spans.items(), arrays, strict=True)}


def spans_of(windows: Windows, targets: Sequence[Target]) -> Spans:
    """For each user the range of positions whose states the memories of these targets need."""
    spans: Spans = {}
    for target in targets:
        positions = windows.memory_positions(target)
        if len(positions):
            first, last = int(positions[0]), int(positions[-1])
            start, stop = spans.get(target.user, (first, last + 1))
            spans[target.user] = (min(start, first), max(stop, last + 1))
    return spans
