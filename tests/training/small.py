"""Small real objects for the tests of training: splits, a model, a recipe."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from model_store.lm.split_lm import SplitLM
from model_store.manifest import PromptSpec
from model_store.text.prompt import Prompt
from tests.conftest import TITLES, make_model, make_tokenizer
from training.data.dataset import Dataset, clean_dataset
from training.data.splits import History, Split, Target
from training.lm.windows import Windows
from training.run.loop import Schedule
from training.run.metrics import ranks_to_metrics
from training.run.recipes import BackboneShape, Recipe

RECENT = 3  # K
METRICS = list(
    ranks_to_metrics(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
)  # names of all metrics by item
TINY = Recipe(
    shape=BackboneShape(hidden_size=16, num_layers=2, num_heads=2, vocab_size=300),
    recent_length=RECENT,
    max_memory=12,
    num_beams=4,
    sft=Schedule(max_steps=4, learning_rate=1e-3, evaluate_every=2),
    sft_batch_blocks=8,
    sft_valid_targets=8,
    annotate_targets=24,
    valid_targets=12,
    label_temperatures=(0.1, 0.3),
    retriever=Schedule(max_steps=6, learning_rate=1e-3, evaluate_every=3),
    retriever_batch=8,
    retriever_width=8,
)


def diary(lengths: Sequence[int] = (30, 14, 2, 21), train_share: float = 0.7) -> Split:
    """A split in which every item occurs once, so that a title identifies a user and a position."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    titles = [f"{TITLES[n % len(TITLES)]} {n}" for n in range(int(starts[-1]))]
    histories = [
        History(
            f"u{user}",
            np.arange(start, stop, dtype=np.int32),
            np.arange(start, stop),
            int(train_share * (stop - start)),
            True,
        )
        for user, (start, stop) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
    ]
    late = [Target(user, at) for user, each in enumerate(histories) for at in range(each.train_end, len(each.items))]
    return Split(
        name="time",
        item_ids=[f"i{row}" for row in range(len(titles))],
        titles=titles,
        attributes=[{} for _ in titles],
        popularity=np.ones(len(titles), dtype=np.int64),
        title_class=np.arange(len(titles), dtype=np.int32),
        histories=histories,
        valid=late[::2],
        test=late[1::2],
        train=[Target(user, at) for user, each in enumerate(histories) for at in range(10, each.train_end)],
    )


def small_windows(split: Split | None = None, *, recent_length: int = RECENT, max_memory: int = 12) -> Windows:
    prompt = Prompt(make_tokenizer(TITLES), PromptSpec(head="Chosen:\n", recent_length=recent_length))
    return Windows(split or diary(), prompt, max_memory)


def small_lm(architecture: str = "llama", seed: int = 0) -> SplitLM:
    lm = SplitLM(make_model(architecture, seed=seed), 2)
    lm.model.requires_grad_(False)
    return lm


def shop(num_users: int = 6, length: int = 30) -> Dataset:
    """A data set of the twenty books of the tests' bundle: items repeat, and all are frequent."""
    rng = np.random.default_rng(0)
    events = [
        (f"u{user}", f"i{rng.integers(len(TITLES))}", 1000 * step + user)
        for user in range(num_users)
        for step in range(length)
    ]
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{row}" for row in range(len(TITLES))], "title": TITLES})
    return clean_dataset("shop", frame, items)[0]
