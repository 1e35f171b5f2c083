"""Does memory pay? Every row on the same targets, full ranking, with 95 % intervals (paired bootstrap by user).

In: a bundle and the data it was made from. Out: REPORT/metrics.json, report.md and figures; predictions are cached by
row in REPORT/cache, so that another row, or an interrupted run, computes nothing twice. Targets are drawn by seed.
Nothing is selected here: what a recipe chooses, it chose on the valid period.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_store.bundle import Bundle
from training.annotate import Annotation, read_shards, write_shards
from training.data.splits import Split, Target, sample_targets
from training.inputs import Inputs, load_inputs
from training.metrics import Interval, paired_bootstrap, rank_in_list, ranks_to_metrics, title_rank_in_list
from training.recipes import Recipe
from training.report import write_report
from training.rows import ROWS, SEEDED_ROWS, Contest, Lists, predict
from training.stage import StageError, digest, pick_device, run_stage, write_json
from training.states import spans_of, window_states
from training.windows import Windows

BASELINE = "bigrec"
Metrics = dict[str, dict[str, np.ndarray]]  # row → metric → (seeds, targets)


def make_contest(
    bundle: Bundle, inputs: Inputs, targets: Sequence[Target], cache: Path, *, mask_seen: bool = False
) -> Contest:
    windows = Windows(inputs.split, bundle.prompt, bundle.manifest.memory.max_elements)
    states = window_states(bundle.lm, windows, spans_of(windows, targets), cache / "states")
    examples = [windows.example(target) for target in targets]

    def annotate() -> list[Annotation]:
        directory, recipe = cache / "annotations", Recipe(combine=bundle.manifest.retriever.combine)
        write_shards(bundle.lm, windows, targets, states, recipe=recipe, directory=directory)
        return read_shards(directory)

    return Contest(bundle, inputs.split, targets, examples, states, annotate=annotate, mask_seen=mask_seen)


def rows_to_run(asked: str, bundle: Bundle) -> list[str]:
    """AutoMR with a tuned generator is another row than the paper's; a bundle can have but one of the two."""
    is_tuned = "memory-aware" in (bundle.manifest.backbone.adapter or "")
    other, own = ("automr", "automr_plus") if is_tuned else ("automr_plus", "automr")
    if asked == "all":
        return [row for row in ROWS if row != other]
    rows = [row.strip() for row in asked.split(",")]
    if unknown := sorted(set(rows) - set(ROWS)):
        raise StageError(f"unknown models {', '.join(unknown)}: choose among {', '.join(ROWS)}, or all")
    return list(dict.fromkeys(own if row == other else row for row in rows))


def cached_lists(contest: Contest, row: str, seed: int, cache: Path) -> Lists:
    file = cache / f"{row}-{seed}.json"
    if not file.is_file():
        write_json(file, predict(contest, row, seed))
    lists: Lists = json.loads(file.read_text())
    return lists


def score(lists: Lists, targets: Sequence[Target], split: Split) -> dict[str, np.ndarray]:
    """metric → (targets,)"""
    truths = [int(split.histories[target.user].items[target.position]) for target in targets]
    pairs = list(zip(lists, truths, strict=True))
    ranks = np.array([rank_in_list(ranked, truth) for ranked, truth in pairs])
    titles = np.array([title_rank_in_list(ranked, truth, split.title_class) for ranked, truth in pairs])
    return ranks_to_metrics(ranks, titles)


def slices(contest: Contest) -> dict[str, np.ndarray]:
    """(targets,) bool: `memory` has an element beyond the window, `warm` has a true item seen in training."""
    split, targets = contest.split, contest.targets
    truths = np.array([split.histories[target.user].items[target.position] for target in targets])
    return {
        "all": np.ones(len(targets), dtype=bool),
        "memory": np.array([len(example.memory_positions) > 0 for example in contest.examples]),
        "warm": split.popularity[truths] > 0,
    }


def summarise(metrics: Metrics, contest: Contest, seed: int) -> dict[str, Any]:
    users = np.array([target.user for target in contest.targets])
    return {
        name: _summarise_slice(_of_slice(metrics, kept), users[kept], seed)
        for name, kept in slices(contest).items()
        if kept.any()
    }


def _of_slice(metrics: Metrics, kept: np.ndarray) -> Metrics:
    return {row: {name: values[:, kept] for name, values in named.items()} for row, named in metrics.items()}


def _summarise_slice(metrics: Metrics, users: np.ndarray, seed: int) -> dict[str, Any]:
    baseline = BASELINE if BASELINE in metrics else None
    rows: dict[str, dict[str, Interval]] = {row: {} for row in metrics}
    minus: dict[str, dict[str, Interval]] = {row: {} for row in metrics if row != baseline} if baseline else {}
    for metric in next(iter(metrics.values())):
        values_by_row = {row: values[metric] for row, values in metrics.items()}
        result = paired_bootstrap(values_by_row, users, baseline=baseline, seed=seed)
        for row, interval in result.rows.items():
            rows[row][metric] = interval
        for row, interval in result.minus_baseline.items():
            minus[row][metric] = interval
    return {"targets": len(users), "users": len(set(users.tolist())), "rows": rows, "minus_bigrec": minus}


def run(bundle: Bundle, inputs: Inputs, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Writes the report and returns it."""
    rows = rows_to_run(options.models, bundle)
    targets = sample_targets(getattr(inputs.split, options.split), options.max_targets, options.seed)
    asked = [options.split, options.max_targets, options.seed, options.mask_seen]
    cache = out / "cache" / digest([inputs.fingerprint, bundle.manifest.model_dump(), *asked])
    contest = make_contest(bundle, inputs, targets, cache, mask_seen=options.mask_seen)
    metrics: Metrics = {}
    for row in rows:
        seeds = range(options.seeds if row in SEEDED_ROWS else 1)
        draws = [score(cached_lists(contest, row, seed, cache), targets, inputs.split) for seed in seeds]
        metrics[row] = {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}
    report = {
        "data": inputs.dataset.name,
        "split": options.split,
        "cut": inputs.split.name,
        "targets": len(targets),
        "seeds": options.seeds,
        "mask_seen": options.mask_seen,
        "bundle": bundle.manifest.name,
        "space": bundle.manifest.space,
        "items": len(inputs.split.item_ids),
        "slices": summarise(metrics, contest, options.seed),
    }
    write_report(report, out)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the data set the bundle was made from")
    parser.add_argument("--out", type=Path, required=True, help="directory of the report")
    parser.add_argument("--split", default="test", choices=("valid", "test"), help="which period (test)")
    parser.add_argument("--models", default="all", help=f"rows, comma separated, or all: {', '.join(ROWS)}")
    parser.add_argument("--max-targets", type=int, default=5000, help="drawn by seed (5000)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of random rows (3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mask-seen", action="store_true", help="never show what the user had already")
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
