"""Language models of other methods, which rows of the evaluation tune without memory or not at all, and these rows.

In: an evaluation, a number of titles. Out: a bundle with a language model that was tuned on windows of so many titles,
by the recipe of the bundle with `memory_share=0`; its checkpoint is chosen by the window alone. So a method that shows
the model a prompt and nothing else has a model that learned nothing else. Generators are kept in the work folder under
names that depend on data, recipe and seed; rows with windows of equal length share one.

`bigrec`        windows of K titles (BIGRec, arXiv 2308.08434). Where the bundle's own generator was not tuned to read
                memory, it is that generator, and nothing is trained. The frozen generator of `automr` is the same
`full_history`  windows of K + M titles: the whole history stands in the prompt. The reference for the cost of memories
`zero_shot`     the bundle's checkpoint as it was published, with all its layers and its own tokens. Nothing is tuned
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from model_store.bundle import Bundle
from model_store.catalogue.catalogue import Catalogue
from model_store.manifest import space_id
from training.data.splits import Split
from training.lm import tuning
from training.lm.backbone import (
    Backbone,
    checkpoint_identity,
    open_backbone,
    pretrained,
    prompt_spec,
    save_backbone,
    split_layer,
)
from training.rows.evaluation import Evaluation, RankedLists, is_memory_tuned
from training.run.device import pick_device
from training.run.recipes import RECIPES, Recipe
from training.run.stage import begin, digest, finish, is_done


def bigrec(evaluation: Evaluation, seed: int) -> RankedLists:
    shown = [evaluation.recent(example) for example in evaluation.examples]
    return evaluation.rank_with_items(bigrec_generator(evaluation, seed), shown, "bigrec")


def full_history(evaluation: Evaluation, seed: int) -> RankedLists:
    bundle = generator(evaluation, full_length(evaluation), seed)
    shown = [[*evaluation.memory(example), *evaluation.recent(example)] for example in evaluation.examples]
    return evaluation.rank_with_items(bundle, shown, "full_history")


def zero_shot(evaluation: Evaluation, seed: int) -> RankedLists:
    shown = [evaluation.recent(example) for example in evaluation.examples]
    bundle = evaluation.compute_once("zero_shot", lambda: _published(evaluation))
    return evaluation.rank_with_items(bundle, shown, "zero_shot")


def full_length(evaluation: Evaluation) -> int:
    """K + M"""
    return evaluation.recent_length + evaluation.bundle.manifest.memory.max_elements


def bigrec_generator(evaluation: Evaluation, seed: int) -> Bundle:
    """Raises StageError where it must be trained and the bundle does not name its recipe."""
    if not is_memory_tuned(evaluation.bundle):
        return evaluation.bundle
    return generator(evaluation, evaluation.recent_length, seed)


def generator(evaluation: Evaluation, length: int, seed: int) -> Bundle:
    """The evaluation's bundle with a language model tuned on windows of `length` titles; loaded where it is tuned.

    Its retriever does not fit this model, so queries must name their memories (`Query.chosen`). Its index, made by the
    old model, still tells which titles are similar. Raises StageError.
    """
    return evaluation.compute_once(("generator", length, seed), lambda: _tune(evaluation, length, seed))


def generator_directory(evaluation: Evaluation, length: int, seed: int) -> Path:
    """Where the generator is kept, tuned or not. Raises StageError."""
    training = evaluation.training
    recipe = window_recipe(training.require_recipe(), length, evaluation.split)
    return training.directory / f"generator-{length}-{_key(evaluation, recipe, seed)}"


def _key(evaluation: Evaluation, recipe: Recipe, seed: int) -> str:
    return tuning.stage_key(evaluation.training.fingerprint, recipe, evaluation.training.model, seed)


def _tune(evaluation: Evaluation, length: int, seed: int) -> Bundle:
    training, directory = evaluation.training, generator_directory(evaluation, length, seed)
    recipe = window_recipe(training.require_recipe(), length, evaluation.split)
    tuning.run(
        evaluation.split,
        directory,
        recipe=recipe,
        inputs=_key(evaluation, recipe, seed),
        model_name=training.model,
        seed=seed,
        device=training.device,
    )
    return with_backbone(evaluation.bundle, open_backbone(directory, pick_device(training.device)))


def has_checkpoint(bundle: Bundle) -> bool:
    """Whether the bundle's language model began as a checkpoint that `pretrained` can load."""
    return bool(bundle.manifest.provenance.get("model"))


def _published(evaluation: Evaluation) -> Bundle:
    """The bundle with its checkpoint as it was before tuning, and with the prompts of the recipe `lora`."""
    training = evaluation.training
    assert training.model is not None  # the row fits bundles with a checkpoint only
    device, recipe = pick_device(training.device), replace(RECIPES["lora"], recent_length=evaluation.recent_length)
    inputs = digest([checkpoint_identity(training.model), recipe.recent_length, recipe.max_title_tokens])
    directory = training.directory / f"published-{inputs}"
    if not is_done(directory, inputs):
        begin(directory)
        model, tokenizer = pretrained(training.model, device)
        spec = save_backbone(
            directory, model, tokenizer, base_model=training.model, adapter=None, split_layer=split_layer(recipe, model)
        )
        prompt = prompt_spec(recipe, is_pretrained=True)
        finish(
            directory, inputs, {"backbone": spec.model_dump(), "prompt": prompt.model_dump(), "vocabulary": "titles"}
        )
    return with_backbone(evaluation.bundle, open_backbone(directory, device))


def with_backbone(bundle: Bundle, backbone: Backbone) -> Bundle:
    """A copy of the bundle with another language model and its prompts."""
    spec, prompt, memory = backbone.spec, backbone.prompt, bundle.manifest.memory
    facts = {"backbone": spec, "prompt": prompt.spec, "space": space_id(spec, prompt.spec, memory)}
    catalogue = Catalogue(bundle.catalogue.items, prompt)
    manifest = bundle.manifest.model_copy(update=facts)
    return replace(bundle, manifest=manifest, lm=backbone.lm, prompt=prompt, catalogue=catalogue)


def window_recipe(recipe: Recipe, length: int, split: Split) -> Recipe:
    """`recipe` without memory, with windows of `length` titles.

    Longer blocks have more targets, so a step has fewer of them: it reads as many titles as a step of `recipe`.
    """
    growth = _mean_block(split, length + 1) / _mean_block(split, recipe.recent_length + 1)
    return replace(
        recipe,
        recent_length=length,
        max_memory=max(0, recipe.recent_length + recipe.max_memory - length),
        memory_share=0.0,
        sft_batch_blocks=max(1, round(recipe.sft_batch_blocks / growth)),
    )


def _mean_block(split: Split, size: int) -> float:
    """Mean number of titles in a block, where training cuts histories into blocks of at most `size`."""
    lengths = np.array([history.train_end for history in split.histories])
    return float(lengths.sum() / np.ceil(lengths / size).sum())
