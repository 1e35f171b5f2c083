"""All stages: data set → bundle. Starts at the first unfinished stage. A stage whose inputs changed runs again.

    diagnose → sft → voices → annotate → train_retriever → build_index

`diagnose` says first, on stderr, whether memory can help on this data; the other stages do not depend on it.
Intermediate results are in `OUT.work`; they may be deleted when the bundle is finished.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model_store.catalogue.items import read_items
from model_store.files import ITEMS, read_manifest
from training import annotate, build_index, diagnose, train_retriever, train_words
from training import voices as voices_stage
from training.items.voice_files import read_voices
from training.lm import tuning
from training.lm.gguf import SMOLLM2
from training.run.demo import INTERACTIONS, demo_inputs, demo_questions, write_demo_interactions
from training.run.distributed import is_main, leave_process_group
from training.run.inputs import Inputs, load_inputs
from training.run.program import run_program
from training.run.recipes import RECIPES, Recipe, get_recipe
from training.run.stage import is_done, read_certificate
from training.words.split import WordsSplit, words_split


def run(
    inputs: Inputs,
    out: Path,
    *,
    recipe_name: str,
    work: Path,
    model: str | None = None,
    seed: int = 0,
    device: str = "auto",
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Returns the certificate of each stage. The key of a stage includes the certificates of the stages before it.

    `recipe` is for variants that a study makes; otherwise `recipe_name` is one of `RECIPES`.
    """
    recipe = recipe or get_recipe(recipe_name)
    if recipe.num_threads:
        torch.set_num_threads(recipe.num_threads)
    _, split, fingerprint = inputs
    backbone = work / "sft"
    common: dict[str, Any] = {"recipe": recipe, "seed": seed, "device": device}
    key = tuning.stage_key(fingerprint, recipe, model, seed)
    tuned = tuning.run(split, backbone, inputs=key, model_name=model, **common)
    if not leave_process_group():  # the later stages run in the main process only
        return {"sft": tuned}
    provenance = {"recipe": recipe_name, "model": model}
    return {"sft": tuned, **complete(inputs, out, backbone=backbone, work=work, provenance=provenance, **common)}


def complete(
    inputs: Inputs,
    out: Path,
    *,
    backbone: Path,
    work: Path,
    recipe: Recipe,
    seed: int,
    device: str,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Runs all stages after `backbone`, which may be tuned on other data. `provenance` goes into the manifest."""
    dataset, split, fingerprint = inputs
    tuned = read_certificate(backbone)
    annotations, retriever, voices_dir = (work / name for name in ("annotations", "retriever", "voices"))
    common: dict[str, Any] = {"backbone_dir": backbone, "recipe": recipe, "seed": seed, "device": device}
    key = voices_stage.stage_key(fingerprint, tuned, recipe, seed)
    voted = voices_stage.run(split, voices_dir, inputs=key, **common)
    key = annotate.stage_key(fingerprint, tuned, recipe, seed)
    annotated = annotate.run(split, annotations, inputs=key, **common)
    key = train_retriever.stage_key([annotated, voted], recipe, seed)
    voices = read_voices(voices_dir)
    trained = train_retriever.run(split, retriever, annotations_dir=annotations, voices=voices, inputs=key, **common)
    bundle = build_index.run(
        dataset,
        split,
        out,
        backbone_dir=backbone,
        retriever_dir=retriever,
        voices_dir=voices_dir,
        recipe=recipe,
        inputs=build_index.stage_key(dataset, [trained, voted], recipe),
        provenance={"data": dataset.name, "cut": split.name, **provenance, "seed": seed},
        device=device,
    )
    return {"voices": voted, "annotate": annotated, "retriever": trained, "bundle": bundle}


def complete_demo(
    inputs: Inputs, out: Path, *, work: Path, recipe: Recipe, seed: int, reasoner: str | None = None
) -> dict[str, Any]:
    """Adds to the bundle events of some readers and, if the recipe has askers, the words of their questions.

    `reasoner`: the language model that learns to reason about them, if any.
    """
    if not recipe.synthetic_askers:
        write_demo_interactions(inputs, None, out)
        return {}
    questions = demo_questions(recipe.synthetic_askers, seed)
    split = words_split(questions, [item.item_id for item in read_items(out / ITEMS)])
    key = train_words.stage_key(split, "lsa", train_words.MAX_TARGETS, seed)
    was_done = is_done(work / "words", key)
    facts = train_words.run(split, work / "words", encoder="lsa", seed=seed)
    if read_manifest(out).words is None or not was_done:
        (out / INTERACTIONS).unlink(missing_ok=True)  # else it would be a file of the bundle, with a checksum
        train_words.put_into_bundle(work / "words", out)
    if reasoner is not None:
        facts = {**facts, "reasoner": _add_reasoner(split, out, work, reasoner, seed)}
    write_demo_interactions(inputs, questions, out)
    return facts


def _add_reasoner(split: WordsSplit, out: Path, work: Path, model: str, seed: int) -> dict[str, Any]:
    from training.reasoning.pipeline import Reasoning, put_into_bundle  # only paid where it is asked for
    from training.reasoning.recipes import reason_recipe

    place, recipe = work / "reasoner", reason_recipe("demo")
    facts = Reasoning(split, work / "words", place, model=model, recipe=recipe, seed=seed).run()
    (out / INTERACTIONS).unlink(missing_ok=True)
    put_into_bundle(place, work / "words", out, even_if_worse=True)  # it is there to be tried
    return facts


def _default_recipe(model: str | None) -> str:
    if model is None:
        return "cpu-small"
    return "smollm2" if model == SMOLLM2 else "lora"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data set directory; without it the recipe `demo` makes its own")
    parser.add_argument("--out", type=Path, required=True, help="the bundle to write")
    parser.add_argument(
        "--recipe", choices=sorted(RECIPES), help="named settings (cpu-small; with --model, lora or smollm2)"
    )
    parser.add_argument(
        "--model", help="checkpoint folder, GGUF file, hub name or `smollm2`; without it a small model is made here"
    )
    parser.add_argument(
        "--reasoner", help="demo only: a language model that reasons about questions in words, as `smollm2`"
    )
    parser.add_argument("--cut", default="time", choices=("time", "leave-one-out"), help="how data is cut (time)")
    parser.add_argument("--work", type=Path, help="intermediate results (default OUT.work)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        recipe_name = arguments.recipe or _default_recipe(arguments.model)
        recipe = get_recipe(recipe_name)
        is_demo = arguments.data is None and recipe.synthetic_users > 0
        if arguments.data is None and not is_demo:
            parser.error("--data is required; only the recipe `demo` makes its own data")
        if arguments.reasoner and not is_demo:
            parser.error("--reasoner is for the recipe demo; with data of your own, run training.reason")
        if is_demo:
            inputs = demo_inputs(recipe.synthetic_users, arguments.seed)
        else:
            inputs = load_inputs(arguments.data, arguments.cut)
        work = arguments.work or arguments.out.with_name(arguments.out.name + ".work")
        diagnosis = {}
        if not is_demo and is_main():
            diagnosis["diagnosis"] = diagnose.announce(inputs, work / "diagnosis", recipe=recipe, seed=arguments.seed)
        facts = run(
            inputs,
            arguments.out,
            recipe_name=recipe_name,
            work=work,
            model=arguments.model,
            seed=arguments.seed,
            device=arguments.device,
        )
        if is_demo and "bundle" in facts:
            options = {"work": work, "recipe": recipe, "seed": arguments.seed, "reasoner": arguments.reasoner}
            facts["words"] = complete_demo(inputs, arguments.out, **options)
        return {**diagnosis, **facts}

    return run_program(stage, parser.parse_args(argv), is_shared=True)


if __name__ == "__main__":
    sys.exit(main())
