"""The report of an evaluation: metrics.json for programs, report.md and a figure for people."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from training.stage import write_json

_SHOWN = ("recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10")


def write_report(report: dict[str, Any], out: Path) -> None:
    write_json(out / "metrics.json", report)
    (out / "report.md").write_text("\n".join(_lines(report)) + "\n", encoding="utf-8")
    _figure(report).savefig(out / "ndcg.png", dpi=150, bbox_inches="tight")


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [
        f"# {report['data']}, {report['split']} ({report['cut']} split)",
        "",
        f"{report['targets']} targets, {report['items']} items ranked, seen items "
        f"{'masked' if report['mask_seen'] else 'not masked'}, bundle {report['bundle']} (space {report['space']}).",
    ]
    for name, part in report["slices"].items():
        lines += ["", f"## {name}: {part['targets']} targets of {part['users']} users", "", *_table(part)]
    return [*lines, "", "![NDCG@10 with 95 % intervals](ndcg.png)"]


def _table(part: dict[str, Any]) -> list[str]:
    lines = ["| row | " + " | ".join(_SHOWN) + " | NDCG@10 − bigrec |", "|---" * (len(_SHOWN) + 2) + "|"]
    for row, metrics in part["rows"].items():
        difference = part["minus_bigrec"].get(row, {}).get("ndcg@10")
        cells = [f"{metrics[name][0]:.4f}" for name in _SHOWN]
        lines.append("| " + " | ".join([row, *cells, _interval(difference) if difference else ""]) + " |")
    return lines


def _interval(interval: tuple[float, float, float]) -> str:
    mean, low, high = interval
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def _figure(report: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(7, 0.5 + 0.4 * len(report["slices"]["all"]["rows"])))
    axes = figure.subplots()
    rows = report["slices"]["all"]["rows"]
    for place, metrics in enumerate(reversed(rows.values())):
        mean, low, high = metrics["ndcg@10"]
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color="C0")
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set_xlabel("NDCG@10, mean and 95 % interval")
    axes.set_title(f"{report['data']}, {report['split']}")
    axes.grid(axis="x", alpha=0.3)
    return figure
