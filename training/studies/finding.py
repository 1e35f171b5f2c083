"""What a study found out: lines of numbers, and one figure of them.

In: values by line and column. Out: `figure.png`, `table.md`, `index.html` (self-contained, no script) and `study.json`,
which is written last. Knows neither models nor data.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.report.figures import ACCENT, INK, MUTED, OTHER, plain
from training.run.metrics import Interval, paired_bootstrap
from training.run.stage import whole_file, write_json

Value = float | int | str | Interval | None
Panels = Mapping[str, Sequence[str]]  # what the y axis shows → columns drawn there

_COLORS = {"no memory": INK, "retrieved": ACCENT, "oracle": OTHER, "random": MUTED}  # the same in all figures
_OTHER_COLORS = (ACCENT, OTHER, "#5b4b9a", MUTED, INK)
_SHIFT = 0.06  # columns stand beside each other, so that their intervals can be seen


@dataclass(frozen=True)
class Finding:
    """`columns` are formats by heading; a line may leave a column out. `x` says what the lines are."""

    question: str
    x: str
    columns: Mapping[str, str]
    lines: Mapping[str, Mapping[str, Value]]
    panels: Panels
    remarks: Sequence[str] = ()


def compared(columns: Mapping[str, np.ndarray], users: np.ndarray, *, reference: str | None = None) -> dict[str, Value]:
    """Means with 95 % intervals, resampled by user; of every other column also the difference to the `reference`."""
    drawn = paired_bootstrap(columns, users)
    cells: dict[str, Value] = {name: drawn.interval(name) for name in columns}
    if reference is not None:
        cells |= {gain_of(name): drawn.difference(name, reference) for name in columns if name != reference}
    return cells


def gain_of(column: str) -> str:
    """The heading of a difference."""
    return f"{column}: gain"


def write_finding(finding: Finding, facts: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Returns what `study.json` says."""
    out.mkdir(parents=True, exist_ok=True)
    image = _png(draw(finding))
    for name, content in (
        ("figure.png", image),
        ("table.md", markdown(finding, facts).encode()),
        ("index.html", page(finding, facts, image).encode()),
    ):
        with whole_file(out / name) as draft:
            draft.write_bytes(content)
    report = {**facts, "question": finding.question, "x": finding.x, "lines": finding.lines, "remarks": finding.remarks}
    write_json(out / "study.json", report)
    return report


# --- figure -------------------------------------------------------------------------------------------------------


def draw(finding: Finding) -> Figure:
    """A panel beside the other; the lines of the table from left to right, evenly spaced."""
    figure = Figure(figsize=(1.2 + 4.0 * len(finding.panels), 3.9), layout="constrained")
    axes = figure.subplots(1, len(finding.panels), squeeze=False)[0]
    for ax, (title, columns) in zip(axes, finding.panels.items(), strict=True):
        for number, (column, color) in enumerate(_colored(columns).items()):
            _draw_column(ax, finding, column, color, shift=_SHIFT * (number - (len(columns) - 1) / 2))
        _label_panel(ax, finding, title, has_legend=len(columns) > 1)
    return figure


def _colored(columns: Sequence[str]) -> dict[str, str]:
    """Columns that all studies know keep their color, the others get those that are left."""
    known = {column: _COLORS[column] for column in columns if column in _COLORS}
    left = [color for color in _OTHER_COLORS if color not in known.values()]
    fresh = dict(zip([column for column in columns if column not in known], left, strict=False))
    return {column: (known | fresh)[column] for column in columns}


def _draw_column(ax: Axes, finding: Finding, column: str, color: str, *, shift: float) -> None:
    """Points with intervals; those whose names differ in a number only are joined."""
    cells = [(place, name, line.get(column)) for place, (name, line) in enumerate(finding.lines.items())]
    points = [(place + shift, _stem(name), _as_interval(cell)) for place, name, cell in cells if cell is not None]
    for run in (list(group) for _, group in groupby(points, key=lambda point: point[1])):
        ax.plot([x for x, _, _ in run], [mean for _, _, (mean, _, _) in run], "o-", color=color, markersize=4)
    ax.vlines([x for x, _, _ in points], *zip(*[interval[1:] for _, _, interval in points], strict=True), color=color)
    ax.plot([], [], "o-", color=color, markersize=4, label=plain(column))


def _stem(name: str) -> str:
    """What stands before the number."""
    return re.split(r"\d", name)[0]


def _label_panel(ax: Axes, finding: Finding, title: str, *, has_legend: bool) -> None:
    names = [plain(name) for name in finding.lines]
    is_long = max(map(len, names)) > 6
    ax.set_xticks(range(len(names)), names, rotation=30 if is_long else 0, ha="right" if is_long else "center")
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_xlabel(plain(finding.x))
    ax.set_ylabel(plain(title))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)
    if ax.dataLim.ymin >= 0:
        ax.set_ylim(bottom=0)
    else:
        ax.axhline(0, color=INK, linewidth=0.8)
    if has_legend:
        ax.legend(frameon=False, fontsize="small")


def _as_interval(cell: Any) -> Interval:
    return cell if isinstance(cell, tuple) else (float(cell), float(cell), float(cell))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


# --- table --------------------------------------------------------------------------------------------------------


def cells_of(finding: Finding) -> list[list[str]]:
    """The table as text, heading first."""
    head = [finding.x, *finding.columns]
    return [head, *([name, *_texts(finding, line)] for name, line in finding.lines.items())]


def _texts(finding: Finding, line: Mapping[str, Value]) -> list[str]:
    return [_text(line.get(column), form) for column, form in finding.columns.items()]


def _text(value: Value, form: str) -> str:
    """A minus is a minus, not a hyphen."""
    if value is None or isinstance(value, str):
        return value or "–"
    if isinstance(value, tuple):
        mean, low, high = (_text(part, form) for part in value)
        return f"{mean} [{low}, {high}]"
    return f"{value:{form}}".replace("-", "−")


def table(finding: Finding) -> str:
    head, *rows = ([cell.replace("|", r"\|") for cell in cells] for cells in cells_of(finding))
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def markdown(finding: Finding, facts: Mapping[str, Any]) -> str:
    parts = [f"# {facts['study']}: {finding.question}", _about(facts), table(finding)]
    parts += [f"- {remark}" for remark in finding.remarks]
    return "\n\n".join([*parts, "![The same as a figure](figure.png)"]) + "\n"


def _about(facts: Mapping[str, Any]) -> str:
    return (
        f"Data {facts['data']}, {facts['cut']} split, valid period, recipe {facts['recipe']}, seed {facts['seed']}. "
        "In brackets 95 % intervals, resampled by user."
    )


def page(finding: Finding, facts: Mapping[str, Any], image: bytes) -> str:
    """One file that needs no other; what comes from data is escaped."""
    head, *rows = cells_of(finding)
    title = html.escape(f"{facts['study']}: {finding.question}")
    cells = "".join(_row("th", head)) + "".join(_row("td", row) for row in rows)
    remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in finding.remarks)
    source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1><p>{html.escape(_about(facts))}</p>"
        f'<div><table>{cells}</table></div>{remarks}<img alt="The same as a figure" src="{source}"></html>\n'
    )


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#24292f}"
    "div{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem}img{max-width:100%}"
    "th,td{padding:.3rem .6rem;border-bottom:1px solid #dfe3e8;text-align:right;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}"
)
