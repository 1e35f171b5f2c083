"""Titles and tokens that one second of one core tunes, for each way to make a pretrained checkpoint cheaper.

Each way is a recipe of `training`, tuned for a few steps on the same titles, in bf16 and in fp32. Time is that of the
processor, so other programs on the machine disturb little. Of the rows with a frozen bottom half, one counts the whole
step and one leaves out the bottom half, as if its states had been read from a disk. Prints a table and, last, one line
of JSON. About five minutes.

    PYTHONPATH=. python tests/benchmarks/benchmark_tuning.py --data data/ml [--model smollm2] [--steps 2] [--blocks 4]
"""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from model_store.lm.split_lm import SplitLM
from tests.benchmarks.machine import last_line, table
from tests.benchmarks.world import quiet_library
from training.data.splits import Split
from training.lm.backbone import split_layer
from training.lm.objectives import training_loss
from training.lm.tuning import make_model, trainable
from training.lm.windows import Windows
from training.run.inputs import load_inputs
from training.run.recipes import RECIPES, Recipe

LORA = replace(RECIPES["lora"], memory_share=0.0)
SMALL = replace(LORA, keep_layers=6)
WAYS: dict[str, tuple[Recipe, bool]] = {  # recipe, and whether only the layers of the top half learn
    "LoRA, all layers": (LORA, False),
    "LoRA, top half": (LORA, True),
    "LoRA, first 12 layers": (replace(LORA, keep_layers=12), False),
    "LoRA, first 6 layers": (SMALL, False),
    "LoRA, 6 layers, catalogue's tokens": (replace(SMALL, catalogue_tokens=16_000), False),
    "all weights, 6 layers, catalogue's tokens": (replace(SMALL, catalogue_tokens=16_000, tunes_all=True), False),
}


def measure(split: Split, model: str, recipe: Recipe, *, freezes_bottom: bool, steps: int) -> dict[str, Any]:
    """Titles and tokens a second of the processor, for each precision; also with the time of the bottom left out."""
    torch.manual_seed(0)
    made = make_model(split, recipe, model, torch.device("cpu"))
    windows = Windows(split, made.prompt, recipe.max_memory)
    lm = SplitLM(made.model, split_layer(recipe, made.model))
    lm.model.train()
    learned = trainable(made.model)
    if freezes_bottom:
        below = [f"layers.{layer}." for layer in range(lm.split_layer)]
        learned = {name: each for name, each in learned.items() if not any(part in name for part in below)}
        for name, each in made.model.named_parameters():
            each.requires_grad_(name in learned)
    facts: dict[str, Any] = {"learned": sum(each.numel() for each in learned.values())}
    for precision in ("bf16", "fp32"):
        plain = mock.patch("training.lm.objectives.autocast", lambda *_: nullcontext())
        with nullcontext() if precision == "bf16" else plain:
            facts[precision] = _rates(lm, windows, recipe, list(learned.values()), steps)
    return facts


def _rates(lm: SplitLM, windows: Windows, recipe: Recipe, learned: Sequence[Tensor], steps: int) -> dict[str, float]:
    optimizer = torch.optim.AdamW(learned, lr=1e-6, fused=True)
    loss_at = training_loss(lm, windows, recipe, 0)
    titles = tokens = 0
    seconds, bottom_seconds = 0.0, 0.0
    whole_bottom = lm.bottom

    def bottom(read: Tensor, mask: Tensor, *rest: Any, **options: Any) -> Tensor:
        nonlocal titles, tokens, bottom_seconds
        started = time.process_time()
        states = whole_bottom(read, mask, *rest, **options)
        bottom_seconds += time.process_time() - started
        tokens += int(mask.sum())
        titles += int((read * mask == windows.prompt.terminator[-1]).sum())
        return states

    with mock.patch.object(lm, "bottom", bottom):
        for step in range(-1, steps):  # the first step is a warm-up
            if step == 0:
                titles = tokens = 0
                seconds = bottom_seconds = 0.0
            started = time.process_time()
            optimizer.zero_grad(set_to_none=True)
            loss_at(step + 1).backward()
            optimizer.step()
            seconds += time.process_time() - started
    above = seconds - bottom_seconds
    rates = {"titles": titles / seconds, "tokens": tokens / seconds}
    return rates | {"titles_without_bottom": titles / above, "tokens_without_bottom": tokens / above}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=4)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    split = load_inputs(arguments.data, "time").split
    result: dict[str, Any] = {}
    with quiet_library():
        for name, (recipe, freezes) in WAYS.items():
            few = replace(recipe, sft_batch_blocks=arguments.blocks)
            result[name] = measure(split, arguments.model, few, freezes_bottom=freezes, steps=arguments.steps)
            print(name, result[name], file=sys.stderr, flush=True)
    rows: list[tuple[Any, ...]] = [("a second of one core", "learned, M", "titles bf16", "fp32", "tokens bf16", "fp32")]
    for name, facts in result.items():
        kinds = [("", "")] + ([(", its states from a disk", "_without_bottom")] if "top half" in name else [])
        for label, key in kinds:
            numbers = [facts[kind][f"{unit}{key}"] for unit in ("titles", "tokens") for kind in ("bf16", "fp32")]
            rows.append((name + label, facts["learned"] / 1e6, *numbers))
    print(table(rows))
    print(last_line("tuning", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
