"""Supervised tuning of the language model on next titles (BIGRec, arXiv 2308.08434, step 1), with memory.

In: a split, a recipe. Out: a backbone directory. Without a checkpoint a small Llama and its tokenizer are made from the
catalogue and all weights are trained. A pretrained checkpoint is made smaller (`smaller.py`) if the recipe says so, and
gets LoRA adapters, which are merged at the end, or is trained as a whole. The training sequences are described in
`packing.py`, the losses in `objectives.py`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model_store.lm.split_lm import SplitLM
from model_store.text.prompt import ItemPrompt, Prompt
from model_store.text.vocabulary import ItemVocabulary
from training.data.splits import Split
from training.items.co_occurrence import co_occurrence_vectors
from training.lm.backbone import (
    checkpoint_identity,
    new_model,
    new_tokenizer,
    pretrained,
    prompt_spec,
    save_backbone,
    split_layer,
    with_adapters,
)
from training.lm.item_tokens import add_item_vectors, make_item_model, piece_tokenizer
from training.lm.objectives import training_loss, validation
from training.lm.smaller import collaborative_vectors, keep_first_layers, learn_embeddings, use_vocabulary
from training.lm.windows import Windows
from training.run.device import pick_device, seed_everything
from training.run.distributed import is_main, on_main, wait_for_main
from training.run.loop import Progress, fit
from training.run.recipes import Recipe
from training.run.stage import begin, digest, finish, is_done, read_certificate

_VERSION = 2  # of the training windows; 2: memories of full windows, retrieved ones too, baskets in random order


class TunableModel(NamedTuple):
    """A model in training. `adapted` is the peft model with the adapters; None if all weights are trained."""

    model: PreTrainedModel
    prompt: Prompt
    adapted: Any

    def merged(self) -> PreTrainedModel:
        """The plain model with its adapters merged."""
        merged: PreTrainedModel = self.model if self.adapted is None else self.adapted.merge_and_unload()
        return merged


def make_model(
    split: Split, recipe: Recipe, model_name: str | None, device: torch.device, *, seed: int = 0
) -> TunableModel:
    """A model to tune: made from scratch, or, with `model_name`, a pretrained checkpoint."""
    if model_name is None:
        tokenizer = _tokenizer(split, recipe)
        model, adapted = new_model(recipe.shape, len(tokenizer)), None
    else:
        model, tokenizer, adapted = _adapted(model_name, split, recipe, device, seed)
    spec = prompt_spec(recipe, is_pretrained=model_name is not None)
    prompt: Prompt
    if recipe.vocabulary == "titles":
        prompt = Prompt(tokenizer, spec)
    else:
        vocabulary = ItemVocabulary(list(dict.fromkeys(split.titles)), tokenizer)
        _use_item_tokens(model, vocabulary, split, recipe, is_pretrained=model_name is not None, seed=seed)
        prompt = ItemPrompt(vocabulary, spec)
    placed: Any = model
    return TunableModel(placed.to(device), prompt, adapted)


def _use_item_tokens(
    model: PreTrainedModel,
    vocabulary: ItemVocabulary,
    split: Split,
    recipe: Recipe,
    *,
    is_pretrained: bool,
    seed: int,
) -> None:
    make_item_model(model, vocabulary, dropout=recipe.dropout, train_text=not is_pretrained)
    if recipe.collaborative_start and not is_pretrained:
        vectors = co_occurrence_vectors(split, model.config.hidden_size, seed=seed)
        add_item_vectors(model, vectors, [vocabulary.token(title) for title in split.titles])


def _tokenizer(split: Split, recipe: Recipe) -> PreTrainedTokenizerBase:
    if recipe.vocabulary == "items":
        return piece_tokenizer(split.titles, recipe.shape.vocab_size)
    return new_tokenizer(split.titles, split.popularity.tolist(), recipe.shape.vocab_size)


def _adapted(
    model_name: str, split: Split, recipe: Recipe, device: torch.device, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Any]:
    """The checkpoint as the recipe wants it, its tokenizer, and the peft model; None if all weights are trained."""
    model, tokenizer = pretrained(model_name, device, in_float32=recipe.tunes_all)
    if recipe.keep_layers:
        keep_first_layers(model, recipe.keep_layers)
    if recipe.catalogue_tokens:
        own = new_tokenizer(split.titles, split.popularity.tolist(), recipe.catalogue_tokens)
        vectors = None
        if recipe.collaborative_start:
            vectors = collaborative_vectors(split, own, model.config.hidden_size, seed)
        use_vocabulary(model, tokenizer, own, vectors)
        tokenizer = own
    if recipe.tunes_all:
        return model, tokenizer, None
    adapted = with_adapters(model, recipe)
    base: Any = adapted.get_base_model()
    if recipe.catalogue_tokens:
        learn_embeddings(base)
    return base, tokenizer, adapted


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def stage_key(fingerprint: str, recipe: Recipe, model_name: str | None, seed: int) -> str:
    """Changes with everything that changes the backbone. `fingerprint` is of the data set and its split."""
    memory = [recipe.memory_share, recipe.memory_from, recipe.memory_sizes]
    retrieved = [recipe.memory_retrieved_share, recipe.top_ks] if recipe.memory_share else []
    training = [_VERSION, recipe.sft, recipe.sft_batch_blocks, recipe.sft_valid_targets, memory, retrieved]
    shrunk = [recipe.keep_layers, recipe.catalogue_tokens, recipe.tunes_all, recipe.lora_layers]
    source = [recipe.lora_rank, checkpoint_identity(model_name), shrunk] if model_name else recipe.shape
    prompts = [prompt_spec(recipe, is_pretrained=model_name is not None), recipe.max_memory]
    tokens = [recipe.vocabulary, recipe.dropout, recipe.max_softmax_items, recipe.softmax_popular]
    tokens += [recipe.softmax_sampled, recipe.collaborative_start]
    return digest([fingerprint, source, recipe.split_layer, training, prompts, tokens, seed])


def run(
    split: Split,
    out: Path,
    *,
    recipe: Recipe,
    inputs: str,
    model_name: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Returns the certificate. Does nothing when `out` holds the result of the same inputs."""
    if on_main(lambda: is_done(out, inputs)):
        return read_certificate(out)
    if is_main():
        begin(out)
    seed_everything(seed)
    where = pick_device(device)
    tuned = make_model(split, recipe, model_name, where, seed=seed)
    windows = Windows(split, tuned.prompt, recipe.max_memory)
    lm = SplitLM(tuned.model, split_layer(recipe, tuned.model))
    state = _fit(lm, tuned, windows, recipe, seed=seed, checkpoints=out / f"checkpoints-{inputs}")
    if is_main():
        _save(out, tuned, lm.split_layer, state, recipe=recipe, inputs=inputs, model_name=model_name)
    wait_for_main()
    return read_certificate(out)


def _save(
    out: Path,
    tuned: TunableModel,
    split_at: int,
    state: Progress,
    *,
    recipe: Recipe,
    inputs: str,
    model_name: str | None,
) -> None:
    spec = save_backbone(
        out,
        tuned.merged(),
        tuned.prompt.tokenizer,
        base_model=_base_model(recipe, model_name),
        adapter=", ".join(_adapters(recipe, model_name)) or None,
        split_layer=split_at,
    )
    report = {"steps": state.step, "best_step": state.best_step, "valid_loss": round(state.best_loss, 4)}
    facts = {"backbone": spec.model_dump(), "prompt": tuned.prompt.spec.model_dump(), "vocabulary": recipe.vocabulary}
    finish(out, inputs, {**facts, **report})


def _fit(
    lm: SplitLM, tuned: TunableModel, windows: Windows, recipe: Recipe, *, seed: int, checkpoints: Path
) -> Progress:
    lm.model.train()
    loss_at = training_loss(lm, windows, recipe, seed)
    validate = validation(lm, windows, recipe, seed)
    return fit(
        trainable(tuned.model),
        loss_at,
        validate,
        recipe.sft,
        checkpoints=checkpoints,
        label="sft",
        seed=seed,
        choose_after=recipe.memory_from if recipe.memory_share else 0,  # earlier checkpoints cannot read memory
    )


def _base_model(recipe: Recipe, model_name: str | None) -> str:
    """A name for people. A folder or file is named by its last part: bundles contain no path of this machine."""
    if model_name is None:
        return f"llama-{recipe.shape.num_layers}x{recipe.shape.hidden_size} from scratch"
    return Path(model_name).resolve().name if Path(model_name).exists() else model_name


def _adapters(recipe: Recipe, model_name: str | None) -> list[str]:
    changes = []
    if model_name:
        changes += [f"first {recipe.keep_layers} layers"] if recipe.keep_layers else []
        changes += [f"{recipe.catalogue_tokens} tokens of the catalogue"] if recipe.catalogue_tokens else []
        changes += ["all weights tuned" if recipe.tunes_all else f"lora-{recipe.lora_rank} merged"]
    return changes + (["memory-aware"] if recipe.memory_share else [])
