"""Row `full_history`: the whole history stands in the prompt. It is the reference for the cost of all memories.

The bundle's recipe, tuned without memory on windows of K + M titles instead of K. A step reads as many titles as a step
of the bundle's tuning, so both take about the same time and see the same amount of data.
"""

from dataclasses import replace

import numpy as np

from model_store.bundle import Bundle
from model_store.catalogue.catalogue import Catalogue
from training.data.splits import Split
from training.lm import tuning
from training.lm.backbone import open_backbone
from training.rows.evaluation import Evaluation, RankedLists, long_prompt
from training.run.device import pick_device
from training.run.recipes import Recipe


def full_history(evaluation: Evaluation, seed: int) -> RankedLists:
    bundle = evaluation.compute_once(("full_history", seed), lambda: train_long_reader(evaluation, seed))
    prompts = []
    for example in evaluation.examples:
        items = [*evaluation.memory(example), *evaluation.recent(example)]
        prompts.append(long_prompt(bundle.prompt, [evaluation.split.titles[item] for item in items]))
    return evaluation.rank_with_prompts(bundle, prompts, "full_history")


def train_long_reader(evaluation: Evaluation, seed: int) -> Bundle:
    """The evaluation's bundle with a language model that reads long prompts; loaded where it is trained already.

    Its retriever does not fit this model, so queries must name their memories (`Query.chosen`). Its index, made by the
    old model, still tells which titles are similar.
    """
    training = evaluation.training
    recipe = long_recipe(training.require_recipe(), evaluation.split)
    inputs = tuning.stage_key(training.fingerprint, recipe, training.model, seed)
    directory = training.directory / f"full-history-{inputs}"
    tuning.run(
        evaluation.split,
        directory,
        recipe=recipe,
        inputs=inputs,
        model_name=training.model,
        seed=seed,
        device=training.device,
    )
    backbone = open_backbone(directory, pick_device(training.device))
    catalogue = Catalogue(evaluation.bundle.catalogue.items, backbone.prompt)
    return replace(evaluation.bundle, lm=backbone.lm, prompt=backbone.prompt, catalogue=catalogue)


def long_recipe(recipe: Recipe, split: Split) -> Recipe:
    """`recipe` with windows of K + M titles and without memory. Blocks are longer, so a step has fewer of them."""
    length = recipe.recent_length + recipe.max_memory
    growth = _mean_block(split, length + 1) / _mean_block(split, recipe.recent_length + 1)
    num_blocks = max(1, round(recipe.sft_batch_blocks / growth))
    return replace(recipe, recent_length=length, max_memory=0, memory_share=0.0, sft_batch_blocks=num_blocks)


def _mean_block(split: Split, size: int) -> float:
    """Mean number of titles in a block, where training cuts histories into blocks of at most `size`."""
    lengths = np.array([history.train_end for history in split.histories])
    return float(lengths.sum() / np.ceil(lengths / size).sum())
