"""The report of the evaluation by words: means, differences with paired intervals, metrics.json and report.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.run.metrics import paired_bootstrap
from training.run.stage import write_json
from training.words.rows import HYBRID, ORACLE, OWN, REASONED, ROWS

_OTHER_LABELS = {
    ORACLE: "oracle (best single memory; knows the answer)",
    REASONED: "MR.Rec, reasoned by the language model",
}
METRICS = ("recall@1", "recall@10", "recall@100", "ndcg@10", "ndcg@100")


def comparison(metrics: Mapping[str, Mapping[str, NDArray[np.float64]]], users: NDArray[np.int64]) -> dict[str, Any]:
    """`means`: row → metric → (mean, low, high). `minus_hybrid`, `own_minus`: relative differences, and absolute ones.

    `metrics`: row → metric → (targets,); `users` (targets,). A relative difference is null where a mean is zero.
    """
    found: dict[str, Any] = {"means": {}, "minus_hybrid": {}, "own_minus": {}}
    for metric in METRICS:
        drawn = paired_bootstrap({row: values[metric] for row, values in metrics.items()}, users)
        for row in metrics:
            found["means"].setdefault(row, {})[metric] = drawn.interval(row)
            for name, one, other in (("minus_hybrid", row, HYBRID), ("own_minus", OWN, row)):
                difference = {"absolute": drawn.difference(one, other), "relative": drawn.relative(one, other)}
                found[name].setdefault(row, {})[metric] = difference
    return found


def slices(
    metrics: Mapping[str, Mapping[str, NDArray[np.float64]]],
    users: NDArray[np.int64],
    parts: Mapping[str, NDArray[np.bool_]],
) -> dict[str, Any]:
    """Part of the targets → how many, means, and what MR.Rec adds to the query alone; null where it is empty."""
    return {
        name: {"targets": int(chosen.sum()), **comparison(_only(metrics, chosen), users[chosen])}
        if chosen.any()
        else None
        for name, chosen in parts.items()
    }


def _only(
    metrics: Mapping[str, Mapping[str, NDArray[np.float64]]], chosen: NDArray[np.bool_]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    return {row: {metric: values[chosen] for metric, values in of.items()} for row, of in metrics.items()}


def write_words_report(report: Mapping[str, Any], out: Path) -> None:
    write_json(out / "metrics.json", report)
    (out / "report.md").write_text("\n".join(_markdown(report)) + "\n", encoding="utf-8")


def _markdown(report: Mapping[str, Any]) -> list[str]:
    rows, times = report["rows"], report["milliseconds"]
    lines = [
        f"# Recommendation by words: {report['data']}, {report['split']} period",
        "",
        f"{report['targets']} queries of {report['users']} users, {report['items']} items, all ranked. Intervals are"
        " 95 %, paired by user. Nothing was chosen on these queries.",
        "",
        f"| row | {' | '.join(METRICS)} | NDCG@100 over hybrid | MR.Rec over this row |",
        "|---" * (len(METRICS) + 3) + "|",
    ]
    for row, means in rows["means"].items():
        values = " | ".join(f"{means[metric][0]:.4f}" for metric in METRICS)
        over = _percent(rows["minus_hybrid"][row]["ndcg@100"]["relative"])
        own = _percent(rows["own_minus"][row]["ndcg@100"]["relative"])
        lines.append(f"| {_label(row)} | {values} | {over} | {own} |")
    lines += _slice_lines(report["slices"])
    if times:
        lines += [
            "",
            f"Median milliseconds of one query: {', '.join(f'{name} {ms}' for name, ms in times.items())}.",
            "",
        ]
    return lines + [f"* {_label(row)}: {ROWS[row].explanation}" for row in rows["means"] if row in ROWS]


def _slice_lines(parts: Mapping[str, Any]) -> list[str]:
    head = [
        "",
        "| queries | number | hybrid NDCG@100 | MR.Rec NDCG@100 | MR.Rec over hybrid |",
        "|---|---|---|---|---|",
    ]
    found = [
        f"| {name} | {part['targets']} | {part['means'][HYBRID]['ndcg@100'][0]:.4f} |"
        f" {part['means'][OWN]['ndcg@100'][0]:.4f} | {_percent(part['minus_hybrid'][OWN]['ndcg@100']['relative'])} |"
        for name, part in parts.items()
        if part is not None
    ]
    return head + found


def _label(row: str) -> str:
    return _OTHER_LABELS.get(row) or ROWS[row].label


def _percent(interval: tuple[float, float, float] | None) -> str:
    if interval is None:
        return "–"
    mean, low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in interval)
    return f"{mean} % [{low}, {high}]"
