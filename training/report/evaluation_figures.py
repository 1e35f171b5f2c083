"""The figures of the evaluation report.

In: the report as metrics.json has it, and the retriever's quality by target. Out: matplotlib figures by file name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from training.memory.retrieval_metrics import RetrievalRecords
from training.report.evaluation_tables import focus, label
from training.report.plotting import ACCENT, INK, MUTED, OTHER, literal, style_axes
from training.run.metrics import Interval

_BOX, _OWN_BOX = "#d8dee4", "#8cc7c2"
_COLORS = {"retrieved": ACCENT, "random": MUTED, "best": OTHER}
_ELEMENT_CHOICES = {
    "random": "random element",
    "newest": "newest element",
    "retrieved": "retrieved (0 where it abstains)",
    "joint": "all that the generator reads",
    "oracle": "the best by likelihood, or none",
    "best": "best by gain",
}
_ROW_INCHES = 0.32


def draw_figures(report: Mapping[str, Any], records: RetrievalRecords | None) -> dict[str, Figure]:
    """Figures by the name of their PNG; without those whose rows or values are missing."""
    figures = {"ndcg": _quality_figure(report)}
    if report["own"] and len(report["slices"]["all"]["rows"]) > 1:
        name = literal(label(report["own"]))
        figures["differences"] = _difference_figure(report, "own_minus", name + " minus the row")
    if report["slices"]["all"]["minus_no_memory"]:
        figures["memory_worth"] = _difference_figure(report, "minus_no_memory", "the row minus the same without memory")
    if records is not None:
        figures["retrieval_gain"] = _gain_figure(records, report["retriever"]["gain_nats"])
        figures["retrieval_distance"] = _distance_figure(records)
    return figures


def _quality_figure(report: Mapping[str, Any]) -> Figure:
    """NDCG@10 of each row with its interval; small strokes are the single draws of a seeded row."""
    parts = {name: report["slices"][name] for name in ("all", "memory") if name in report["slices"]}
    figure, axes = _panels(len(parts), num_rows=len(parts["all"]["rows"]))
    for ax, (name, part) in zip(axes, parts.items(), strict=True):
        for place, (row, metrics) in enumerate(part["rows"].items()):
            _draw_interval(ax, metrics["ndcg@10"], place, ACCENT if row == report["own"] else INK)
            draws = part["by_seed"].get(row, {}).get("ndcg@10", [])
            ax.plot(draws, [place + 0.25] * len(draws), "|", color=MUTED, markersize=5)
        ax.set_xlabel(f"NDCG@10, {name}: {part['targets']} targets")
        ax.set_xlim(left=0)
    _label_rows(axes[0], [label(row) for row in parts["all"]["rows"]])
    return figure


def _difference_figure(report: Mapping[str, Any], key: str, meaning: str) -> Figure:
    """The differences under `key` of a slice; `meaning` describes them. Right of the line at zero is better."""
    part = report["slices"][focus(report)]
    rows = list(part[key])
    figure, axes = _panels(2, num_rows=len(rows))
    for ax, metric, title in zip(axes, ("recall@1", "ndcg@5"), ("Recall@1", "NDCG@5"), strict=True):
        for place, row in enumerate(rows):
            interval = part[key][row][metric]
            _draw_interval(ax, interval, place, ACCENT if interval[1] > 0 else OTHER if interval[2] < 0 else MUTED)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set_xlabel(f"{title}: {meaning}")
    _label_rows(axes[0], [label(row) for row in rows])
    return figure


def _gain_figure(records: RetrievalRecords, gains: Mapping[str, Interval]) -> Figure:
    """Left the gains of the targets, right their means with intervals, and every draw of the random choice."""
    by_choice = {
        "random": records.random_gain.ravel(),
        "newest": records.newest_gain,
        "retrieved": records.retrieved_gain,
        "joint": records.joint_gain,
        "oracle": records.oracle_gain,
    }
    shown = {name: values for name, values in by_choice.items() if name in gains}
    figure, (left, right) = _panels(2, num_rows=len(shown) + 2)
    _draw_boxes(left, shown)
    left.set_xlabel("gain of a target, nats")
    draws = records.random_gain.mean(axis=0)
    right.plot(draws, np.full(len(draws), 0.25), "|", color=MUTED, markersize=5)
    for place, name in enumerate(shown):
        _draw_interval(right, gains[name], place, ACCENT if name == "retrieved" else INK)
    right.set_xlabel(f"mean gain, nats; strokes: {len(draws)} random draws")
    for ax in (left, right):
        ax.axvline(0, color=INK, linewidth=0.8)
    _label_rows(left, [_ELEMENT_CHOICES[name] for name in shown])
    return figure


def _draw_boxes(ax: Axes, values_by_choice: Mapping[str, np.ndarray]) -> None:
    """A box holds the middle half of the targets, its whiskers nine tenths; a diamond marks the mean."""
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


def _distance_figure(records: RetrievalRecords) -> Figure:
    """The share of chosen elements that lie at most so far before the target."""
    figure, axes = _panels(2, num_rows=8, grid="both")
    for ax, unit, name_of_unit in zip(axes, ("days", "positions"), ("days", "interactions"), strict=True):
        for name, values in records.distances(unit).items():
            if len(values):
                text = _ELEMENT_CHOICES[name].partition(" (")[0]
                ax.ecdf(values, color=_COLORS[name], label=text, linewidth=1.8)
        if unit == "days":
            ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(left=0)
        ax.set_xlabel(f"{name_of_unit} before the target")
    axes[0].set_ylabel("share of elements")
    axes[1].legend(frameon=False, loc="lower right")
    return figure


def _panels(num_panels: int, *, num_rows: int, grid: str = "x") -> tuple[Figure, Sequence[Axes]]:
    """Panels side by side that share the rows, high enough for `num_rows`."""
    figure = Figure(figsize=(9, 0.9 + _ROW_INCHES * max(num_rows, 3)), layout=ConstrainedLayoutEngine(w_pad=0.12))
    axes = figure.subplots(1, num_panels, squeeze=False, sharey=True)[0]
    for ax in axes:
        style_axes(ax, grid=grid)
    return figure, list(axes)


def _draw_interval(ax: Axes, interval: Interval, place: int, color: str) -> None:
    mean, low, high = interval
    ax.plot([low, high], [place, place], color=color, linewidth=1.6, solid_capstyle="butt")
    ax.plot(mean, place, "o", color=color, markersize=5)


def _label_rows(ax: Axes, names: Sequence[str]) -> None:
    """Write the names at the y axis, the first one on top."""
    ax.set_yticks(range(len(names)), [literal(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
