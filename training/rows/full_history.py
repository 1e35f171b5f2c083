"""Row `full_history`: the whole history in the prompt, the cost reference of every memory.

The same recipe, tuned on windows of K + M titles instead of K, without memory. A step reads as many titles as a step of
the bundle's tuning did, so that both take about the same time and have seen the same.
"""

from dataclasses import replace

import numpy as np

from model_store.bundle import Bundle
from model_store.catalogue.catalogue import Catalogue
from training import sft
from training.data.splits import Split
from training.lm.backbone import open_backbone
from training.rows.contest import Contest, Lists, long_prompt
from training.run.recipes import Recipe
from training.run.stage import pick_device


def full_history(contest: Contest, seed: int) -> Lists:
    bundle = contest.once(("full_history", seed), lambda: train(contest, seed))
    prompts = []
    for example in contest.examples:
        titles = [contest.split.titles[item] for item in [*contest.memory(example), *contest.recent(example)]]
        prompts.append(long_prompt(bundle.prompt, titles))
    return contest.with_prompts(bundle, prompts, "full_history")


def train(contest: Contest, seed: int) -> Bundle:
    """The contest's bundle with a language model that reads long prompts; trained once per workshop.

    Its retriever is of no use, so ask with `chosen`; its index still says which titles are near each other.
    """
    workshop = contest.need_workshop()
    recipe = long_recipe(workshop.need_recipe(), contest.split)
    inputs = sft.stage_key(workshop.fingerprint, recipe, workshop.model, seed)
    directory = workshop.directory / f"full-history-{inputs}"
    sft.run(
        contest.split,
        directory,
        recipe=recipe,
        inputs=inputs,
        model_name=workshop.model,
        seed=seed,
        device=workshop.device,
    )
    backbone = open_backbone(directory, pick_device(workshop.device))
    catalogue = Catalogue(contest.bundle.catalogue.items, backbone.prompt)
    return replace(contest.bundle, lm=backbone.lm, prompt=backbone.prompt, catalogue=catalogue)


def long_recipe(recipe: Recipe, split: Split) -> Recipe:
    """Blocks are longer, so there are fewer a step."""
    length = recipe.recent_length + recipe.max_memory
    growth = _mean_block(split, length + 1) / _mean_block(split, recipe.recent_length + 1)
    num_blocks = max(1, round(recipe.sft_batch_blocks / growth))
    return replace(recipe, recent_length=length, max_memory=0, memory_share=0.0, sft_batch_blocks=num_blocks)


def _mean_block(split: Split, size: int) -> float:
    """Titles in a block of at most `size` that training cuts."""
    lengths = np.array([history.train_end for history in split.histories])
    return float(lengths.sum() / np.ceil(lengths / size).sum())
