"""Small real parts for all tests: random checkpoints of several architectures, a tokenizer, a bundle.

`bundle_path`, `bundle` and `make_bundle` have the title vocabulary, unless the test is marked `BOTH_VOCABULARIES` or
`ITEMS_ONLY`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import settings
from scipy import sparse
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model_store.bundle import Bundle, BundleWriter, build_retriever
from model_store.catalogue.items import Item
from model_store.files import describe_files, weights_sha256
from model_store.grounding import ItemIndex
from model_store.lm.checkpoint import save_pieces
from model_store.manifest import (
    BackboneSpec,
    GenerationSpec,
    Manifest,
    MemorySpec,
    PromptSpec,
    RetrieverSpec,
    Vocabulary,
    VoicesSpec,
    space_id,
)
from model_store.memory.codec import StateDtype
from model_store.text.history import clean_title
from model_store.text.vocabulary import ItemVocabulary
from model_store.voices.past import ItemFacts
from model_store.voices.voices import Voices

settings.register_profile("automr", deadline=None)  # examples may be slow on a busy machine
settings.load_profile("automr")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_ADJECTIVES, _NOUNS = ("Red", "Red Hot", "Blue", "Silent", "Last"), ("Moon", "River", "Tea", "Teapot")
TITLES = [f"{adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
_COMMON = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_SMALL_HEADS = {**_GROUPED, "head_dim": 8}
SMALL_RETRIEVER, SMALL_GENERATION = RetrieverSpec(width=16, top_k=2), GenerationSpec(num_beams=5)
BOTH_VOCABULARIES = pytest.mark.parametrize("vocabulary", ["titles", "items"], indirect=True, scope="session")
ITEMS_ONLY = pytest.mark.parametrize("vocabulary", ["items"], indirect=True, scope="session")
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


# The files that take longest come first: one that starts last would keep the other processes waiting.
LONGEST = (
    "tests/test_synthetic_world.py",
    "tests/docs/test_docs.py",
    "tests/test_end_to_end.py",
    "tests/service/engine/test_process.py",
    "tests/service/test_server.py",
    "tests/service/http/test_bad_input.py",
    "tests/training/test_pipeline.py",
    "tests/service/usecases/test_ingest.py",
    "tests/training/test_study.py",
    "tests/service/store/test_cluster.py",
)


@pytest.hookimpl(trylast=True)  # pytest itself sorts by parameters of fixtures
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.nodeid.partition("::")[0]) in LONGEST else 99)


def make_tokenizer(
    texts: Sequence[str], special: str = "<s>", role: str = "bos_token"
) -> transformers.PreTrainedTokenizerFast:
    """Byte-level, as those of pretrained models. `special`: its only special token, with this role."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{role: special})


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


def write_checkpoint(
    directory: Path, architecture: str, titles: Sequence[str], vocabulary: Vocabulary, *, seed: int = 0, **sizes: int
) -> None:
    """Random weights and a tokenizer. With item tokens also a row for each distinct title and random pieces."""
    tokenizer = make_tokenizer(TITLES)
    if vocabulary == "titles":
        make_model(architecture, seed=seed, **sizes).save_pretrained(directory)
    else:
        items = ItemVocabulary(list(dict.fromkeys(map(clean_title, titles))), tokenizer)
        model = make_model(architecture, len(items), seed=seed, **sizes)
        model.save_pretrained(directory)
        items.save(directory)
        pieces = 0.3 * torch.randn(2, len(tokenizer), model.config.hidden_size)
        save_pieces(directory, pieces[0], None if model.config.tie_word_embeddings else pieces[1])
    tokenizer.save_pretrained(directory)


def ring(num_items: int) -> sparse.csr_matrix:
    """A table in which the only neighbour of token t is t + 1, and that of the last token the first."""
    tokens = np.arange(1, num_items + 1)
    size = num_items + 1
    return sparse.csr_matrix((np.ones(num_items, np.float32), (tokens, np.append(tokens[1:], 1))), (size, size))


def small_voices(num_items: int, *, recent_length: int = 3, past_length: int = 12, has_returns: bool = True) -> Voices:
    """Voices with the table `near` of `ring` and random networks, so that every feature counts."""
    spec = VoicesSpec(tables=("near",), recent_length=recent_length, past_length=past_length, has_returns=has_returns)
    size = num_items + 1
    popularity = np.append(0, np.arange(num_items, 0, -1)).astype(np.float32)
    facts = ItemFacts(popularity, np.full(size, 0.2, np.float32), np.full(size, 2.0, np.float32))
    voices = Voices(spec, facts, {"near": ring(num_items)})
    torch.manual_seed(3)
    for network in (*voices.gates, voices.combiner):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return voices


def write_bundle(
    path: Path,
    *,
    architecture: str = "llama",
    vocabulary: Vocabulary = "titles",
    titles: Sequence[str] = tuple(TITLES),
    known_titles: Sequence[str] | None = None,
    recent_length: int = 3,
    retriever: RetrieverSpec = SMALL_RETRIEVER,
    generation: GenerationSpec = SMALL_GENERATION,
    state_dtype: StateDtype = "float16",
    cut: str = "time",
    seed: int = 0,
    voices: Voices | None = None,
) -> Manifest:
    """Write a bundle with random weights.

    `known_titles`: the titles that have item tokens from training, by default all titles. `voices`: see `small_voices`;
    item vocabulary only.
    """
    checkpoint = path.with_name(path.name + "-checkpoint")
    write_checkpoint(checkpoint, architecture, titles if known_titles is None else known_titles, vocabulary, seed=seed)
    backbone = BackboneSpec(
        base_model=f"random-{architecture}",
        weights_sha256=weights_sha256(describe_files(checkpoint)),
        split_layer=2,
        num_layers=4,
        hidden_size=32,
    )
    head = "Chosen:\n" if vocabulary == "titles" else ""
    prompt = PromptSpec(head=head, recent_length=recent_length)
    memory = MemorySpec(max_elements=20, state_dtype=state_dtype)
    manifest = Manifest(
        name=path.name,
        created_at="2026-01-01T00:00:00Z",
        vocabulary=vocabulary,
        backbone=backbone,
        prompt=prompt,
        memory=memory,
        retriever=retriever,
        generation=generation,
        voices=None if voices is None else voices.spec,
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
        if voices is not None:
            writer.add_voices(voices)
        return writer.finish(manifest)


@pytest.fixture(scope="session")
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    chosen: Vocabulary = getattr(request, "param", "titles")
    return chosen


@pytest.fixture(scope="session")
def bundle_path(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bundle for the whole session. Do not change its files."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(path, vocabulary=vocabulary)
    return path


@pytest.fixture
def make_bundle(vocabulary: Vocabulary, tmp_path: Path) -> Callable[..., Path]:
    """A function with the options of `write_bundle`. Each call replaces the bundle of the call before."""

    def make(**options: Any) -> Path:
        path = tmp_path / "bundle"
        write_bundle(path, **{"vocabulary": vocabulary, **options})
        return path

    return make


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    """A newly opened bundle, whose catalogue tests may change."""
    return Bundle.open(bundle_path)
