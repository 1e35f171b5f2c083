"""Open questions about the method, one study for each. A study writes one figure and one table.

    layer      the layer at which the language model is split
    memory     size of the memory and length of the window, by quality, latency and bytes
    unit       what an element of memory represents: a window's state, an item's, or a mean of several
    topk       how many memories the top half reads, chosen by the retriever, at random, or by age
    labels     what the retriever learns from: eq. 5, gains at several temperatures, marginal likelihood
    noise      random interactions in the histories, and incomplete histories
    cold       users with few interactions
    voices     how much each voice of a bundle counts, from the window and from older events
    collective what followed similar windows of other users, beside the language model
    transfer   a retriever of one data set on another
    all        each of them

In: a data set; without one, a small synthetic world. A backbone is trained by the stages of the pipeline, once for all
studies of one work directory, or a finished bundle is used (--bundle). `layer`, `memory` and `transfer` train further
bundles. Out: OUT/NAME with figure.png, table.md, index.html and study.json. All measurements are on the valid period,
on users that neither taught nor chose the retriever (training/memory/judges.py).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model_store.files import read_manifest
from training.report.writer import markdown_table
from training.run.demo import demo_inputs
from training.run.inputs import load_inputs
from training.run.program import run_program
from training.run.recipes import RECIPES, get_recipe
from training.run.stage import StageError
from training.studies import cold, collective, labels, layer, memory, noise, topk, transfer, unit, voices
from training.studies.context import StudyContext
from training.studies.result import StudyResult, study_table, write_result

STUDIES: dict[str, Callable[[StudyContext], StudyResult]] = {
    "layer": layer.run,
    "memory": memory.run,
    "unit": unit.run,
    "topk": topk.run,
    "labels": labels.run,
    "noise": noise.run,
    "cold": cold.run,
    "voices": voices.run,
    "collective": collective.run,
    "transfer": transfer.run,
}
_SMALL_RECIPE = "study"


def make_context(options: argparse.Namespace) -> StudyContext:
    """Raises StageError, DataError or ModelStoreError."""
    provenance = read_manifest(options.bundle).provenance if options.bundle else {}
    if options.bundle and not {"recipe", "cut", "model", "seed"} <= provenance.keys():
        raise StageError(
            f"{options.bundle}: the manifest does not tell how it was made; make it with training.pipeline"
        )
    if options.bundle and options.data is None:
        raise StageError("--bundle needs --data, the data set that it was made from")
    cut = provenance.get("cut", options.cut)
    # Variants of a bundle need its recipe, which may have another name today: --recipe names it then.
    recipe_name = options.recipe or provenance.get("recipe") or ("cpu-small" if options.data else _SMALL_RECIPE)
    get_recipe(recipe_name)
    seed, num_users = provenance.get("seed", options.seed), RECIPES[_SMALL_RECIPE].synthetic_users
    inputs = load_inputs(options.data, cut) if options.data else demo_inputs(num_users, seed)
    other = None
    if options.study in ("transfer", "all"):
        other = load_inputs(options.source, cut) if options.source else demo_inputs(num_users, seed + 1)
    bundle_work = options.bundle_work or (options.bundle and options.bundle.with_name(options.bundle.name + ".work"))
    return StudyContext(
        inputs=inputs,
        recipe_name=recipe_name,
        work=options.work or options.out / "work",
        finished=(options.bundle, bundle_work) if options.bundle else None,
        other=other,
        more=options.more,
        model=provenance.get("model", options.model),
        num_targets=options.max_targets,
        time_targets=options.time_targets,
        mask_seen=options.mask_seen,
        seed=seed,
        device=options.device,
    )


def run(name: str, context: StudyContext, out: Path) -> dict[str, Any]:
    """Runs one study, writes its result and prints its table. Returns the content of study.json."""
    result = STUDIES[name](context)
    facts = {
        "study": name,
        "data": context.inputs.dataset.name,
        "cut": context.inputs.split.name,
        "recipe": context.recipe_name,
        "seed": context.seed,
    }
    content = write_result(result, facts, out / name)
    print("\n".join([f"{name}: {result.question}", *markdown_table(study_table(result)), ""]), flush=True)
    return content


def _all_studies(context: StudyContext) -> list[str]:
    """Without `voices` where the bundle has none."""
    return [name for name in STUDIES if name != "voices" or context.base.bundle.voices is not None]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "all"], metavar="NAME", help="one of the names above")
    parser.add_argument("--data", type=Path, help="data set directory (without it: a small synthetic world)")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results, one folder for each study")
    parser.add_argument("--work", type=Path, help="directory of the backbones that studies share (OUT/work)")
    parser.add_argument(
        "--recipe",
        help=f"a name in training/run/recipes.py (the bundle's own, or cpu-small; without --data {_SMALL_RECIPE})",
    )
    parser.add_argument(
        "--model", help="checkpoint folder, GGUF file, hub name or `smollm2`; without it small models are made here"
    )
    parser.add_argument("--bundle", type=Path, help="finished bundle of --data, used instead of training one")
    parser.add_argument("--bundle-work", type=Path, help="directory of the bundle's stages (BUNDLE.work)")
    parser.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="DATA",
        help="transfer: the other data set (another synthetic world)",
    )
    parser.add_argument("--cut", default="time", choices=("time", "leave-one-out"), help="how data is cut (time)")
    parser.add_argument("--max-targets", type=int, default=500, help="valid targets, drawn by seed (500)")
    parser.add_argument(
        "--time-targets", type=int, default=40, help="answers that are timed, in studies with times (40)"
    )
    parser.add_argument(
        "--more",
        type=Path,
        nargs=2,
        action="append",
        default=[],
        metavar=("BUNDLE", "DATA"),
        help="voices: a further bundle and its data set; may be repeated",
    )
    parser.add_argument(
        "--mask-seen",
        action=argparse.BooleanOptionalAction,
        help="leave out items that the user had; the default where the train period has (almost) no repeats",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")

    def stage(options: argparse.Namespace) -> dict[str, Any]:
        context = make_context(options)
        names = _all_studies(context) if options.study == "all" else [options.study]
        reports = {name: run(name, context, options.out) for name in names}
        lines = {name: list(report["lines"]) for name, report in reports.items()}
        return {"studies": {name: str(options.out / name) for name in names}, "lines": lines}

    return run_program(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
