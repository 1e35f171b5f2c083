"""Does memory pay? Every row on the same targets, full ranking, with 95 % intervals (paired bootstrap by user).

In: a bundle and the data it was made from. Out: REPORT/index.html, metrics.json, report.md and figures; lists and times
are cached by row in REPORT/cache, so that another row, or an interrupted run, computes nothing twice. Targets are drawn
by seed. Nothing is selected here: what a recipe chooses, it chose on the valid period.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_store.bundle import Bundle
from training.data.dataset import MANIFEST
from training.data.splits import sample_targets
from training.memory import retrieval_quality
from training.memory.retrieval_quality import Judged, judge_targets, read_judged, write_judged
from training.report.report import write_report
from training.rows import latency
from training.rows.contest import Contest, Lists, make_contest
from training.rows.registry import ROWS, SEEDED_ROWS, neighbor_share, predict, row_of, rows_of
from training.rows.scores import Metrics, coverage, own_row, score, summarise
from training.run.inputs import Inputs, load_inputs
from training.run.stage import StageError, digest, pick_device, run_stage, write_json

ORACLE = "oracle"


def rows_to_run(asked: str, bundle: Bundle) -> list[str]:
    """All that the bundle can have, or those asked for, each by the row that stands for it."""
    if asked == "all":
        return list(rows_of(bundle))
    rows = [row.strip() for row in asked.split(",")]
    if unknown := sorted(set(rows) - set(ROWS)):
        raise StageError(f"unknown models {', '.join(unknown)}: choose among {', '.join(ROWS)}, or all")
    return list(dict.fromkeys(row_of(row, bundle) for row in rows))


def num_draws(row: str, options: argparse.Namespace) -> int:
    """A random memory is cheap to draw again; another seed of another seeded row is another training."""
    if row not in SEEDED_ROWS:
        return 1
    return int(options.draws if row == "random" else options.seeds)


# --- what is computed once ----------------------------------------------------------------------------------------


def cached(file: Path, compute: Callable[[], Any]) -> Any:
    if not file.is_file():
        write_json(file, compute())
    return json.loads(file.read_text())


def cached_lists(contest: Contest, row: str, seed: int, cache: Path) -> Lists:
    file = cache / f"{_slug(contest, row)}-{seed}.json"
    lists: Lists = cached(file, lambda: predict(contest, row, seed))
    return lists


def cached_latency(contest: Contest, row: str, num_targets: int, cache: Path) -> dict[str, Any] | None:
    """None for rows that no language model answers, and where nobody wants to know."""
    if row in latency.UNTIMED or not num_targets:
        return None
    file = cache / f"{_slug(contest, row)}-latency-{num_targets}.json"
    return latency.summarise(cached(file, lambda: latency.time_row(contest, row, num_targets=num_targets)))


def _slug(contest: Contest, row: str) -> str:
    """With λ: which rows hear neighbours is a matter of definition, and definitions change."""
    return f"{row}-{neighbor_share(contest.bundle, row):g}"


def cached_judged(contest: Contest, cache: Path) -> Judged | None:
    """None where no target has memory."""
    file = cache / "judged.safetensors"
    if file.is_file():
        return read_judged(file)
    judged = judge_targets(contest.bundle, contest.split, contest.examples, contest.annotate(), contest.states)
    if judged is not None:
        write_judged(judged, file)
    return judged


# --- the report ---------------------------------------------------------------------------------------------------


def run(bundle: Bundle, inputs: Inputs, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Writes the report and returns it."""
    if options.mask_seen is None:
        options.mask_seen = not inputs.split.has_repeats
    rows = rows_to_run(options.models, bundle)
    population = getattr(inputs.split, options.split)
    targets = sample_targets(population, options.max_targets, options.seed)
    asked = [options.split, options.max_targets, options.seed, options.mask_seen]
    cache = out / "cache" / digest([inputs.fingerprint, bundle.manifest.model_dump(), *asked])
    work = out / "work"  # what rows train serves any targets
    contest = make_contest(
        bundle, inputs, targets, cache, mask_seen=options.mask_seen, work=work, device=options.device
    )
    metrics: Metrics = {}
    about: dict[str, Any] = {}
    for row in rows:
        lists = [cached_lists(contest, row, seed, cache) for seed in range(num_draws(row, options))]
        draws = [score(each, targets, inputs.split) for each in lists]
        metrics[row] = {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}
        shown = [coverage(each, len(inputs.split.item_ids)) for each in lists]
        times = cached_latency(contest, row, options.time_targets, cache)
        about[row] = {
            "draws": len(lists),
            "neighbor_share": neighbor_share(bundle, row),
            "coverage": round(float(np.mean(shown)), 6),
            "latency": times,
        }
    judged = cached_judged(contest, cache) if ORACLE in rows else None
    report = {
        "data": inputs.dataset.name,
        "split": options.split,
        "cut": inputs.split.name,
        "targets": len(targets),
        "seeds": options.seeds,
        "draws": options.draws,
        "mask_seen": options.mask_seen,
        "bundle": bundle.manifest.name,
        "space": bundle.manifest.space,
        "items": len(inputs.split.item_ids),
        "own": own_row(rows),
        "about_rows": about,
        "slices": summarise(metrics, contest, options.seed),
        "retriever": _judge(bundle, judged, options.seed),
        "run": {**facts(bundle, inputs, len(population), options), "commands": commands(bundle, options)},
    }
    write_report(report, judged, out)
    return report


def _judge(bundle: Bundle, judged: Judged | None, seed: int) -> dict[str, Any] | None:
    if judged is None:
        return None
    return retrieval_quality.summarise(judged, top_k=bundle.manifest.retriever.top_k, seed=seed)


def facts(bundle: Bundle, inputs: Inputs, num_population: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a reader must know to believe the rest, in the order it is shown."""
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
        "neighbor_share": neighbor_share(bundle, "no_memory"),
        "created_at": manifest.created_at,
        "device": str(bundle.lm.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commands(bundle: Bundle, options: argparse.Namespace) -> list[str]:
    """Which make this report again: prepare where the data set tells its source, pipeline as the bundle tells."""
    data, made = str(options.data), bundle.manifest.provenance
    pipeline = {"data": data, "out": options.bundle, "cut": made.get("cut"), "recipe": made.get("recipe")}
    pipeline |= {"model": made.get("model"), "seed": made.get("seed")}
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
        asked = {"users": source.get("users"), "seed": source.get("seed"), "out": data}
        return [_command("training.data.synthetic", asked)]
    if source.get("format"):
        return [_command("training.prepare", {"format": source["format"], "source": source.get("path"), "out": data})]
    return []


def _command(module: str, options: dict[str, Any]) -> str:
    told = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return " ".join([f"python -m {module}", *told])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the data set the bundle was made from")
    parser.add_argument("--out", type=Path, required=True, help="directory of the report")
    parser.add_argument("--split", default="test", choices=("valid", "test"), help="which period (test)")
    parser.add_argument("--models", default="all", help=f"rows, comma separated, or all: {', '.join(ROWS)}")
    parser.add_argument("--max-targets", type=int, default=5000, help="drawn by seed (5000)")
    parser.add_argument("--seeds", type=int, default=3, help="of rows that are trained by seed (3)")
    parser.add_argument("--draws", type=int, default=10, help="of the random memory (10)")
    parser.add_argument(
        "--time-targets", type=int, default=100, help="asked one by one to time a row; 0 for none (100)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--mask-seen",
        action=argparse.BooleanOptionalAction,
        help="never show what the user had already; by default where the train period knows (almost) no repeats",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")

    def stage(options: argparse.Namespace) -> dict[str, Any]:
        options.out.mkdir(parents=True, exist_ok=True)
        bundle = Bundle.open(options.bundle, device=pick_device(options.device))
        # Another cut than the bundle's would put what it was trained on among the targets.
        inputs = load_inputs(options.data, bundle.manifest.provenance.get("cut", "time"))
        report = run(bundle, inputs, options.out, options)
        ndcg = {row: round(values["ndcg@10"][0], 4) for row, values in report["slices"]["all"]["rows"].items()}
        return {"report": str(options.out), "ndcg@10": ndcg}

    return run_stage(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
