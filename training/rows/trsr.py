"""Row `trsr`: a recurrent summary of the older history stands before the window (TRSR, arXiv 2403.13325).

The summariser (`summariser.py`) reads blocks of K events; a summary has K / 2 titles. The recommender is the bundle's
language model, tuned further on prompts "summary, window". As in the bundle's own tuning, every title of a window is a
target. A checkpoint gets adapters again, which are merged at the end.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_store.bundle import Bundle
from model_store.lm.item_embedding import ItemEmbedding
from model_store.lm.split_lm import SplitLM
from model_store.text.prompt import Prompt
from training.data.splits import Split, sample_targets
from training.lm.backbone import with_adapters
from training.lm.packing import Block, PackedRow, packed_loss
from training.rows import summariser
from training.rows.evaluation import Evaluation, RankedLists, TrainingSetup, long_prompt
from training.rows.summariser import HistoryStart, Summariser, Summary, SummarySizes, summarise_histories
from training.run.device import autocast, seed_everything
from training.run.loop import Progress, Schedule, fit
from training.run.recipes import Recipe
from training.run.stage import atomic_file, begin, digest, finish, is_done

_MAX_WINDOWS = 20_000  # of training; more summaries take longer than they help
_VALID_BATCH = 16
_SUMMARISER_FILE, _LM_FILE = "summariser.safetensors", "lm.safetensors"


class TrsrExample(NamedTuple):
    """One sequence of items: the loss is on `answers` only."""

    prompt: list[int]
    answers: list[int]


class TrsrModel(NamedTuple):
    bundle: Bundle  # with the language model that is tuned on summaries
    summariser: Summariser

    def summaries(self, split: Split, starts: Sequence[HistoryStart]) -> dict[HistoryStart, Summary]:
        return summarise_histories(self.summariser.select, split, starts, self.summariser.sizes.block)


def trsr(evaluation: Evaluation, seed: int) -> RankedLists:
    model = evaluation.compute_once(("trsr", seed), lambda: train_trsr(evaluation, seed))
    starts = [HistoryStart(each.user, max(0, each.position - evaluation.recent_length)) for each in evaluation.examples]
    # A service would keep summaries, so they are computed once and are not part of the time of an answer.
    summaries: dict[HistoryStart, Summary] = evaluation.compute_once(("summaries", seed), dict)
    summaries |= model.summaries(evaluation.split, [start for start in starts if start not in summaries])
    shown = [
        [*summaries[start], *evaluation.recent(example)]
        for start, example in zip(starts, evaluation.examples, strict=True)
    ]
    return evaluation.rank_with_items(model.bundle, shown, "trsr")


def train_trsr(evaluation: Evaluation, seed: int) -> TrsrModel:
    """Trains summariser and recommender, or loads them. The evaluation's own bundle does not change."""
    training, bundle = evaluation.training, evaluation.bundle
    recipe = training.require_recipe()
    sizes = SummarySizes(evaluation.recent_length, max(1, evaluation.recent_length // 2))
    method = [sizes, _MAX_WINDOWS, summariser.NUM_EXAMPLES, summariser.WIDTH, summariser.SCHEDULE]
    adapters = [recipe.lora_rank, recipe.lora_layers]
    tuning = [short_schedule(recipe.sft), recipe.sft_batch_blocks, recipe.sft_valid_targets, adapters]
    inputs = digest([training.fingerprint, bundle.manifest.space, training.model, method, tuning, seed])
    directory = training.directory / f"trsr-{inputs}"
    seed_everything(seed)
    chooser = Summariser(bundle, evaluation.split.titles, evaluation.title_vectors(), sizes)
    model = TrsrModel(replace(bundle, lm=_copy_lm(bundle)), chooser)
    if not is_done(directory, inputs):
        begin(directory)
        finish(directory, inputs, _train(model, evaluation.split, training, seed=seed, directory=directory))
    _load(model.summariser.chooser, directory / _SUMMARISER_FILE)
    _load(model.bundle.lm.model, directory / _LM_FILE)
    return model


def short_schedule(sft: Schedule) -> Schedule:
    """An eighth of the steps at a quarter of the rate: only the summary in the prompt is new to the model."""
    steps = max(1, sft.max_steps // 8)
    return replace(
        sft,
        max_steps=steps,
        learning_rate=sft.learning_rate / 4,
        warmup_steps=min(sft.warmup_steps, steps // 8),
        evaluate_every=max(1, steps // 4),
    )


def _train(model: TrsrModel, split: Split, training: TrainingSetup, *, seed: int, directory: Path) -> dict[str, Any]:
    loss = model.summariser.train(split, seed=seed, checkpoints=directory / "checkpoints-summariser")
    _save(model.summariser.chooser, directory / _SUMMARISER_FILE)
    state = _tune(model, split, training, seed=seed, checkpoints=directory / "checkpoints-lm")
    _save(model.bundle.lm.model, directory / _LM_FILE)
    return {"summariser_kl": loss, "steps": state.step, "valid_title_nats": state.best_loss}


def _tune(model: TrsrModel, split: Split, training: TrainingSetup, *, seed: int, checkpoints: Path) -> Progress:
    recipe, lm, prompt = training.require_recipe(), model.bundle.lm, model.bundle.prompt
    schedule = short_schedule(recipe.sft)
    limit = min(_MAX_WINDOWS, schedule.max_steps * recipe.sft_batch_blocks)
    train_examples = training_examples(model, split, limit, np.random.default_rng((seed, 3)))
    valid_examples = validation_examples(model, split, recipe, seed)
    adapted = _make_trainable(lm, recipe, training.model)

    def loss_at(step: int) -> Tensor:
        drawn = np.random.default_rng((seed, step)).integers(len(train_examples), size=recipe.sft_batch_blocks)
        with autocast(lm.device, lm.hidden_size):
            return packed_loss(lm, [packed_row(prompt, split, train_examples[place]) for place in drawn])

    @torch.inference_mode()
    def validate() -> float:
        lm.model.eval()
        total = 0.0
        for start in range(0, len(valid_examples), _VALID_BATCH):
            rows = [packed_row(prompt, split, each) for each in valid_examples[start : start + _VALID_BATCH]]
            with autocast(lm.device, lm.hidden_size):
                total += float(packed_loss(lm, rows, reduction="sum"))
        lm.model.train()
        return total / len(valid_examples)

    lm.model.train()
    parameters = {name: each for name, each in lm.model.named_parameters() if each.requires_grad}
    state = fit(parameters, loss_at, validate, schedule, checkpoints=checkpoints, label="trsr")
    if adapted is not None:
        adapted.merge_and_unload()
    lm.model.requires_grad_(False).eval()
    return state


def training_examples(model: TrsrModel, split: Split, limit: int, rng: np.random.Generator) -> list[TrsrExample]:
    """About `limit` examples of random users: windows of K + 1 titles that start at the borders of the blocks."""
    size = model.summariser.sizes.block
    starts: list[HistoryStart] = []
    for user in rng.permutation(len(split.histories)).tolist():
        if len(starts) >= limit:
            break
        starts += [HistoryStart(user, stop) for stop in range(0, split.histories[user].train_end - 1, size)]
    summaries = model.summaries(split, starts)
    return [TrsrExample(list(summaries[start]), _next_items(split, start, size + 1)) for start in starts]


def _next_items(split: Split, start: HistoryStart, count: int) -> list[int]:
    """At most `count` items after `start`, of the train period only."""
    history = split.histories[start.user]
    items: list[int] = history.items[start.stop : min(start.stop + count, history.train_end)].tolist()
    return items


def validation_examples(model: TrsrModel, split: Split, recipe: Recipe, seed: int) -> list[TrsrExample]:
    """Sampled valid targets with the prompt that the row shows."""
    targets = sample_targets(split.valid, recipe.sft_valid_targets, seed)
    size = model.bundle.manifest.prompt.recent_length
    starts = [HistoryStart(target.user, max(0, target.position - size)) for target in targets]
    summaries = model.summaries(split, starts)
    examples = []
    for target, start in zip(targets, starts, strict=True):
        items = split.histories[target.user].items[start.stop : target.position + 1].tolist()
        examples.append(TrsrExample([*summaries[start], *items[:-1]], items[-1:]))
    return examples


def packed_row(prompt: Prompt, split: Split, example: TrsrExample) -> PackedRow:
    """A training row without memory, with a loss on the answers only."""
    tokens = long_prompt(prompt, [split.titles[item] for item in example.prompt])
    loss_from = max(1, len(tokens))
    ends = []
    for item in example.answers:
        tokens += prompt.title_tokens(split.titles[item])
        ends.append(len(tokens) - 1)
    return PackedRow(Block(tokens, ends), [], 0, loss_from)


def _copy_lm(bundle: Bundle) -> SplitLM:
    """A deep copy that shares the vocabulary with the bundle's prompt.

    Embeddings of items that came after training are made now, so that the number of weights does not change later.
    """
    vocabulary = getattr(bundle.prompt, "vocabulary", None)
    lm = copy.deepcopy(bundle.lm, {id(vocabulary): vocabulary})
    for module in lm.model.modules():
        if isinstance(module, ItemEmbedding):
            module.rows()
    return lm


def _make_trainable(lm: SplitLM, recipe: Recipe, model_name: str | None) -> Any:
    """Returns the adapters of a checkpoint, None for a model that is trained whole."""
    if model_name is None:
        lm.model.requires_grad_(True)
        for module in lm.model.modules():
            if isinstance(module, ItemEmbedding):
                module.text.requires_grad_(False)  # it also spells titles that are not trained on
        return None
    return with_adapters(lm.model, recipe)


def _save(module: nn.Module, file: Path) -> None:
    with atomic_file(file) as draft:
        save_file({name: each.detach().contiguous() for name, each in module.named_parameters()}, draft)


def _load(module: nn.Module, file: Path) -> None:
    tensors = load_file(file)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[name])
