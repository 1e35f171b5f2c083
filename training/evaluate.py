"""Evaluate a bundle: does memory help? All rows on the same targets, full ranking, 95 % intervals by user.

In: a bundle and the data set it was made from. Out: OUT/index.html, metrics.json, report.md and figures. The rows are
listed in `training/rows/registry.py`. Lists and times are cached by row in OUT/cache, and models that rows train are
kept in OUT/work, so that a further row, or an interrupted run, computes nothing twice. Targets are drawn by seed.
Nothing is chosen on these targets: all choices of a recipe are made on the valid period.

Some rows tune a language model of their own, about as long as `training.sft` takes; the program says which. Rows that
take hours on a CPU are computed with `--models all`, or by name.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_store.bundle import Bundle
from training.data.dataset import MANIFEST
from training.data.splits import sample_targets
from training.memory.retrieval_metrics import (
    RetrievalRecords,
    measure_targets,
    read_records,
    retrieval_summary,
    write_records,
)
from training.report.evaluation_report import write_report
from training.rows.evaluation import Evaluation, RankedLists, cached_json, make_evaluation, recipe_of
from training.rows.latency import latency_summary, time_row
from training.rows.registry import (
    ROWS,
    available_rows,
    canonical_row,
    certificate,
    default_rows,
    memory_reference,
    own_row,
    predict,
    trained_by,
)
from training.rows.row_metrics import Metrics, References, compare_rows, coverage, metrics_by_target
from training.run.device import pick_device
from training.run.inputs import Inputs, load_inputs
from training.run.program import run_program
from training.run.stage import StageError, digest

ORACLE = "oracle"
_NOT_SHOWN = ("inputs", "backbone", "prompt", "vocabulary")
_OF_VOICES = (
    "memory_use",
    "targets",
    "valid_ndcg@10_window",
    "valid_ndcg@10_memory",
    "memory_minus_window",
    "shares",
)  # facts of their certificate in the report
_VERSION = 4  # of the rows; lists in a cache of another version are not used


def rows_to_run(models: str, bundle: Bundle) -> list[str]:
    """The rows that `--models` names, without repeats.

    With "all", every row that the bundle can have; with "default", without those that take hours on a CPU.
    """
    if models in ("all", "default"):
        return list((available_rows if models == "all" else default_rows)(bundle))
    rows = [row.strip() for row in models.split(",")]
    if unknown := sorted(set(rows) - set(ROWS)):
        raise StageError(f"unknown models {', '.join(unknown)}: choose among {', '.join(ROWS)}, default or all")
    return list(dict.fromkeys(canonical_row(row, bundle) for row in rows))


def num_draws(row: str, options: argparse.Namespace) -> int:
    """How many seeds of a row are evaluated. A random memory is cheap to draw; other seeded rows are trained anew."""
    if not ROWS[row].is_seeded:
        return 1
    return int(options.draws if row == "random" else options.seeds)


def announcement(rows: Sequence[str], bundle: Bundle) -> list[str]:
    """A line for each row that tunes a language model, and one that says how long this takes."""
    trains = {row: trained_by(row, bundle) for row in rows if trained_by(row, bundle)}
    if not trains:
        return []
    lines = [f"  {row}: {text}" for row, text in trains.items()]
    recipe = recipe_of(bundle)
    steps = f" (at most {recipe.sft.max_steps} steps)" if recipe else ""
    return [
        "These rows tune a language model, unless OUT/work has it. Each different one takes about as long as"
        f" training.sft took for the bundle{steps}; its progress bar shows the time left.",
        *lines,
    ]


# --- results that are cached --------------------------------------------------------------------------------------


def cached_lists(evaluation: Evaluation, row: str, seed: int, cache: Path) -> RankedLists:
    file = cache / f"{row}-{seed}.json"
    lists: RankedLists = cached_json(file, lambda: predict(evaluation, row, seed))
    return lists


def cached_latency(evaluation: Evaluation, row: str, num_targets: int, cache: Path) -> dict[str, Any] | None:
    """None for rows that are not timed, and with no targets to time."""
    if not ROWS[row].is_timed or not num_targets:
        return None
    file = cache / f"{row}-latency-{num_targets}.json"
    return latency_summary(cached_json(file, lambda: time_row(evaluation, row, num_targets=num_targets)))


def cached_retrieval(evaluation: Evaluation, cache: Path) -> RetrievalRecords | None:
    """None where no target has memory."""
    file = cache / "judged.safetensors"
    if file.is_file():
        return read_records(file)
    records = measure_targets(
        evaluation.bundle, evaluation.split, evaluation.examples, evaluation.annotate(), evaluation.states
    )
    if records is not None:
        write_records(records, file)
    return records


# --- the report ---------------------------------------------------------------------------------------------------


def run(bundle: Bundle, inputs: Inputs, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Writes the report and returns it as metrics.json has it."""
    if options.mask_seen is None:
        options.mask_seen = not inputs.split.has_repeats
    rows = rows_to_run(options.models, bundle)
    for line in announcement(rows, bundle):
        print(line, file=sys.stderr)
    population = getattr(inputs.split, options.split)
    evaluation, cache = _open_evaluation(bundle, inputs, out, options)
    metrics: Metrics = {}
    about_rows: dict[str, Any] = {}
    for row in rows:
        lists = [cached_lists(evaluation, row, seed, cache) for seed in range(num_draws(row, options))]
        metrics[row] = _metrics_by_seed(evaluation, lists)
        about_rows[row] = _about_row(
            evaluation, row, lists, cached_latency(evaluation, row, options.time_targets, cache)
        )
    records = cached_retrieval(evaluation, cache) if ORACLE in rows else None
    top_k = bundle.manifest.retriever.top_k
    references = References(own_row(bundle), memory_reference(bundle))
    report = {
        "data": inputs.dataset.name,
        "split": options.split,
        "cut": inputs.split.name,
        "targets": len(evaluation.targets),
        "seeds": options.seeds,
        "draws": options.draws,
        "mask_seen": options.mask_seen,
        "bundle": bundle.manifest.name,
        "space": bundle.manifest.space,
        "items": len(inputs.split.item_ids),
        "own": references.own if references.own in rows else None,
        "no_memory": references.no_memory,
        "about_rows": about_rows,
        "slices": compare_rows(metrics, evaluation, references, options.seed),
        "voices": voice_facts(bundle),
        "retriever": None if records is None else retrieval_summary(records, top_k=top_k, seed=options.seed),
        "run": {**facts(bundle, inputs, len(population), options), "commands": commands(bundle, options)},
    }
    write_report(report, records, out)
    return report


def _open_evaluation(bundle: Bundle, inputs: Inputs, out: Path, options: argparse.Namespace) -> tuple[Evaluation, Path]:
    """The evaluation and its cache, a directory whose name depends on the data, the bundle and the targets."""
    targets = sample_targets(getattr(inputs.split, options.split), options.max_targets, options.seed)
    choice = [_VERSION, options.split, options.max_targets, options.seed, options.mask_seen]
    cache = out / "cache" / digest([inputs.fingerprint, bundle.manifest.model_dump(), *choice])
    evaluation = make_evaluation(
        bundle, inputs, targets, cache, mask_seen=options.mask_seen, work=out / "work", device=options.device
    )
    return evaluation, cache


def voice_facts(bundle: Bundle) -> dict[str, Any] | None:
    """What the stage "voices" found on the valid period. None without voices, or where the bundle does not tell."""
    certificate = bundle.manifest.provenance.get("voices") or {}
    found = {name: certificate[name] for name in _OF_VOICES if name in certificate}
    return found if bundle.voices is not None and len(found) == len(_OF_VOICES) else None


def _metrics_by_seed(evaluation: Evaluation, lists: Sequence[RankedLists]) -> dict[str, np.ndarray]:
    """metric → (seeds, targets)"""
    draws = [metrics_by_target(each, evaluation.targets, evaluation.split) for each in lists]
    return {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}


def _about_row(
    evaluation: Evaluation, row: str, lists: Sequence[RankedLists], latency: dict[str, Any] | None
) -> dict[str, Any]:
    shares = [coverage(each, len(evaluation.split.item_ids)) for each in lists]
    certificates = {seed: certificate(evaluation, row, seed) for seed in range(len(lists))}
    return {
        "draws": len(lists),
        "coverage": round(float(np.mean(shares)), 6),
        "latency": latency,
        "trained": [_about_training(seed, facts) for seed, facts in certificates.items() if facts],
    }


def _about_training(seed: int, facts: dict[str, Any]) -> dict[str, Any]:
    """A certificate without what says nothing about quality."""
    return {"seed": seed} | {name: value for name, value in facts.items() if name not in _NOT_SHOWN}


def facts(bundle: Bundle, inputs: Inputs, num_population: int, options: argparse.Namespace) -> dict[str, Any]:
    """What the report says about the data, the bundle and the machine."""
    manifest, split = bundle.manifest, inputs.split
    return {
        "users": len(split.histories),
        "interactions": sum(len(history.items) for history in split.histories),
        "population": num_population,
        "seed": options.seed,
        "vocabulary": manifest.vocabulary,
        "base_model": manifest.backbone.base_model,
        "adapter": manifest.backbone.adapter,
        "num_layers": manifest.backbone.num_layers,
        "split_layer": manifest.backbone.split_layer,
        "hidden_size": manifest.backbone.hidden_size,
        "recent_length": manifest.prompt.recent_length,
        "max_memory": manifest.memory.max_elements,
        "top_k": manifest.retriever.top_k,
        "combine": manifest.retriever.combine,
        "num_beams": manifest.generation.num_beams,
        "past_length": bundle.manifest.voices.past_length if bundle.manifest.voices else None,
        "created_at": manifest.created_at,
        "device": str(bundle.lm.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commands(bundle: Bundle, options: argparse.Namespace) -> list[str]:
    """Commands that make this report again: the source as the data set names it, the pipeline as the bundle does."""
    data, provenance = str(options.data), bundle.manifest.provenance
    pipeline = {"data": data, "out": options.bundle, "cut": provenance.get("cut"), "recipe": provenance.get("recipe")}
    pipeline |= {"model": provenance.get("model"), "seed": provenance.get("seed")}
    evaluate = {"bundle": options.bundle, "data": data, "split": options.split, "models": options.models}
    evaluate |= {"max-targets": options.max_targets, "seeds": options.seeds, "draws": options.draws}
    evaluate |= {"time-targets": options.time_targets, "seed": options.seed, "device": options.device}
    evaluate |= {"out": options.out}
    return [
        *_prepare_command(options.data),
        _command("training.pipeline", pipeline),
        _command("training.evaluate", evaluate) + (" --mask-seen" if options.mask_seen else " --no-mask-seen"),
    ]


def _prepare_command(data: Path) -> list[str]:
    manifest = data / MANIFEST
    source = json.loads(manifest.read_text()).get("source", {}) if manifest.is_file() else {}
    if source.get("synthetic"):
        synthetic = {"users": source.get("users"), "seed": source.get("seed"), "out": data}
        return [_command("training.data.synthetic", synthetic)]
    if source.get("format"):
        prepare = {"format": source["format"], "source": source.get("path"), "out": data}
        return [_command("training.prepare", prepare | source.get("options", {}))]
    return []


def _command(module: str, options: dict[str, Any]) -> str:
    arguments = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return " ".join([f"python -m {module}", *arguments])


def main(argv: Sequence[str] | None = None) -> int:
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("--task", default="next", choices=("next", "query"))
    chosen, others = chooser.parse_known_args(argv)
    if chosen.task == "query":
        from training.evaluate_words import main as evaluate_words  # only paid where it is asked for

        return evaluate_words(others)
    return _evaluate_next(others)


def _evaluate_next(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--task",
        default="next",
        choices=("next", "query"),
        help="next: the next item of users (this help); query: queries in words, with the options of evaluate_words",
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="data set that the bundle was made from")
    parser.add_argument("--out", type=Path, required=True, help="directory of the report")
    parser.add_argument("--split", default="test", choices=("valid", "test"), help="period of the targets (test)")
    parser.add_argument(
        "--models",
        default="default",
        help=f"rows, comma separated; default: those that do not take hours on a CPU; all: {', '.join(ROWS)}",
    )
    parser.add_argument("--max-targets", type=int, default=5000, help="number of targets, drawn by seed (5000)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each trained row (3)")
    parser.add_argument("--draws", type=int, default=10, help="draws of the random memory (10)")
    parser.add_argument(
        "--time-targets", type=int, default=100, help="targets that a row is timed on, one by one; 0 for no times (100)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--mask-seen",
        action=argparse.BooleanOptionalAction,
        help="leave out items that the user had; the default where the train period has (almost) no repeats",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")

    def stage(options: argparse.Namespace) -> dict[str, Any]:
        options.out.mkdir(parents=True, exist_ok=True)
        bundle = Bundle.open(options.bundle, device=pick_device(options.device))
        # The cut must be the bundle's: with another one, targets would be data that it was trained on.
        inputs = load_inputs(options.data, bundle.manifest.provenance.get("cut", "time"))
        report = run(bundle, inputs, options.out, options)
        ndcg = {row: round(values["ndcg@10"][0], 4) for row, values in report["slices"]["all"]["rows"].items()}
        return {"report": str(options.out), "ndcg@10": ndcg}

    return run_program(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
