"""Models of a known shape with random weights, and a synthetic catalogue for them, for the benchmarks.

The catalogue consists of series. A series has a few words of its own; each of its titles is the name of the series and
some of these words. So titles share beginnings as the titles of real series do, some titles are the beginning of
another, and some occur twice. The embeddings of the words of one series attract each other, and words and the
terminator attract each other: a title that has begun is likely to go on or to end, as after training. With purely
random weights every token would cost the same, so the shortest titles would always win and beams would end early.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from model_store.answers import Query
from model_store.bundle import Bundle, BundleWriter, build_retriever
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from model_store.files import describe_files, weights_sha256
from model_store.grounding import ItemIndex
from model_store.inference import encode
from model_store.lm.split_lm import SplitLM
from model_store.manifest import (
    BackboneSpec,
    GenerationSpec,
    Manifest,
    MemorySpec,
    PromptSpec,
    RetrieverSpec,
    space_id,
)
from model_store.text.prompt import Prompt

RECENT = 10  # K
MEMORIES = 90  # M
_NAME_WORDS, _OTHER_WORDS, _TITLES_PER_SERIES = 2, 10, 10
_SPECIAL = ["<unk>", "<s>", "\n"]
_RETRIEVER_WIDTH = 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Added to embeddings: how strongly the words of one series attract each other, and words and the terminator.
_THEME, _ENDING = 1.7, 1.6


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, of its catalogue (`num_series`, ten titles each) and of its search (`num_beams`)."""

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    is_tied: bool
    num_series: int
    num_beams: int
    initializer_range: float = 0.02

    @property
    def split_layer(self) -> int:
        return self.num_layers // 2

    @property
    def layer_parameters(self) -> int:
        """Number of weights in the matrices of one layer."""
        grouped = self.hidden_size * self.num_key_value_heads // self.num_heads
        return self.hidden_size * (2 * self.hidden_size + 2 * grouped + 3 * self.intermediate_size)

    @property
    def head_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        return self.num_layers * self.layer_parameters + (2 - self.is_tied) * self.head_parameters


SHAPES = {
    "demo": Shape("llama", 3, 64, 4, 4, 128, 3000, True, 18, 20, initializer_range=0.125),
    "smollm2": Shape("llama", 6, 576, 9, 3, 1536, 16_000, True, 300, 20),  # as the recipe of this name makes it
    "0.5b": Shape("qwen2", 24, 896, 14, 2, 4864, 151_936, True, 300, 10),
    "7b": Shape("llama", 32, 4096, 32, 32, 11_008, 32_000, False, 300, 10),
}


class Shop(NamedTuple):
    """`words`: token ids of the words of each series. `titles`: texts, ten for each series, in the same order."""

    words: list[list[int]]
    titles: list[str]


def make_shop(shape: Shape, seed: int = 0) -> Shop:
    rng = np.random.default_rng(seed)
    size = _NAME_WORDS + _OTHER_WORDS
    words = [list(range(start, start + size)) for start in range(0, shape.num_series * size, size)]
    return Shop([[_word_id(word) for word in own] for own in words], [t for own in words for t in _titles(own, rng)])


def _titles(words: Sequence[int], rng: np.random.Generator) -> Iterator[str]:
    """Three to eight words each. Every fifth is the one before it and one more word; the last repeats the first."""
    drawn: list[list[int]] = []
    for number in range(_TITLES_PER_SERIES - 1):
        others = rng.permutation(words[_NAME_WORDS:]).tolist()
        if number % 5 == 4:
            drawn.append([*drawn[-1], next(word for word in others if word not in drawn[-1])])
        else:
            drawn.append([*words[:_NAME_WORDS], *others[: int(rng.integers(1, 6))]])
    return (" ".join(f"w{word}" for word in title) for title in [*drawn, drawn[0]])


def _word_id(word: int) -> int:
    return word + len(_SPECIAL) + len(_head_words())


def _head_words() -> list[str]:
    return list(dict.fromkeys(PromptSpec().head.split(" ")))


def make_prompt(shape: Shape, recent_length: int = RECENT) -> Prompt:
    """The prompt of the product, with a tokenizer that has one token for each word."""
    size = _NAME_WORDS + _OTHER_WORDS
    texts = [*_SPECIAL, *_head_words(), *(f"w{word}" for word in range(shape.num_series * size))]
    tokenizer = Tokenizer(models.WordLevel({text: place for place, text in enumerate(texts)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="removed")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    return Prompt(fast, PromptSpec(recent_length=recent_length))


def make_model(
    shape: Shape, shop: Shop, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> PreTrainedModel:
    torch.manual_seed(seed)
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[shape.family]
    config = kind(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        tie_word_embeddings=shape.is_tied,
        max_position_embeddings=32_768,
        initializer_range=shape.initializer_range,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            # As GPT-2 is initialised: the embeddings keep their influence in the upper layers.
            parameter.div_((2 * shape.num_layers) ** 0.5)
    themes = torch.nn.functional.normalize(torch.randn(len(shop.words), shape.hidden_size), dim=1)
    # The sign makes only tokens with unlike values in column 1 attract each other.
    model.base_model.get_submodule("norm").get_parameter("weight")[1] *= -1
    for table in {id(table): table for table in (_input_table(model), _output_table(model))}.values():
        table[_SPECIAL.index("\n"), :2] += _ENDING * torch.tensor([1.0, 1.0]).to(table)
        for words, theme in zip(shop.words, themes, strict=True):
            table[words] += _THEME * theme.to(table)
            table[words, :2] += _ENDING * torch.tensor([1.0, -1.0]).to(table)
    return model


def _input_table(model: PreTrainedModel) -> Tensor:
    return model.get_input_embeddings().get_parameter("weight")


def _output_table(model: PreTrainedModel) -> Tensor:
    return model.get_output_embeddings().get_parameter("weight")


def make_bundle(
    model: PreTrainedModel, shape: Shape, shop: Shop, *, num_beams: int | None = None, prompt: Prompt | None = None
) -> Bundle:
    """In memory. The bundle takes the model over. The retriever has random weights and never abstains.

    `prompt`: another one than that of the synthetic words.
    """
    dtype = next(name for name, kind in DTYPES.items() if kind == model.dtype)
    manifest = Manifest(
        name=f"random-{shape.family}",
        created_at="2026-01-01T00:00:00Z",
        backbone=BackboneSpec(
            base_model="random",
            weights_sha256="",
            split_layer=shape.split_layer,
            num_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            dtype=dtype,  # type: ignore[arg-type]
        ),
        retriever=RetrieverSpec(width=_RETRIEVER_WIDTH, has_null=False),
        generation=GenerationSpec(num_beams=num_beams or shape.num_beams),
        num_items=len(shop.titles),
        space="",
    )
    torch.manual_seed(1)
    prompt = prompt or make_prompt(shape)
    vectors = np.random.default_rng(0).standard_normal((len(shop.titles), shape.hidden_size), dtype=np.float32)
    return Bundle(
        manifest=manifest,
        prompt=prompt,
        lm=SplitLM(model, shape.split_layer),
        retriever=build_retriever(manifest).to(model.device).eval(),
        catalogue=Catalogue((Item(str(row), title) for row, title in enumerate(shop.titles)), prompt),
        index=ItemIndex.build(vectors),
    )


def save_bundle(
    path: Path,
    model: PreTrainedModel,
    catalogue: Catalogue,
    index: ItemIndex,
    prompt: Prompt,
    *,
    retriever: RetrieverSpec | None = None,
    generation: GenerationSpec | None = None,
) -> None:
    """Write a bundle that a server can open. The model is cut in the middle; the retriever has random weights."""
    memory = MemorySpec()
    with tempfile.TemporaryDirectory() as checkpoint, BundleWriter(path) as writer:
        model.save_pretrained(checkpoint)
        prompt.tokenizer.save_pretrained(checkpoint)
        backbone = BackboneSpec(
            base_model="random",
            weights_sha256=weights_sha256(describe_files(Path(checkpoint))),
            split_layer=model.config.num_hidden_layers // 2,
            num_layers=model.config.num_hidden_layers,
            hidden_size=model.config.hidden_size,
        )
        manifest = Manifest(
            name=path.name,
            created_at="2026-01-01T00:00:00Z",
            backbone=backbone,
            prompt=prompt.spec,
            memory=memory,
            retriever=retriever or RetrieverSpec(width=_RETRIEVER_WIDTH, has_null=False),
            generation=generation or GenerationSpec(),
            num_items=len(catalogue),
            space=space_id(backbone, prompt.spec, memory),
        )
        writer.add_lm(Path(checkpoint))
        writer.add_retriever(build_retriever(manifest))
        writer.add_catalogue(catalogue)
        writer.add_index(index)
        writer.finish(manifest)


class Reader(NamedTuple):
    """A user. `titles`: oldest first. `memory` (M, D) float16: random, scaled like the states of the model."""

    titles: list[str]
    memory: np.ndarray


def make_readers(bundle: Bundle, count: int, *, num_events: int = 500, num_memories: int = MEMORIES) -> list[Reader]:
    rng = np.random.default_rng(1)
    titles = [item.title for item in bundle.catalogue.items]
    histories = [[titles[row] for row in rng.integers(0, len(titles), num_events)] for _ in range(count)]
    scale = float(encode(bundle.lm, [bundle.prompt.tokens(histories[0])]).astype(np.float32).std())
    shape = (num_memories, bundle.lm.hidden_size)
    return [Reader(history, (scale * rng.standard_normal(shape)).astype(np.float16)) for history in histories]


def make_query(bundle: Bundle, reader: Reader, *, num_results: int = 10, with_memory: bool = True) -> Query:
    """All items are allowed. Without memory the query has the same prompt and no memory elements."""
    return Query(
        prompt=bundle.prompt.tokens(reader.titles),
        memory=reader.memory if with_memory else reader.memory[:0],
        allowed=np.ones(len(bundle.catalogue), dtype=bool),
        num_results=num_results,
    )


@contextmanager
def quiet_library() -> Iterator[None]:
    """Switch off the warnings and progress bars of transformers: they would mix with the tables."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
