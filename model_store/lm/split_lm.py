"""One decoder-only language model as two halves with a KV cache each.

`bottom` is embeddings + layers[:L]; its output is the layer-L states. `top` is layers[L:] + final norm + head; its
input is layer-L states. Both are the Hugging Face classes themselves over shared weights, with a slice of the layers,
so masks, rotary positions, soft-capping and caches stay the library's. Knows neither prompts nor memory.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from model_store.errors import UnsupportedBackbone

_LAYERS = ("layers", "h")
_FINAL_NORMS = ("norm", "final_layer_norm", "ln_f", "final_layernorm")
_PROBE_TOLERANCE = 1e-2


class Padded(NamedTuple):
    """A ragged batch, padded on the left so that the last token of every row stands at index -1."""

    tokens: Tensor  # (B, T) int64
    mask: Tensor  # (B, T) int64, 1 = real


def pad_left(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Padded:
    lengths = [len(row) for row in rows]
    mask = mask_left(lengths)
    tokens = torch.zeros_like(mask)
    tokens[mask == 1] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return Padded(tokens.to(device), mask.to(device))


def mask_left(lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """(B, T) int64: the last `lengths[b]` columns of row b are real."""
    width = max(lengths)
    missing = width - torch.tensor(lengths)
    return (torch.arange(width) >= missing[:, None]).long().to(device)


def positions_of(mask: Tensor, num_last: int) -> Tensor:
    """(B, num_last) rotary positions of the last columns of a mask: padding does not count."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -num_last:]


class SplitLM:
    """Takes `model` over: its layers are renumbered, so call it only through the halves afterwards. Not thread-safe."""

    _bottom: PreTrainedModel
    _top: PreTrainedModel

    def __init__(self, model: PreTrainedModel, split_layer: int) -> None:
        num_layers = model.config.num_hidden_layers
        if not 0 < split_layer < num_layers:
            raise UnsupportedBackbone(f"split layer {split_layer} must lie between 1 and {num_layers - 1}")
        model.eval()
        self.model = model
        self.split_layer = split_layer
        expected = _probe_whole(model)
        self._bottom, self._top = _halves(model, split_layer)
        self._head = _with_base(model, _Echo())
        self._check_probe(expected)

    @property
    def device(self) -> torch.device:
        return self._embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        return self._embeddings.dtype

    @property
    def _embeddings(self) -> Tensor:
        """Asked often: to search all parameters of a model for the first takes longer than to multiply small ones."""
        return self.model.get_input_embeddings().get_parameter("weight")

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Of the checkpoint; items that came later are not counted."""
        return int(self.model.config.vocab_size)

    @property
    def attention_window(self) -> int | None:
        """Tokens that a layer with sliding attention sees, None without such layers.

        With a mask of two dimensions the library counts padding between tokens as well: only sequences that fit the
        window are computed faithfully when memory and padding stand side by side. A mask of four dimensions says all.
        """
        config = self.model.config
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        return getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None

    def new_caches(self) -> tuple[DynamicCache, DynamicCache]:
        """Empty caches for the bottom and the top half. No layer forgets, not even one whose attention slides: columns
        are not positions, and which of them are seen is the mask's business."""
        return DynamicCache(), DynamicCache()

    def bottom(
        self, tokens: Tensor, mask: Tensor, cache: DynamicCache | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Layer-L states (B, T, D) of `tokens` (B, T).

        `mask` (B, P + T) covers the P cached columns as well; `cache` is extended in place. Where columns do not simply
        follow one another, `mask` (B, 1, T, P + T) is what is added to the attention of each, and `positions` (B, T)
        are their rotary positions.
        """
        return self._bottom(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions_of(mask, tokens.shape[1]) if positions is None else positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def top(self, states: Tensor, mask: Tensor, cache: DynamicCache | None = None, *, num_logits: int = 0) -> Tensor:
        """Logits (B, num_logits, V) of the last columns of `states` (B, T, D); 0 means all. Otherwise as `bottom`."""
        return self.head(self.top_hidden(states, mask, cache)[:, -num_logits:])

    def top_hidden(
        self, states: Tensor, mask: Tensor, cache: DynamicCache | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) after the final norm: what the head reads, and what embeds titles. Otherwise as `bottom`."""
        return self._top.base_model(
            inputs_embeds=states,
            attention_mask=mask,
            position_ids=positions_of(mask, states.shape[1]) if positions is None else positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of what `top_hidden` returned (..., D): the library's head, and whatever it does after it.

        As one matrix: of some columns of a batch, torch would make a product per row, many times slower.
        """
        return cast(
            Tensor, self._head(inputs_embeds=hidden.flatten(0, -2)[None]).logits[0].unflatten(0, hidden.shape[:-1])
        )

    def replace_linears(self, make: Callable[[str, nn.Linear], nn.Module]) -> None:
        """Puts `make(name, layer)` in the place of each linear layer, the head's too; a replaced one is freed."""
        places: dict[int, list[tuple[nn.Module, str]]] = {}  # halves and head share layers
        for whole in (self.model, self._bottom, self._top, self._head):
            for parent in whole.modules():
                for name, child in parent.named_children():
                    if isinstance(child, nn.Linear) and (parent, name) not in places.setdefault(id(child), []):
                        places[id(child)].append((parent, name))
        for shared in places.values():
            parent, name = shared[0]
            made = make(name, cast(nn.Linear, getattr(parent, name)))
            for parent, name in shared:
                setattr(parent, name, made)

    def _check_probe(self, expected: Tensor) -> None:
        tokens = _probe_tokens(self.model)
        mask = torch.ones_like(tokens)
        with torch.inference_mode():
            actual = self.top(self.bottom(tokens, mask), mask).float()
        worst = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        if not worst <= _PROBE_TOLERANCE:
            raise UnsupportedBackbone(
                f"{type(self.model).__name__}: the two halves differ from the whole model by {worst:.2g} (relative). "
                "Choose a decoder-only checkpoint with rotary positions "
                "(Llama, Mistral, Qwen, Gemma, Phi-3, OLMo 2, GPT-NeoX)."
            )


def _probe_tokens(model: PreTrainedModel) -> Tensor:
    return torch.arange(8, device=model.device)[None] % model.config.vocab_size


@torch.inference_mode()
def _probe_whole(model: PreTrainedModel) -> Tensor:
    return model(input_ids=_probe_tokens(model), use_cache=False).logits.float()


def _halves(model: PreTrainedModel, split_layer: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    base = cast(PreTrainedModel, model.base_model)
    layers = _layers(base)
    bottom = _slice(base, 0, split_layer)
    setattr(bottom, _name_among(base, _FINAL_NORMS), nn.Identity())
    top_base = _slice(base, split_layer, len(layers))
    for module in _layers(top_base).modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int):
            vars(module)["layer_idx"] = index - split_layer
    top = _with_base(model, top_base)
    top.config = top_base.config
    return bottom, top


class _Echo(nn.Module):
    """Stands in for all layers where only the head is wanted."""

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _with_base(model: PreTrainedModel, base: nn.Module) -> PreTrainedModel:
    """The same language model class and head over another base."""
    twin = _shallow(model)
    setattr(twin, model.base_model_prefix, base)
    return twin


def _slice(base: PreTrainedModel, start: int, stop: int) -> PreTrainedModel:
    """The same class over layers[start:stop]; everything else is shared."""
    part = _shallow(base)
    part.config = _slice_config(base.config, start, stop)
    setattr(part, _name_among(base, _LAYERS), _Layers(list(_layers(base))[start:stop]))
    return part


class _Layers(nn.ModuleList):
    """Models ask for `layers[:n]` at every call, for which a ModuleList would make a new ModuleList."""

    def __getitem__(self, index: Any) -> Any:
        return tuple(self._modules.values())[index]


def _shallow(module: Any) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _slice_config(config: PretrainedConfig, start: int, stop: int) -> PretrainedConfig:
    """Per-layer lists (`layer_types`, …) are cut with the layers."""
    num_layers = config.num_hidden_layers
    part = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == num_layers:
            setattr(part, name, value[start:stop])
    part.num_hidden_layers = stop - start
    return part


def _layers(base: nn.Module) -> nn.ModuleList:
    layers: nn.ModuleList = getattr(base, _name_among(base, _LAYERS))
    return layers


def _name_among(base: nn.Module, names: Sequence[str]) -> str:
    for name in names:
        if isinstance(getattr(base, name, None), nn.Module):
            return name
    raise UnsupportedBackbone(f"{type(base).__name__} has none of {', '.join(names)}: it cannot be split by layers")
