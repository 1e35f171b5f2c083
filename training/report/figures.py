"""The figures of a report, drawn from what metrics.json says and from the judged targets.

In: the report, `Judged`. Out: matplotlib figures by file name. Text that comes from data is never read as mathematics.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from training.memory.retrieval_quality import Judged
from training.report.tables import label
from training.run.metrics import Interval

INK, MUTED, ACCENT, OTHER = "#24292f", "#8b949e", "#0b6e69", "#b35900"
_BOX, _OWN_BOX = "#d8dee4", "#8cc7c2"
_COLORS = {"retrieved": ACCENT, "random": MUTED, "best": OTHER}
_CHOICES = {
    "random": "random element",
    "newest": "newest element",
    "retrieved": "retrieved (0 where it abstains)",
    "joint": "all that is shown, together",
    "oracle": "oracle (the best, or none)",
    "best": "best by gain",
}
_ROW_INCHES = 0.32


def draw_figures(report: Mapping[str, Any], judged: Judged | None) -> dict[str, Figure]:
    """By the name of their PNG. Left out is what there is nothing to draw of."""
    figures = {"ndcg": _quality_figure(report)}
    if report["own"] and len(report["slices"]["all"]["rows"]) > 1:
        name = plain(label(report["own"]))
        figures["differences"] = _difference_figure(report, "own_minus", name + " minus the row")
    if report["slices"]["all"]["minus_no_memory"]:
        figures["memory_worth"] = _difference_figure(report, "minus_no_memory", "the row minus the same without memory")
    if judged is not None:
        figures["retrieval_gain"] = _gain_figure(judged, report["retriever"]["gain_nats"])
        figures["retrieval_distance"] = _distance_figure(judged)
    return figures


def _quality_figure(report: Mapping[str, Any]) -> Figure:
    """A point with its interval for each row, and a small one for each draw of a seeded row."""
    parts = {name: report["slices"][name] for name in ("all", "memory") if name in report["slices"]}
    figure, axes = _side_by_side(len(parts), num_rows=len(parts["all"]["rows"]))
    for ax, (name, part) in zip(axes, parts.items(), strict=True):
        for place, (row, metrics) in enumerate(part["rows"].items()):
            _whisker(ax, metrics["ndcg@10"], place, ACCENT if row == report["own"] else INK)
            draws = part["by_seed"].get(row, {}).get("ndcg@10", [])
            ax.plot(draws, [place + 0.25] * len(draws), "|", color=MUTED, markersize=5)
        ax.set_xlabel(f"NDCG@10, {name}: {part['targets']} targets")
        ax.set_xlim(left=0)
        ax.grid(axis="x", alpha=0.25)
    _name_rows(axes[0], [label(row) for row in parts["all"]["rows"]])
    return figure


def _difference_figure(report: Mapping[str, Any], key: str, meaning: str) -> Figure:
    """What stands under `key` in a slice, in words its `meaning`; right of the line it is better."""
    part = report["slices"].get("memory", report["slices"]["all"])
    rows = list(part[key])
    figure, axes = _side_by_side(2, num_rows=len(rows))
    for ax, metric, title in zip(axes, ("recall@1", "ndcg@5"), ("Recall@1", "NDCG@5"), strict=True):
        for place, row in enumerate(rows):
            interval = part[key][row][metric]
            _whisker(ax, interval, place, ACCENT if interval[1] > 0 else OTHER if interval[2] < 0 else MUTED)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set_xlabel(f"{title}: {meaning}")
        ax.grid(axis="x", alpha=0.25)
    _name_rows(axes[0], [label(row) for row in rows])
    return figure


def _gain_figure(judged: Judged, gains: Mapping[str, Interval]) -> Figure:
    """Left the gains of the targets, right their means with intervals; of the random choice also every draw."""
    by_choice = {
        "random": judged.random_gain.ravel(),
        "newest": judged.newest_gain,
        "retrieved": judged.retrieved_gain,
        "joint": judged.joint_gain,
        "oracle": judged.oracle_gain,
    }
    shown = {name: values for name, values in by_choice.items() if name in gains}
    figure, (left, right) = _side_by_side(2, num_rows=len(shown) + 2)
    _boxes(left, shown)
    left.set_xlabel("gain of a target, nats")
    draws = judged.random_gain.mean(axis=0)
    right.plot(draws, np.full(len(draws), 0.25), "|", color=MUTED, markersize=5)
    for place, name in enumerate(shown):
        _whisker(right, gains[name], place, ACCENT if name == "retrieved" else INK)
    right.set_xlabel(f"mean gain, nats; strokes: {len(draws)} random draws")
    for ax in (left, right):
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.grid(axis="x", alpha=0.25)
    _name_rows(left, [_CHOICES[name] for name in shown])
    return figure


def _boxes(ax: Axes, values_by_choice: Mapping[str, np.ndarray]) -> None:
    """A box holds the middle half of the targets, its whiskers nine tenths, a diamond marks the mean."""
    drawn = ax.boxplot(
        list(values_by_choice.values()),
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        positions=range(len(values_by_choice)),
        widths=0.55,
        medianprops={"color": INK},
        meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": INK, "markersize": 4},
    )
    for patch, name in zip(drawn["boxes"], values_by_choice, strict=True):
        patch.set_facecolor(_OWN_BOX if name == "retrieved" else _BOX)


def _distance_figure(judged: Judged) -> Figure:
    """How far back the elements lie: the share of them that is at most so far away."""
    figure, axes = _side_by_side(2, num_rows=8)
    for ax, unit, name_of_unit in zip(axes, ("days", "positions"), ("days", "interactions"), strict=True):
        for name, values in judged.distances(unit).items():
            if len(values):
                ax.ecdf(values, color=_COLORS[name], label=_CHOICES[name].partition(" (")[0], linewidth=1.8)
        if unit == "days":
            ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(left=0)
        ax.set_xlabel(f"{name_of_unit} before the target")
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("share at most so far back")
    axes[1].legend(frameon=False, loc="lower right")
    return figure


def _side_by_side(num_panels: int, *, num_rows: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(9, 0.9 + _ROW_INCHES * max(num_rows, 3)), layout=ConstrainedLayoutEngine(w_pad=0.12))
    axes = figure.subplots(1, num_panels, squeeze=False, sharey=True)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _whisker(ax: Axes, interval: Interval, place: int, color: str) -> None:
    mean, low, high = interval
    ax.plot([low, high], [place, place], color=color, linewidth=1.6, solid_capstyle="butt")
    ax.plot(mean, place, "o", color=color, markersize=5)


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    """The first row on top."""
    ax.set_yticks(range(len(names)), [plain(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)


def plain(text: str) -> str:
    """A dollar sign would start a formula."""
    return text.replace("$", r"\$")
