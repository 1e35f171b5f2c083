"""Stage 1: tune the language model to write the next title (BIGRec, arXiv 2308.08434, step 1), and to read memory.

In: a data set. Out: a backbone directory. Without `--model` a small Llama and its tokenizer are made from the catalogue
and trained whole; with it, the checkpoint gets LoRA adapters, merged at the end. How a batch is made: `packing.py`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model_store.prompt import Prompt
from model_store.split_lm import SplitLM
from training.backbone import (
    checkpoint_identity,
    new_model,
    new_tokenizer,
    pretrained,
    prompt_spec,
    save_backbone,
    split_layer,
)
from training.data.splits import Split, sample_targets
from training.inputs import load_inputs
from training.loop import Progress, fit
from training.packing import PackedBatches, packed_loss, target_rows
from training.recipes import Recipe, get_recipe
from training.stage import (
    autocast,
    begin,
    digest,
    finish,
    is_done,
    pick_device,
    read_certificate,
    run_stage,
    seed_everything,
    stage_parser,
)
from training.windows import Windows

_VALID_BATCH = 16


class Tuned(NamedTuple):
    """A model in training. `adapted` carries the adapters of a checkpoint; it is None for a model trained whole."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapted: Any

    def whole(self) -> PreTrainedModel:
        """The plain model, adapters merged."""
        merged: PreTrainedModel = self.model if self.adapted is None else self.adapted.merge_and_unload()
        return merged


def make_model(split: Split, recipe: Recipe, model_name: str | None, device: torch.device) -> Tuned:
    if model_name is None:
        tokenizer = new_tokenizer(split.titles, split.popularity.tolist(), recipe.shape.vocab_size)
        return Tuned(_on(new_model(recipe.shape, len(tokenizer)), device), tokenizer, None)
    from peft import LoraConfig, get_peft_model  # two seconds of import, only paid here

    model, its_tokenizer = pretrained(model_name, device)
    config = LoraConfig(r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, lora_dropout=0.05, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)  # target modules (q and v) come from peft's table of architectures
    return Tuned(_on(adapted.get_base_model(), device), its_tokenizer, adapted)


def _on(model: Any, device: torch.device) -> PreTrainedModel:
    placed: PreTrainedModel = model.to(device)
    return placed


def validation(lm: SplitLM, windows: Windows, recipe: Recipe, seed: int) -> Callable[[], float]:
    """Mean negative log-probability, in nats, of a whole true title over sampled valid targets.

    With a memory-aware recipe, the mean of the cases without memory and with all of it.
    """
    targets = sample_targets(windows.split.valid, recipe.sft_valid_targets, seed)
    cases = (False, True) if recipe.memory_share else (False,)

    @torch.inference_mode()
    def validate() -> float:
        lm.model.eval()
        total = 0.0
        for with_memory in cases:
            for start in range(0, len(targets), _VALID_BATCH):
                rows: list[Any] = []
                for target in targets[start : start + _VALID_BATCH]:
                    rows += target_rows(windows, target.user, target.position, len(rows), with_memory=with_memory)
                with autocast(lm.device):
                    total += float(packed_loss(lm, rows, reduction="sum"))
        lm.model.train()
        return total / len(targets) / len(cases)

    return validate


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def stage_key(fingerprint: str, recipe: Recipe, model_name: str | None, seed: int) -> str:
    """What the backbone depends on."""
    training = [recipe.sft, recipe.sft_batch_blocks, recipe.sft_valid_targets, recipe.memory_share, recipe.memory_from]
    source = [recipe.lora_rank, checkpoint_identity(model_name)] if model_name else recipe.shape
    prompts = [prompt_spec(recipe, is_pretrained=model_name is not None), recipe.max_memory]
    return digest([fingerprint, source, recipe.split_layer, training, prompts, seed])


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
    """Returns the certificate; does nothing when the stage is done already."""
    if is_done(out, inputs):
        return read_certificate(out)
    begin(out)
    seed_everything(seed)
    where = pick_device(device)
    tuned = make_model(split, recipe, model_name, where)
    prompt = Prompt(tuned.tokenizer, prompt_spec(recipe, is_pretrained=model_name is not None))
    windows = Windows(split, prompt, recipe.max_memory)
    lm = SplitLM(tuned.model, split_layer(recipe, tuned.model))
    state = _fit(lm, tuned, windows, recipe, seed=seed, checkpoints=out / f"checkpoints-{inputs}")
    spec = save_backbone(
        out,
        tuned.whole(),
        tuned.tokenizer,
        base_model=_base_model(recipe, model_name),
        adapter=", ".join(_adapters(recipe, model_name)) or None,
        split_layer=lm.split_layer,
    )
    report = {"steps": state.step, "best_step": state.best_step, "valid_title_nats": round(state.best_loss, 4)}
    return finish(out, inputs, {"backbone": spec.model_dump(), "prompt": prompt.spec.model_dump(), **report})


def _fit(lm: SplitLM, tuned: Tuned, windows: Windows, recipe: Recipe, *, seed: int, checkpoints: Path) -> Progress:
    batches = PackedBatches(
        windows,
        num_blocks=recipe.sft_batch_blocks,
        memory_share=recipe.memory_share,
        memory_from=recipe.memory_from,
        seed=seed,
    )

    def loss_at(step: int) -> Tensor:
        with autocast(lm.device):
            return packed_loss(lm, batches(step))

    lm.model.train()
    validate = validation(lm, windows, recipe, seed)
    return fit(trainable(tuned.model), loss_at, validate, recipe.sft, checkpoints=checkpoints, label="sft")


def _base_model(recipe: Recipe, model_name: str | None) -> str:
    """For people: a hub name as it is, a folder by its last part, so that no path of this machine is published."""
    if model_name is None:
        return f"llama-{recipe.shape.num_layers}x{recipe.shape.hidden_size} from scratch"
    return Path(model_name).resolve().name if Path(model_name).is_dir() else model_name


def _adapters(recipe: Recipe, model_name: str | None) -> list[str]:
    lora = [f"lora-{recipe.lora_rank} merged"] if model_name else []
    return lora + (["memory-aware"] if recipe.memory_share else [])


def main(argv: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__ or "")
    parser.add_argument("--model", help="checkpoint folder or hub name; without it a small model is made here")

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        _, split, fingerprint = load_inputs(arguments.data, arguments.cut)
        recipe = get_recipe(arguments.recipe)
        return run(
            split,
            arguments.out,
            recipe=recipe,
            inputs=stage_key(fingerprint, recipe, arguments.model, arguments.seed),
            model_name=arguments.model,
            seed=arguments.seed,
            device=arguments.device,
        )

    return run_stage(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
