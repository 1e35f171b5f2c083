"""All stages: data set → bundle. Starts at the first unfinished stage; a stage whose inputs changed runs again.

    sft → annotate → train_retriever → build_index

Intermediate results live in `OUT.work` and may be deleted once the bundle is there.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training import annotate, build_index, sft, train_retriever
from training.demo import demo_inputs, write_demo_interactions
from training.inputs import Inputs, load_inputs
from training.recipes import RECIPES, Recipe, get_recipe
from training.stage import digest, run_stage


def run(
    inputs: Inputs, out: Path, *, recipe_name: str, work: Path, model: str | None = None, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Returns what each stage reported."""
    recipe = get_recipe(recipe_name)
    keys = stage_keys(inputs.fingerprint, recipe, model, seed)
    common: dict[str, Any] = {"recipe": recipe, "seed": seed, "device": device}
    split = inputs.split
    states = work / f"states-{keys['annotate']}"
    facts = {"sft": sft.run(split, work / "sft", inputs=keys["sft"], model_name=model, **common)}
    backbone = work / "sft"
    facts["annotate"] = annotate.run(
        split, work / "annotations", backbone_dir=backbone, states_dir=states, inputs=keys["annotate"], **common
    )
    facts["retriever"] = train_retriever.run(
        split, work / "retriever", annotations_dir=work / "annotations", recipe=recipe, inputs=keys["retriever"], seed=seed
    )
    provenance = {"data": inputs.dataset.name, "split": split.name, "recipe": recipe_name, "model": model, "seed": seed}
    facts["bundle"] = build_index.run(
        inputs.dataset,
        split,
        out,
        backbone_dir=backbone,
        retriever_dir=work / "retriever",
        recipe=recipe,
        provenance=provenance,
        device=device,
    )
    return facts


def stage_keys(fingerprint: str, recipe: Recipe, model: str | None, seed: int) -> dict[str, str]:
    """What each stage depends on, upstream included, as digests."""
    keys: dict[str, str] = {}
    keys["sft"] = digest([fingerprint, *sft.sft_facts(recipe), model, seed])
    keys["annotate"] = digest([keys["sft"], recipe.annotate_targets, recipe.valid_targets, recipe.max_memory, recipe.combine])
    keys["retriever"] = digest(
        [keys["annotate"], recipe.retriever, recipe.retriever_width, recipe.gain_form, recipe.label_temperatures, recipe.top_k]
    )
    return keys


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data set directory; the recipe `demo` makes its own when it is left out")
    parser.add_argument("--out", type=Path, required=True, help="the bundle to write")
    parser.add_argument("--recipe", default="cpu-small", choices=sorted(RECIPES), help="named settings (default cpu-small)")
    parser.add_argument("--model", help="checkpoint folder or hub name; without it a small model is trained from scratch")
    parser.add_argument("--split", default="time", choices=("time", "leave-one-out"), help="how data is cut (default time)")
    parser.add_argument("--work", type=Path, help="intermediate results (default OUT.work)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        recipe = get_recipe(arguments.recipe)
        is_demo = arguments.data is None and recipe.synthetic_users > 0
        if arguments.data is None and not is_demo:
            parser.error("--data is required; only the recipe `demo` makes its own data")
        inputs = demo_inputs(recipe.synthetic_users, arguments.seed) if is_demo else load_inputs(arguments.data, arguments.split)
        facts = run(
            inputs,
            arguments.out,
            recipe_name=arguments.recipe,
            work=arguments.work or arguments.out.with_name(arguments.out.name + ".work"),
            model=arguments.model,
            seed=arguments.seed,
            device=arguments.device,
        )
        if is_demo:
            write_demo_interactions(inputs, arguments.out)
        return facts

    return run_stage(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
