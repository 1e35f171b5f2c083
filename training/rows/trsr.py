"""Row `trsr`: a recurrent summary of what is old stands before the recent window (TRSR, arXiv 2403.13325).

The summariser is the bundle's language model with a chooser trained for it (`summariser.py`); blocks are of K events, a
summary is of K / 2 titles. The recommender is the same language model, tuned further on prompts "summary, window"; as
in the bundle's own tuning, every title of a window is a target. A checkpoint gets adapters again, merged at the end.
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
from training.lm.packing import Block, Row, packed_loss
from training.rows import summariser
from training.rows.contest import Contest, Lists, Workshop, long_prompt
from training.rows.summariser import Sizes, Summariser
from training.rows.summary import Request, Summary, summarise
from training.run.loop import Progress, Schedule, fit
from training.run.recipes import Recipe
from training.run.stage import autocast, begin, digest, finish, is_done, seed_everything, whole_file

_MOST_WINDOWS = 20_000  # of training; summaries of more take longer than they help
_VALID_BATCH = 16
_SUMMARISER_FILE, _LM_FILE = "summariser.safetensors", "lm.safetensors"


class Case(NamedTuple):
    """Items: what the model has read, and what it has to write after that."""

    read: list[int]
    write: list[int]


class Trained(NamedTuple):
    bundle: Bundle
    summariser: Summariser

    def summaries(self, split: Split, requests: Sequence[Request]) -> dict[Request, Summary]:
        return summarise(self.summariser.select, split, requests, self.summariser.sizes.block)


def trsr(contest: Contest, seed: int) -> Lists:
    trained = contest.once(("trsr", seed), lambda: train(contest, seed))
    requests = [Request(each.user, max(0, each.position - contest.recent_length)) for each in contest.examples]
    summaries: dict[Request, Summary] = contest.once(("summaries", seed), dict)  # kept, as a service would
    missing = [request for request in requests if request not in summaries]
    summaries |= trained.summaries(contest.split, missing)
    prompts = [
        contest.prompt_of([*summaries[request], *contest.recent(example)])
        for request, example in zip(requests, contest.examples, strict=True)
    ]
    return contest.with_prompts(trained.bundle, prompts, "trsr")


def train(contest: Contest, seed: int) -> Trained:
    """Summariser and recommender, trained once per workshop; the contest's own bundle stays as it is."""
    workshop, bundle = contest.need_workshop(), contest.bundle
    recipe, sizes = workshop.need_recipe(), Sizes(contest.recent_length, max(1, contest.recent_length // 2))
    method = [sizes, _MOST_WINDOWS, summariser.NUM_EXAMPLES, summariser.WIDTH, summariser.SCHEDULE]
    tuning = [short_schedule(recipe.sft), recipe.sft_batch_blocks, recipe.sft_valid_targets, recipe.lora_rank]
    inputs = digest([workshop.fingerprint, bundle.manifest.space, workshop.model, method, tuning, seed])
    directory = workshop.directory / f"trsr-{inputs}"
    seed_everything(seed)
    writer = Summariser(bundle, contest.split.titles, contest.title_vectors(), sizes)
    trained = Trained(replace(bundle, lm=_copy(bundle)), writer)
    if not is_done(directory, inputs):
        begin(directory)
        facts = _train(trained, contest.split, workshop, seed=seed, directory=directory)
        finish(directory, inputs, facts)
    _load(trained.summariser.chooser, directory / _SUMMARISER_FILE)
    _load(trained.bundle.lm.model, directory / _LM_FILE)
    return trained


def short_schedule(sft: Schedule) -> Schedule:
    """The model knows titles already; what is new is where the summary ends."""
    steps = max(1, sft.max_steps // 8)
    return replace(
        sft,
        max_steps=steps,
        learning_rate=sft.learning_rate / 4,
        warmup_steps=min(sft.warmup_steps, steps // 8),
        evaluate_every=max(1, steps // 4),
    )


def _train(trained: Trained, split: Split, workshop: Workshop, *, seed: int, directory: Path) -> dict[str, Any]:
    loss = trained.summariser.train(split, seed=seed, checkpoints=directory / "checkpoints-summariser")
    _save(trained.summariser.chooser, directory / _SUMMARISER_FILE)
    state = _tune(trained, split, workshop, seed=seed, checkpoints=directory / "checkpoints-lm")
    _save(trained.bundle.lm.model, directory / _LM_FILE)
    return {"summariser_kl": loss, "steps": state.step, "valid_title_nats": state.best_loss}


def _tune(trained: Trained, split: Split, workshop: Workshop, *, seed: int, checkpoints: Path) -> Progress:
    recipe, lm, prompt = workshop.need_recipe(), trained.bundle.lm, trained.bundle.prompt
    schedule = short_schedule(recipe.sft)
    limit = min(_MOST_WINDOWS, schedule.max_steps * recipe.sft_batch_blocks)
    windows = training_cases(trained, split, limit, np.random.default_rng((seed, 3)))
    targets = validation_cases(trained, split, recipe, seed)
    adapted = _make_trainable(lm, recipe, workshop.model)

    def loss_at(step: int) -> Tensor:
        drawn = np.random.default_rng((seed, step)).integers(len(windows), size=recipe.sft_batch_blocks)
        with autocast(lm.device, lm.hidden_size):
            return packed_loss(lm, [row_of(prompt, split, windows[place]) for place in drawn])

    @torch.inference_mode()
    def validate() -> float:
        lm.model.eval()
        total = 0.0
        for start in range(0, len(targets), _VALID_BATCH):
            rows = [row_of(prompt, split, case) for case in targets[start : start + _VALID_BATCH]]
            with autocast(lm.device, lm.hidden_size):
                total += float(packed_loss(lm, rows, reduction="sum"))
        lm.model.train()
        return total / len(targets)

    lm.model.train()
    parameters = {name: each for name, each in lm.model.named_parameters() if each.requires_grad}
    state = fit(parameters, loss_at, validate, schedule, checkpoints=checkpoints, label="trsr")
    if adapted is not None:
        adapted.merge_and_unload()
    lm.model.requires_grad_(False).eval()
    return state


def training_cases(trained: Trained, split: Split, limit: int, rng: np.random.Generator) -> list[Case]:
    """Windows of K + 1 titles that begin where a block does, of random users, about `limit` of them."""
    size = trained.summariser.sizes.block
    requests: list[Request] = []
    for user in rng.permutation(len(split.histories)).tolist():
        if len(requests) >= limit:
            break
        requests += [Request(user, start) for start in range(0, split.histories[user].train_end - 1, size)]
    summaries = trained.summaries(split, requests)
    return [Case(list(summaries[each]), _items(split, each.user, each.stop, each.stop + size + 1)) for each in requests]


def _items(split: Split, user: int, start: int, stop: int) -> list[int]:
    """Of the train period."""
    history = split.histories[user]
    items: list[int] = history.items[start : min(stop, history.train_end)].tolist()
    return items


def validation_cases(trained: Trained, split: Split, recipe: Recipe, seed: int) -> list[Case]:
    targets = sample_targets(split.valid, recipe.sft_valid_targets, seed)
    size = trained.bundle.manifest.prompt.recent_length
    requests = [Request(target.user, max(0, target.position - size)) for target in targets]
    summaries = trained.summaries(split, requests)
    cases = []
    for target, request in zip(targets, requests, strict=True):
        items = split.histories[target.user].items[request.stop : target.position + 1].tolist()
        cases.append(Case([*summaries[request], *items[:-1]], items[-1:]))
    return cases


def row_of(prompt: Prompt, split: Split, case: Case) -> Row:
    """A row without memory, whose loss begins where the model begins to write."""
    tokens = long_prompt(prompt, [split.titles[item] for item in case.read])
    loss_from = max(1, len(tokens))
    ends = []
    for item in case.write:
        tokens += prompt.title_tokens(split.titles[item])
        ends.append(len(tokens) - 1)
    return Row(Block(tokens, ends), [], 0, loss_from)


def _copy(bundle: Bundle) -> SplitLM:
    """Weights of its own; a vocabulary stays the prompt's. Rows of late titles are there before weights are counted."""
    vocabulary = getattr(bundle.prompt, "vocabulary", None)
    lm = copy.deepcopy(bundle.lm, {id(vocabulary): vocabulary})
    for module in lm.model.modules():
        if isinstance(module, ItemEmbedding):
            module.rows()
    return lm


def _make_trainable(lm: SplitLM, recipe: Recipe, model_name: str | None) -> Any:
    """The adapters of a checkpoint; None for a model trained whole."""
    if model_name is None:
        lm.model.requires_grad_(True)
        for module in lm.model.modules():
            if isinstance(module, ItemEmbedding):
                module.text.requires_grad_(False)  # it spells titles that training never meets
        return None
    return with_adapters(lm.model, recipe)


def _save(module: nn.Module, file: Path) -> None:
    with whole_file(file) as draft:
        save_file({name: each.detach().contiguous() for name, each in module.named_parameters()}, draft)


def _load(module: nn.Module, file: Path) -> None:
    tensors = load_file(file)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[name])
