"""Recipes: named settings of all stages. A recipe is data; each stage reads the fields it needs.

`demo`       the synthetic bookshop on two cores in about two minutes
`study`      smaller, with one token per title, in under a minute: used by `training.study` without data
`cpu-small`  real data on two cores in under an hour; item vocabulary, which does better on the valid period
`cpu-small-titles`  the same with the paper's vocabulary, where titles are written token by token
`gpu`        item vocabulary with a larger model made from scratch, for one or more GPUs
`smollm2`    the first layers of SmolLM2 (`--model smollm2`) with tokens of the catalogue, on two cores in an hour
`smollm2-lora`  the same layers with LoRA on every linear layer instead of all weights
`lora`       a pretrained checkpoint (`--model`) with LoRA as in BIGRec; needs a GPU
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from model_store.manifest import Vocabulary
from model_store.memory.codec import StateDtype
from training.run.loop import Schedule
from training.run.stage import StageError

T = TypeVar("T")


@dataclass(frozen=True)
class BackboneShape:
    """The size of a model made from scratch; ignored when `--model` names a checkpoint."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    vocab_size: int = 2000


@dataclass(frozen=True)
class Recipe:
    shape: BackboneShape = field(default_factory=BackboneShape)
    vocabulary: Vocabulary = "titles"  # or "items": one token per title
    dropout: float = 0.0  # of item embeddings and of the input of the head
    collaborative_start: bool = True  # item vectors, or new tokens of a checkpoint, start from co-occurrence
    max_softmax_items: int = 12_000  # above, the loss is over the most popular items and a sample of the rest
    softmax_popular: int = 1000
    softmax_sampled: int = 2048
    split_layer: int | None = None  # L; None = half of the layers
    recent_length: int = 10  # K
    max_memory: int = 90  # M
    state_dtype: StateDtype = "float16"  # of stored memory; "int8" takes half the bytes
    max_title_tokens: int = 24
    num_beams: int = 20
    top_ks: tuple[int, ...] = (1,)  # number of memories given to the top half; the best on the valid period is kept
    combine: str = "insert"

    sft: Schedule = field(default_factory=lambda: Schedule(max_steps=3000, learning_rate=1e-3))
    sft_batch_blocks: int = 64  # windows of K + 1 titles per step
    sft_valid_targets: int = 200
    memory_share: float = 0.7  # of training windows that get memory; 0 trains the paper's generator
    memory_sizes: tuple[int, ...] = (
        1,
        8,
        10_000,
        10_000,
    )  # the number of memories is drawn from these; 10,000 means all
    memory_from: int = 0  # the first step with memory: windows are learned faster and cheaper without it
    # Of the windows with memory, in the last third of the steps with memory: they get the memories that are most
    # similar to their query state, as many as are served (`top_ks`), instead of random ones. 0, because on the bookshop
    # four trainings of four were no better with it (docs/decisions.md).
    memory_retrieved_share: float = 0.0

    voices_targets: int = 12_000  # valid targets on which voices are trained; 0: the language model alone
    max_past: int = 300  # events that voices read; they need no states, so there may be more than memories

    held_out_labels: bool = False  # annotate only the valid period, which the generator was not tuned on
    annotate_targets: int = 1500  # that teach the retriever
    valid_targets: int = 400  # that choose the retriever, and as many of other users that judge it
    annotate_batch: int = 16

    gain_form: str = "log_gain"  # or "probability", the paper's literal eq. 5
    # "kl" (eq. 6) or "marginal" (likelihood of the truth, without labels); the best on the valid period is kept
    retriever_losses: tuple[str, ...] = ("kl",)
    label_temperatures: tuple[float, ...] = (0.03, 0.1, 0.3)  # the best on the valid period is kept
    retriever: Schedule = field(
        default_factory=lambda: Schedule(max_steps=2000, learning_rate=1e-3, evaluate_every=100, patience=8)
    )
    retriever_batch: int = 64
    retriever_width: int = 256

    # Threads of torch on a CPU; 0 means one per core. A small model gains almost nothing from several threads, and if
    # another process uses one of the cores, all threads wait for that core at every step (measured: 20 times slower).
    num_threads: int = 0
    synthetic_askers: int = 0  # readers of the bookshop with questions, from which the demo's words are made
    synthetic_users: int = 0  # readers of the synthetic data that the pipeline makes without --data; 0: it needs --data

    # Of a pretrained checkpoint (training/lm/smaller.py).
    keep_layers: int | None = None  # its first layers; None = all
    catalogue_tokens: int = 0  # tokens made from the titles, at most so many, instead of its own; titles are then short
    tunes_all: bool = False  # all weights instead of adapters
    lora_rank: int = 8
    lora_layers: Literal["query_value", "all"] = "query_value"  # as in BIGRec, or every linear layer but the head


_SMOLLM2 = Recipe(
    split_layer=1,
    keep_layers=6,
    catalogue_tokens=16_000,
    tunes_all=True,
    sft=Schedule(max_steps=1500, learning_rate=1e-3, evaluate_every=300),
    sft_batch_blocks=16,
    memory_share=0.5,
    memory_from=1000,
    memory_sizes=(1, 4, 16),
    annotate_targets=300,
    valid_targets=150,
)


RECIPES: dict[str, Recipe] = {
    "demo": Recipe(
        shape=BackboneShape(hidden_size=64, num_layers=3, num_heads=4, vocab_size=3000),
        split_layer=1,  # states then encode little but the last title, and two layers are left to find a memory
        sft=Schedule(max_steps=3600, learning_rate=4e-3, evaluate_every=1800),
        sft_batch_blocks=16,
        memory_share=0.85,
        memory_from=1000,
        annotate_targets=2000,
        valid_targets=1000,
        label_temperatures=(0.03,),
        retriever=Schedule(max_steps=600, learning_rate=2e-3, evaluate_every=100),
        num_threads=1,
        synthetic_askers=600,
        synthetic_users=1500,
    ),
    "cpu-small-titles": Recipe(
        shape=BackboneShape(hidden_size=128, num_layers=4, num_heads=4, vocab_size=16000),
        split_layer=1,
        sft=Schedule(max_steps=3500, learning_rate=2e-3, evaluate_every=500, patience=3),
        sft_batch_blocks=32,
        memory_from=1000,
    ),
    "study": Recipe(
        shape=BackboneShape(hidden_size=64, num_layers=3, num_heads=4, vocab_size=3000),
        vocabulary="items",
        split_layer=1,
        sft=Schedule(max_steps=1200, learning_rate=4e-3, evaluate_every=600),
        sft_batch_blocks=16,
        memory_share=0.85,
        memory_from=300,
        voices_targets=0,
        annotate_targets=2000,
        valid_targets=1000,
        label_temperatures=(0.03,),
        retriever=Schedule(max_steps=600, learning_rate=2e-3, evaluate_every=100),
        synthetic_users=600,
    ),
    "cpu-small": Recipe(
        shape=BackboneShape(hidden_size=128, num_layers=4, num_heads=4, vocab_size=8000),
        vocabulary="items",
        dropout=0.3,
        split_layer=1,
        sft=Schedule(max_steps=3000, learning_rate=2e-3, warmup_steps=100, evaluate_every=500, patience=3),
        sft_batch_blocks=96,
        sft_valid_targets=1000,
        memory_from=1500,
        memory_sizes=(4, 16, 16),
        top_ks=(1, 4, 16),
        held_out_labels=True,
        annotate_targets=12_000,
        valid_targets=2000,
        label_temperatures=(0.03, 0.1, 0.3, 1.0),
        retriever=Schedule(max_steps=2000, learning_rate=5e-4, weight_decay=0.1, evaluate_every=100, patience=4),
        retriever_batch=128,
        retriever_losses=("kl", "marginal"),
    ),
    "gpu": Recipe(
        shape=BackboneShape(hidden_size=512, num_layers=8, num_heads=8, vocab_size=32_000),
        vocabulary="items",
        dropout=0.3,
        split_layer=2,
        sft=Schedule(max_steps=20_000, learning_rate=1e-3, warmup_steps=500, evaluate_every=1000, patience=5),
        sft_batch_blocks=1024,
        sft_valid_targets=2000,
        memory_from=2000,
        memory_sizes=(4, 16, 32),
        max_softmax_items=200_000,
        top_ks=(1, 4, 16, 32),
        held_out_labels=True,
        annotate_targets=50_000,
        valid_targets=5000,
        annotate_batch=128,
        label_temperatures=(0.03, 0.1, 0.3, 1.0),
        retriever=Schedule(max_steps=5000, learning_rate=1e-3, evaluate_every=200, patience=5),
    ),
    "smollm2": _SMOLLM2,
    "smollm2-lora": replace(
        _SMOLLM2,
        tunes_all=False,
        lora_rank=64,
        lora_layers="all",
        sft=Schedule(max_steps=1500, learning_rate=2e-3, evaluate_every=300),
    ),
    "lora": Recipe(
        sft=Schedule(max_steps=5000, learning_rate=1e-4, warmup_steps=20, evaluate_every=250, patience=5),
        sft_batch_blocks=16,
    ),
}


def get_recipe(name: str) -> Recipe:
    """Raises StageError."""
    return chosen(RECIPES, name)


def chosen(recipes: Mapping[str, T], name: str) -> T:
    """Raises StageError with the names that there are."""
    if name not in recipes:
        raise StageError(f"unknown recipe {name!r}: choose one of {', '.join(recipes)}")
    return recipes[name]
