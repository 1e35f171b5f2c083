"""Small real parts for all tests: tiny random checkpoints of several architectures, a tokenizer, a bundle."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model_store.bundle import Bundle, BundleWriter, build_retriever, describe_files, weights_sha256
from model_store.catalogue import Item
from model_store.grounding import ItemIndex
from model_store.manifest import BackboneSpec, GenerationSpec, Manifest, MemorySpec, PromptSpec, RetrieverSpec, space_id

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_ADJECTIVES, _NOUNS = ("Red", "Red Hot", "Blue", "Silent", "Last"), ("Moon", "River", "Tea", "Teapot")
TITLES = [f"{adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
_COMMON = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_SMALL_HEADS = {**_GROUPED, "head_dim": 8}
SMALL_RETRIEVER, SMALL_GENERATION = RetrieverSpec(width=16, top_k=2), GenerationSpec(num_beams=5)
ARCHITECTURES: dict[str, tuple[str, dict[str, int]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", _SMALL_HEADS),
    "gemma": ("GemmaConfig", _SMALL_HEADS),
    "gemma2": ("Gemma2Config", {**_SMALL_HEADS, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3Config", _GROUPED),
    "olmo2": ("Olmo2Config", _GROUPED),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
}


def make_tokenizer(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def make_model(
    architecture: str, vocab_size: int = 400, seed: int = 0, **other_sizes: int
) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    name, sizes = ARCHITECTURES[architecture]
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, name)(
        vocab_size=vocab_size, initializer_range=0.3, **{**special, **sizes, **other_sizes}
    )
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval()


def write_bundle(
    path: Path,
    *,
    architecture: str = "llama",
    titles: Sequence[str] = tuple(TITLES),
    recent_length: int = 3,
    retriever: RetrieverSpec = SMALL_RETRIEVER,
    generation: GenerationSpec = SMALL_GENERATION,
    cut: str = "time",
) -> Manifest:
    """A bundle of random weights: every part real, nothing learned."""
    checkpoint = path.with_name(path.name + "-checkpoint")
    model = make_model(architecture)
    model.save_pretrained(checkpoint)
    make_tokenizer(TITLES).save_pretrained(checkpoint)
    backbone = BackboneSpec(
        base_model=f"random-{architecture}",
        weights_sha256=weights_sha256(describe_files(checkpoint)),
        split_layer=2,
        num_layers=4,
        hidden_size=32,
    )
    prompt, memory = PromptSpec(head="Chosen:\n", recent_length=recent_length), MemorySpec(max_elements=20)
    manifest = Manifest(
        name=path.name,
        created_at="2026-01-01T00:00:00Z",
        backbone=backbone,
        prompt=prompt,
        memory=memory,
        retriever=retriever,
        generation=generation,
        num_items=len(titles),
        space=space_id(backbone, prompt, memory),
        provenance={"cut": cut},
    )
    torch.manual_seed(1)
    items = [
        Item(f"i{row}", title, popularity=len(titles) - row, attributes={"even": row % 2 == 0})
        for row, title in enumerate(titles)
    ]
    with BundleWriter(path) as writer:
        writer.add_lm(checkpoint)
        writer.add_retriever(build_retriever(manifest))
        writer.add_items(items)
        writer.add_index(ItemIndex.build(torch.randn(len(titles), 32).numpy()))
        return writer.finish(manifest)


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the session: read it, never change it."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(path)
    return path


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Takes the options of `write_bundle`; the bundle is the test's own."""

    def make(**options: Any) -> Path:
        path = tmp_path / "bundle"
        write_bundle(path, **options)
        return path

    return make


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    """A fresh copy in memory: tests may change its catalogue."""
    return Bundle.open(bundle_path)
