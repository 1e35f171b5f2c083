"""Named settings. A recipe is data; stages read the fields they need.

`demo`       the synthetic world on two cores in about two minutes
`study`      smaller still, a token for each title, in under a minute: `training.study` without data
`cpu-small`  real data on two cores, under an hour; the item vocabulary, which the valid period favours
`cpu-small-titles`  the same with the paper's vocabulary: titles are written token by token
`gpu`        the item vocabulary with a larger backbone made here, for one or more GPUs
`lora`       a real checkpoint (`--model`), LoRA as in BIGRec; wants a GPU
"""

from dataclasses import dataclass, field

from model_store.manifest import Vocabulary
from model_store.memory.codec import StateDtype
from training.run.loop import Schedule
from training.run.stage import StageError


@dataclass(frozen=True)
class BackboneShape:
    """Of a model trained from scratch; ignored when `--model` names a checkpoint."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    vocab_size: int = 2000


@dataclass(frozen=True)
class Recipe:
    shape: BackboneShape = field(default_factory=BackboneShape)
    vocabulary: Vocabulary = "titles"  # or "items": one token per title
    dropout: float = 0.0  # of item embeddings, and of what their head reads
    collaborative_start: bool = True  # item vectors of a model made here start from co-occurrence
    max_softmax_items: int = 12_000  # above, the loss is over the most popular items and a sample of the others
    softmax_popular: int = 1000
    softmax_sampled: int = 2048
    split_layer: int | None = None  # L; None = half of the layers
    recent_length: int = 10  # K
    max_memory: int = 90  # M
    state_dtype: StateDtype = "float16"  # of stored memory; "int8" takes half the bytes
    max_title_tokens: int = 24
    num_beams: int = 20
    top_ks: tuple[int, ...] = (1,)  # memories that reach the top half; the best on the valid period is kept
    combine: str = "insert"

    sft: Schedule = field(default_factory=lambda: Schedule(max_steps=3000, learning_rate=1e-3))
    sft_batch_blocks: int = 64  # windows of K + 1 titles per step
    sft_valid_targets: int = 200
    memory_share: float = 0.7  # of training windows that see memory; 0 is the paper's generator, which never saw any
    memory_sizes: tuple[int, ...] = (1, 8, 10_000, 10_000)  # how much of it, drawn by chance; 10,000 is all there is
    memory_from: int = 0  # the step from which they do: reading the window is learned sooner and cheaper without memory

    mixture_targets: int = 2000  # valid targets that say how far to trust item neighbours; 0 asks none

    held_out_labels: bool = False  # annotate the valid period only, which the generator was not tuned on
    annotate_targets: int = 1500
    valid_targets: int = 400
    annotate_batch: int = 16

    gain_form: str = "log_gain"  # or "probability", the paper's literal eq. 5
    # "kl" to the labels, eq. 6; "marginal": the likelihood of the truth, without labels. The best on the valid period.
    retriever_losses: tuple[str, ...] = ("kl",)
    label_temperatures: tuple[float, ...] = (0.03, 0.1, 0.3)  # the best on the valid period is kept
    retriever: Schedule = field(
        default_factory=lambda: Schedule(max_steps=2000, learning_rate=1e-3, evaluate_every=100, patience=8)
    )
    retriever_batch: int = 64
    retriever_width: int = 256

    # Of torch, on a processor; 0: as many as cores. To share the small products of a small model gains next to nothing,
    # and where another process has one of the cores, it waits for that one at every step (measured: 20 times slower).
    num_threads: int = 0
    synthetic_users: int = 0  # demo only: the pipeline makes its own data
    lora_rank: int = 8


RECIPES: dict[str, Recipe] = {
    "demo": Recipe(
        shape=BackboneShape(hidden_size=64, num_layers=3, num_heads=4, vocab_size=3000),
        split_layer=1,  # a state then says little but which book it is, and two layers are left to look it up
        sft=Schedule(max_steps=3600, learning_rate=4e-3, evaluate_every=1800),
        sft_batch_blocks=16,
        memory_share=0.85,
        memory_from=400,
        annotate_targets=2000,
        label_temperatures=(0.03,),
        retriever=Schedule(max_steps=600, learning_rate=2e-3, evaluate_every=100),
        num_threads=1,
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
        mixture_targets=0,
        annotate_targets=2000,
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
    "lora": Recipe(
        sft=Schedule(max_steps=5000, learning_rate=1e-4, warmup_steps=20, evaluate_every=250, patience=5),
        sft_batch_blocks=16,
    ),
}


def get_recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise StageError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
