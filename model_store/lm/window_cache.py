"""What the bottom half made of the latest windows, so that a window is read once.

Between an event and the next request for recommendations the window of a user does not change: the worker has encoded
it for the memory, and the request needs the same states again. Then only the top half is left to run. An entry depends
on the tokens of the prompt alone; tokens never change their meaning, not even when titles come later, so no entry is
ever wrong. Belongs to one language model. The engine only.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from model_store.lm.split_lm import SplitLM, mask_left, pad_left

DEFAULT_MAX_BYTES = 256 * 2**20


class Bottom(NamedTuple):
    """The bottom half's reading of a batch of prompts, padded on the left."""

    states: Tensor  # (B, T, D) of layer L
    mask: Tensor  # (B, T) int64
    cache: DynamicCache  # of T columns; empty where nothing is read after the prompt


class Window(NamedTuple):
    """The same of one prompt, without padding."""

    states: Tensor  # (T, D)
    layers: tuple[Tensor, ...]  # keys and values in turn, (T, H, d) each; none where nothing is read after the prompt

    @property
    def num_bytes(self) -> int:
        return self.states.nbytes + sum(layer.nbytes for layer in self.layers)


class WindowCache:
    """The windows used last, within `max_bytes`; 0 keeps none.

    `has_layers` tells whether keys and values are kept too: titles of several tokens go on from them, items do not.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES, *, has_layers: bool) -> None:
        self.max_bytes = max_bytes
        self.has_layers = has_layers
        self.num_bytes = self.num_hits = self.num_misses = 0
        self._windows: OrderedDict[tuple[int, ...], Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def read(self, lm: SplitLM, prompts: Sequence[Sequence[int]]) -> Bottom:
        """As `read_bottom`. Windows that are missing are read together, equal ones once."""
        if not self.max_bytes:
            return read_bottom(lm, prompts)
        keys = [tuple(prompt) for prompt in prompts]
        windows = {key: self._windows[key] for key in keys if key in self._windows}
        missing = [key for key in dict.fromkeys(keys) if key not in windows]
        self.num_misses += len(missing)
        self.num_hits += len(keys) - len(missing)
        if missing:
            windows |= zip(missing, _apart(read_bottom(lm, missing, has_cache=self.has_layers), missing), strict=True)
        for key in keys:
            self._keep(key, windows[key])
        return _together([windows[key] for key in keys])

    def _keep(self, key: tuple[int, ...], window: Window) -> None:
        if key not in self._windows:
            self._windows[key] = window
            self.num_bytes += window.num_bytes
        self._windows.move_to_end(key)
        while self.num_bytes > self.max_bytes:
            _, oldest = self._windows.popitem(last=False)
            self.num_bytes -= oldest.num_bytes


def read_bottom(lm: SplitLM, prompts: Sequence[Sequence[int]], *, has_cache: bool = True) -> Bottom:
    """Reads all prompts in one pass."""
    tokens, mask = pad_left(prompts, lm.device)
    cache, _ = lm.new_caches()
    return Bottom(lm.bottom(tokens, mask, cache if has_cache else None), mask, cache)


def _apart(bottom: Bottom, prompts: Sequence[Sequence[int]]) -> list[Window]:
    """Copies, or one window would keep its whole batch."""
    layers: list[Any] = bottom.cache.layers
    pairs = [part.transpose(1, 2) for layer in layers for part in (layer.keys, layer.values)]
    return [
        Window(bottom.states[row, -len(prompt) :].clone(), tuple(part[row, -len(prompt) :].clone() for part in pairs))
        for row, prompt in enumerate(prompts)
    ]


def _together(windows: Sequence[Window]) -> Bottom:
    states = _pad_left([window.states for window in windows])
    cache = DynamicCache()
    layers = [_pad_left(parts).transpose(1, 2) for parts in zip(*(window.layers for window in windows), strict=True)]
    for index, (keys, values) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        cache.update(keys, values, index)
    return Bottom(states, mask_left([len(window.states) for window in windows], states.device), cache)


def _pad_left(parts: Sequence[Tensor]) -> Tensor:
    """(B, T, …) of tensors (T, …)."""
    return parts[0][None] if len(parts) == 1 else pad_sequence(list(parts), batch_first=True, padding_side="left")
