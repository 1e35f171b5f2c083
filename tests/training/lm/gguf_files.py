"""Writes tiny random models as GGUF files, as llama.cpp's converter does, with the package `gguf`."""

import json
from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.conftest import TITLES, make_model, make_tokenizer

# Numbers that a block of a quantised type holds must divide the width of each matrix.
SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(
    file: Path, architecture: str = "llama", *, seed: int = 0, quantised: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Returns the model and the tokenizer that the file holds. `quantised`: matrices in Q8_0 instead of F32."""
    model, tokenizer = make_model(architecture, seed=seed, **SIZES), make_tokenizer(TITLES)
    writer = gguf.GGUFWriter(file, architecture)
    _add_config(writer, model)
    _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    for name, tensor in model.state_dict().items():
        array = _as_stored(name, tensor.numpy(), model, architecture)
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(_stored_name(name), gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_stored_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


def _add_config(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    unused = [f"<unused{number}>" for number in range(vocab_size - len(tokens))]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([control, *[normal] * (len(tokens) - 1), *[control] * len(unused)])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _stored_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in _OTHERS:
        return f"{_OTHERS[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_BLOCK[part]}.{kind}"


def _as_stored(name: str, array: np.ndarray, model: PreTrainedModel, architecture: str) -> np.ndarray:
    """Llama's queries and keys are stored in the order of rotation of llama.cpp."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    part = name.split(".")[-2]
    if architecture != "llama" or part not in heads:
        return array
    halves = array.reshape(heads[part], 2, -1, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
