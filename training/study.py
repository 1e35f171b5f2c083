"""The open questions, one command each: a study ends in one figure and one table.

    layer      where to split the language model
    memory     size of the memory and length of the window, against quality, latency and bytes
    unit       what an element is: a window's state, an item's, or a mean of several
    topk       how many memories reach the top half, by the retriever, blindly, or by age
    labels     what the retriever learns from: eq. 5, gains at several temperatures, marginal likelihood
    noise      random interactions in the histories, and histories thinned
    cold       users with few interactions
    transfer   a retriever of one data set at work on another
    all        each of them

In: a data set; without one, a small synthetic world. A backbone is trained by the pipeline's stages, once for all
studies of one work directory, or a finished bundle is taken (--bundle); `layer`, `memory` and `transfer` train further
ones. Out: OUT/NAME with figure.png, table.md, index.html and study.json. Everything is measured on the valid period.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model_store.files import read_manifest
from training.run.demo import demo_inputs
from training.run.inputs import load_inputs
from training.run.recipes import RECIPES, get_recipe
from training.run.stage import StageError, run_stage
from training.studies import cold, labels, layer, memory, noise, topk, transfer, unit
from training.studies.finding import Finding, table, write_finding
from training.studies.setting import Setting

STUDIES: dict[str, Callable[[Setting], Finding]] = {
    "layer": layer.run,
    "memory": memory.run,
    "unit": unit.run,
    "topk": topk.run,
    "labels": labels.run,
    "noise": noise.run,
    "cold": cold.run,
    "transfer": transfer.run,
}
SMALL = "study"


def make_setting(options: argparse.Namespace) -> Setting:
    """Raises StageError, DataError or ModelStoreError."""
    made = read_manifest(options.bundle).provenance if options.bundle else {}
    if options.bundle and not {"recipe", "cut", "model", "seed"} <= made.keys():
        raise StageError(f"{options.bundle}: does not say how it was made; make it with training.pipeline")
    if options.bundle and options.data is None:
        raise StageError("--bundle needs --data, the data set that it was made from")
    cut = made.get("cut", options.cut)
    # A bundle's variants are made as the bundle was, by a recipe that may have another name by now.
    recipe_name = options.recipe or made.get("recipe") or ("cpu-small" if options.data else SMALL)
    get_recipe(recipe_name)
    seed, readers = made.get("seed", options.seed), RECIPES[SMALL].synthetic_users
    inputs = load_inputs(options.data, cut) if options.data else demo_inputs(readers, seed)
    other = None
    if options.study in ("transfer", "all"):
        other = load_inputs(options.source, cut) if options.source else demo_inputs(readers, seed + 1)
    bundle_work = options.bundle_work or (options.bundle and options.bundle.with_name(options.bundle.name + ".work"))
    return Setting(
        inputs=inputs,
        recipe_name=recipe_name,
        work=options.work or options.out / "work",
        given=(options.bundle, bundle_work) if options.bundle else None,
        other=other,
        model=made.get("model", options.model),
        num_targets=options.max_targets,
        time_targets=options.time_targets,
        mask_seen=options.mask_seen,
        seed=seed,
        device=options.device,
    )


def run(name: str, setting: Setting, out: Path) -> dict[str, Any]:
    """Writes what one study found, prints its table, and returns what study.json says."""
    finding = STUDIES[name](setting)
    facts = {
        "study": name,
        "data": setting.inputs.dataset.name,
        "cut": setting.inputs.split.name,
        "recipe": setting.recipe_name,
        "seed": setting.seed,
    }
    report = write_finding(finding, facts, out / name)
    print(f"{name}: {finding.question}\n{table(finding)}\n", flush=True)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "all"], metavar="NAME", help="one of the names above")
    parser.add_argument("--data", type=Path, help="data set directory (without it: a small synthetic world)")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results, one folder a study")
    parser.add_argument("--work", type=Path, help="backbones and all else that studies share (default OUT/work)")
    parser.add_argument(
        "--recipe",
        help=f"named settings, see training/recipes.py (the bundle's own, cpu-small; without --data, {SMALL})",
    )
    parser.add_argument("--model", help="checkpoint folder or hub name; without it small models are made here")
    parser.add_argument("--bundle", type=Path, help="a finished bundle of --data, instead of training one")
    parser.add_argument("--bundle-work", type=Path, help="the bundle's stages (default BUNDLE.work)")
    parser.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="DATA",
        help="transfer: the other data set (another synthetic world)",
    )
    parser.add_argument("--cut", default="time", choices=("time", "leave-one-out"), help="how data is cut (time)")
    parser.add_argument("--max-targets", type=int, default=500, help="valid targets, drawn by seed (500)")
    parser.add_argument("--time-targets", type=int, default=40, help="answers that are timed, where a study times (40)")
    parser.add_argument("--mask-seen", action="store_true", help="never show what the user had already")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")

    def stage(options: argparse.Namespace) -> dict[str, Any]:
        setting = make_setting(options)
        names = list(STUDIES) if options.study == "all" else [options.study]
        reports = {name: run(name, setting, options.out) for name in names}
        lines = {name: list(report["lines"]) for name, report in reports.items()}
        return {"studies": {name: str(options.out / name) for name in names}, "lines": lines}

    return run_stage(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
