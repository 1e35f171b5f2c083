"""What the bottom half computed for recent prompts, kept so that each prompt runs through it once.

Between an event and the next request the window of a user does not change: the worker encodes it for the memory, and
the request needs the same layer-L states. With the cache only the top half runs for the request. An entry depends on
the tokens of the prompt only, and a token never changes its meaning, even when titles are added, so entries never
become invalid. One cache belongs to one language model. Not thread-safe.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers import DynamicCache

from model_store.lm.padding import pad, pad_values, padding_mask
from model_store.lm.split_lm import SplitLM

DEFAULT_MAX_BYTES = 256 * 2**20


class BottomOutput(NamedTuple):
    """The bottom half's output for a batch of prompts, padded on the left."""

    states: Tensor  # (B, T, D) of layer L
    mask: Tensor  # (B, T) int64, 1 = real
    cache: DynamicCache  # T columns; empty if keys and values are not kept


class CachedWindow(NamedTuple):
    """The bottom half's output for one prompt, without padding."""

    states: Tensor  # (T, D)
    keys_values: tuple[Tensor, ...]  # keys and values of each layer in turn, (T, H, d); empty if they are not kept

    @property
    def num_bytes(self) -> int:
        return self.states.nbytes + sum(part.nbytes for part in self.keys_values)


class WindowCache:
    """The most recently used prompts, at most `max_bytes` in total; 0 switches the cache off.

    `keeps_keys_values`: keep keys and values too. Titles of several tokens need them, because the bottom half reads on
    after the prompt. Item tokens do not.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES, *, keeps_keys_values: bool) -> None:
        self.max_bytes = max_bytes
        self.keeps_keys_values = keeps_keys_values
        self.num_bytes = self.num_hits = self.num_misses = 0
        self._windows: OrderedDict[tuple[int, ...], CachedWindow] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def run_bottom(self, lm: SplitLM, prompts: Sequence[Sequence[int]]) -> BottomOutput:
        """As the function `run_bottom`. Prompts that are not cached run in one pass, equal prompts once."""
        if not self.max_bytes:
            return run_bottom(lm, prompts)
        keys = [tuple(prompt) for prompt in prompts]
        windows = {key: self._windows[key] for key in keys if key in self._windows}
        missing = [key for key in dict.fromkeys(keys) if key not in windows]
        self.num_misses += len(missing)
        self.num_hits += len(keys) - len(missing)
        if missing:
            output = run_bottom(lm, missing, with_cache=self.keeps_keys_values)
            windows |= zip(missing, _split_batch(output, missing), strict=True)
        for key in keys:
            self._keep(key, windows[key])
        return _merge_batch([windows[key] for key in keys])

    def _keep(self, key: tuple[int, ...], window: CachedWindow) -> None:
        if key not in self._windows:
            self._windows[key] = window
            self.num_bytes += window.num_bytes
        self._windows.move_to_end(key)
        while self.num_bytes > self.max_bytes:
            _, oldest = self._windows.popitem(last=False)
            self.num_bytes -= oldest.num_bytes


def run_bottom(lm: SplitLM, prompts: Sequence[Sequence[int]], *, with_cache: bool = True) -> BottomOutput:
    """Run the bottom half over all prompts in one pass; keys and values are kept if `with_cache`."""
    tokens, mask = pad(prompts, device=lm.device)
    cache, _ = lm.new_caches()
    return BottomOutput(lm.bottom(tokens, mask, cache if with_cache else None), mask, cache)


def _split_batch(output: BottomOutput, prompts: Sequence[Sequence[int]]) -> list[CachedWindow]:
    """One window per prompt. Tensors are copied: a view of the batch would keep the whole batch in memory."""
    layers: list[Any] = output.cache.layers
    parts = [part.transpose(1, 2) for layer in layers for part in (layer.keys, layer.values)]
    return [
        CachedWindow(
            output.states[row, -len(prompt) :].clone(), tuple(part[row, -len(prompt) :].clone() for part in parts)
        )
        for row, prompt in enumerate(prompts)
    ]


def _merge_batch(windows: Sequence[CachedWindow]) -> BottomOutput:
    states = pad_values([window.states for window in windows])
    cache = DynamicCache()
    columns = zip(*(window.keys_values for window in windows), strict=True)
    parts = [pad_values(column).transpose(1, 2) for column in columns]
    for index, (keys, values) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        cache.update(keys, values, index)
    return BottomOutput(states, padding_mask([len(window.states) for window in windows], device=states.device), cache)
