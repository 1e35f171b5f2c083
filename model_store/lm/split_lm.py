"""One decoder-only language model as two halves, each with a KV cache of its own.

`bottom` is the embeddings and layers[:L]; its output is the layer-L states. `top` is layers[L:], the final norm and the
head; its input is layer-L states. Both halves are objects of the Hugging Face classes that share all weights and have a
slice of the layers each. Masks, rotary positions, soft-capping and caches are therefore the library's own code.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from model_store.errors import UnsupportedBackbone

# Attribute names in the Hugging Face classes.
_LAYERS = ("layers", "h")
_FINAL_NORMS = ("norm", "final_layer_norm", "ln_f", "final_layernorm")
_PROBE_TOLERANCE = 1e-2  # largest difference of logits, relative to the largest logit


def positions_of(mask: Tensor, num_last: int) -> Tensor:
    """Rotary positions (B, num_last) of the last columns of `mask` (B, T). Padding is not counted."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -num_last:]


class SplitLM:
    """The two halves of `model`. Its layers are renumbered: call `model` only through the halves. Not thread-safe."""

    _bottom: PreTrainedModel
    _top: PreTrainedModel

    def __init__(self, model: PreTrainedModel, split_layer: int) -> None:
        """Raises UnsupportedBackbone unless both halves have layers and together reproduce the logits of `model`."""
        num_layers = model.config.num_hidden_layers
        if not 0 < split_layer < num_layers:
            raise UnsupportedBackbone(f"split layer {split_layer} must lie between 1 and {num_layers - 1}")
        model.eval()
        self.model = model
        self.split_layer = split_layer
        expected = _probe_whole(model)
        self._bottom, self._top = _halves(model, split_layer)
        self._head = _with_base(model, _PassThrough())
        self._check_probe(expected)

    @property
    def device(self) -> torch.device:
        return self._embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        return self._embeddings.dtype

    @property
    def _embeddings(self) -> Tensor:
        """Looked up by name: `next(model.parameters())` takes longer than a product of small matrices."""
        return self.model.get_input_embeddings().get_parameter("weight")

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """V of the checkpoint. Tokens of titles added later are not counted."""
        return int(self.model.config.vocab_size)

    @property
    def attention_window(self) -> int | None:
        """How many tokens a layer with sliding attention sees; None without such layers.

        With a mask of two dimensions the library counts padding between tokens too. With memory and padding between
        tokens, results are therefore right only for sequences that fit into the window. A mask of four dimensions has
        no such limit.
        """
        config = self.model.config
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        return getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None

    def new_caches(self) -> tuple[DynamicCache, DynamicCache]:
        """Empty caches for the bottom and the top half.

        Layers with sliding attention keep all columns as well: the mask, not the cache, hides columns, because padding
        makes columns differ from positions.
        """
        return DynamicCache(), DynamicCache()

    def bottom(
        self, tokens: Tensor, mask: Tensor, cache: DynamicCache | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Layer-L states (B, T, D) of `tokens` (B, T).

        `mask` (B, P + T) covers the P cached columns as well; `cache` is extended in place. For tokens that do not form
        one sequence, `mask` (B, 1, T, P + T) holds the numbers that are added to the attention scores, and `positions`
        (B, T) holds the rotary positions.
        """
        return self._bottom(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions_of(mask, tokens.shape[1]) if positions is None else positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def top(self, states: Tensor, mask: Tensor, cache: DynamicCache | None = None, *, num_logits: int = 0) -> Tensor:
        """Logits (B, num_logits, V) of the last columns of `states` (B, T, D); 0 = all columns.

        `mask` and `cache` as in `bottom`.
        """
        return self.head(self.top_hidden(states, mask, cache)[:, -num_logits:])

    def top_hidden(
        self, states: Tensor, mask: Tensor, cache: DynamicCache | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, T, D) after the final norm: the input of the head, and the embeddings of titles.

        `mask`, `cache` and `positions` as in `bottom`.
        """
        return self._top.base_model(
            inputs_embeds=states,
            attention_mask=mask,
            position_ids=positions_of(mask, states.shape[1]) if positions is None else positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of `hidden` (…, D) from `top_hidden`, with all that the library does after the head.

        All columns are multiplied as one matrix: for a slice of a batch, torch would multiply row by row, many times
        slower.
        """
        return cast(
            Tensor, self._head(inputs_embeds=hidden.flatten(0, -2)[None]).logits[0].unflatten(0, hidden.shape[:-1])
        )

    def replace_linears(self, make: Callable[[str, nn.Linear], nn.Module]) -> None:
        """Replace every linear layer, including the head, by `make(name, layer)`. The old layers are freed."""
        places: dict[int, list[tuple[nn.Module, str]]] = {}  # id of a layer → all its places in halves and head
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
    layers = layers_of(base)
    bottom = _slice(base, 0, split_layer)
    setattr(bottom, _name_among(base, _FINAL_NORMS), nn.Identity())
    top_base = _slice(base, split_layer, len(layers))
    for module in layers_of(top_base).modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int):
            vars(module)["layer_idx"] = index - split_layer
    top = _with_base(model, top_base)
    top.config = top_base.config
    return bottom, top


class _PassThrough(nn.Module):
    """A base model without layers: returns its input, so that only the head is computed."""

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _with_base(model: PreTrainedModel, base: nn.Module) -> PreTrainedModel:
    """A shallow copy of `model` with the same class and head and with `base` instead of its base model."""
    copied = _shallow(model)
    setattr(copied, model.base_model_prefix, base)
    return copied


def _slice(base: PreTrainedModel, start: int, stop: int) -> PreTrainedModel:
    """A shallow copy of `base` with layers[start:stop]. Everything else is shared."""
    part = _shallow(base)
    part.config = _slice_config(base.config, start, stop)
    setattr(part, _name_among(base, _LAYERS), _Layers(list(layers_of(base))[start:stop]))
    return part


class _Layers(nn.ModuleList):
    """Returns slices as tuples. Models read `layers[:n]` at every call, and a ModuleList would build a new module."""

    def __getitem__(self, index: Any) -> Any:
        return tuple(self._modules.values())[index]


def _shallow(module: Any) -> Any:
    """A copy that shares submodules and parameters but can have other submodules put in."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def _slice_config(config: PretrainedConfig, start: int, stop: int) -> PretrainedConfig:
    """A copy of `config` for layers[start:stop]; lists with one entry per layer (`layer_types`, …) are cut as well."""
    num_layers = config.num_hidden_layers
    part = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == num_layers:
            setattr(part, name, value[start:stop])
    part.num_hidden_layers = stop - start
    return part


def layers_of(base: nn.Module) -> nn.ModuleList:
    """The layers of a base model, under whatever name the architecture has. Raises UnsupportedBackbone."""
    layers: nn.ModuleList = getattr(base, _name_among(base, _LAYERS))
    return layers


def final_norm_of(base: nn.Module) -> nn.Module:
    """The norm after the last layer of a base model. Raises UnsupportedBackbone."""
    norm: nn.Module = getattr(base, _name_among(base, _FINAL_NORMS))
    return norm


def _name_among(base: nn.Module, names: Sequence[str]) -> str:
    for name in names:
        if isinstance(getattr(base, name, None), nn.Module):
            return name
    raise UnsupportedBackbone(f"{type(base).__name__} has none of {', '.join(names)}: it cannot be split by layers")
