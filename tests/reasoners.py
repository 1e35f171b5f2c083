"""A tiny language model with random weights whose tokenizer has the letters of the dialogue."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model_store.reasoner.dialogue import ASPECT_LETTERS, HEAD, MEMORY_LETTERS
from tests.conftest import make_tokenizer

_TEXTS = [HEAD, "Query: Aspects: Need: Memory: Used: Ideal:"]
_LETTERS = [f" {letter}" for letter in ASPECT_LETTERS + MEMORY_LETTERS]


def tiny_tokenizer(*, letters: bool = True) -> PreTrainedTokenizerFast:
    """A space and a letter are one token."""
    texts = [*_TEXTS, *(_LETTERS if letters else [])] * 10
    return make_tokenizer(texts, special="<|im_end|>", role="eos_token")


def tiny_model(vocab_size: int, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def write_tiny_model(directory: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
