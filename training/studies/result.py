"""The result of a study: a table of numbers and one figure of them.

In: values by line and column. Out: figure.png, table.md, index.html (self-contained, no script), and study.json, which
is written last.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.report.plotting import ACCENT, INK, MUTED, OTHER, VIOLET, literal, png, style_axes
from training.report.writer import (
    Cell,
    Table,
    TableRow,
    interval_texts,
    markdown_table,
    number_text,
    render_page,
    write_files,
)
from training.run.metrics import Interval, paired_bootstrap
from training.run.stage import write_json

Value = float | int | str | Interval | None
Panels = Mapping[str, Sequence[str]]  # label of the y axis → columns drawn in the panel

_TEMPLATE = Path(__file__).with_name("study.html.jinja")
_COLORS = {"no memory": INK, "retrieved": ACCENT, "oracle": OTHER, "random": MUTED}  # the same in all figures
_OTHER_COLORS = (ACCENT, OTHER, VIOLET, MUTED, INK)
_SHIFT = 0.06  # of columns drawn at the same place, so that their intervals do not overlap
_LONG_NAME = 6  # characters; longer names at the x axis are rotated


@dataclass(frozen=True)
class StudyResult:
    question: str
    x: str  # what the lines are: heading of the first column, label of the x axis
    columns: Mapping[str, str]  # heading → number format
    lines: Mapping[str, Mapping[str, Value]]  # name → values by column; a column may be missing
    panels: Panels
    remarks: Sequence[str] = ()
    users: str = "users that neither taught nor chose the retriever"
    has_bars: bool = False  # the columns of a panel are bars, one on the other


def means_and_gains(
    columns: Mapping[str, np.ndarray], users: np.ndarray, *, reference: str | None = None
) -> dict[str, Value]:
    """Means with 95 % intervals, resampled by user, and the gain of each other column over the column `reference`."""
    drawn = paired_bootstrap(columns, users)
    values: dict[str, Value] = {name: drawn.interval(name) for name in columns}
    if reference is not None:
        values |= {gain_column(name): drawn.difference(name, reference) for name in columns if name != reference}
    return values


def gain_column(column: str) -> str:
    """The heading of a column's gain over the reference."""
    return f"{column}: gain"


def write_result(result: StudyResult, facts: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes all files. `facts` tell how the study was run. Returns the content of study.json."""
    image = png(draw(result))
    pages = {"table.md": _markdown(result, facts), "index.html": _html(result, facts, image)}
    write_files(out, {"figure.png": image, **pages})
    content = {**facts, "question": result.question, "x": result.x, "lines": result.lines, "remarks": result.remarks}
    write_json(out / "study.json", content)
    return content


# --- table --------------------------------------------------------------------------------------------------------


def study_table(result: StudyResult) -> Table:
    rows = [
        TableRow(name, "", [_cell(line.get(column), form) for column, form in result.columns.items()])
        for name, line in result.lines.items()
    ]
    return Table(list(result.columns), rows, corner=result.x)


def _cell(value: Value, form: str) -> Cell:
    if value is None or isinstance(value, str):
        return Cell(value or "–")
    return Cell(*interval_texts(value, form)) if isinstance(value, tuple) else Cell(number_text(value, form))


def _title(result: StudyResult, facts: Mapping[str, Any]) -> str:
    return f"{facts['study']}: {result.question}"


def _about(result: StudyResult, facts: Mapping[str, Any]) -> str:
    return (
        f"Data {facts['data']}, {facts['cut']} split, valid period, {result.users}, "
        f"recipe {facts['recipe']}, seed {facts['seed']}. In brackets: 95 % intervals, resampled by user."
    )


def _markdown(result: StudyResult, facts: Mapping[str, Any]) -> str:
    parts = [f"# {_title(result, facts)}", _about(result, facts), "\n".join(markdown_table(study_table(result)))]
    parts += [f"- {remark}" for remark in result.remarks]
    return "\n\n".join([*parts, "![The table as a figure](figure.png)"]) + "\n"


def _html(result: StudyResult, facts: Mapping[str, Any], image: bytes) -> str:
    values = {"title": _title(result, facts), "about": _about(result, facts), "table": study_table(result)}
    return render_page(_TEMPLATE, {"figure": image}, {**values, "remarks": result.remarks})


# --- figure -------------------------------------------------------------------------------------------------------


def draw(result: StudyResult) -> Figure:
    """Panels side by side; the lines of the table stand from left to right, evenly spaced."""
    figure = Figure(figsize=(1.2 + 4.0 * len(result.panels), 3.9), layout="constrained")
    axes = figure.subplots(1, len(result.panels), squeeze=False)[0]
    for ax, (title, columns) in zip(axes, result.panels.items(), strict=True):
        if result.has_bars:
            _draw_bars(ax, result, columns)
        else:
            _draw_columns(ax, result, columns)
        _label_panel(ax, result, title, has_legend=len(columns) > 1)
    return figure


def _colors_of(columns: Sequence[str]) -> dict[str, str]:
    """Columns that several studies have keep their colour; the others get the colours that are left."""
    known = {column: _COLORS[column] for column in columns if column in _COLORS}
    left = [color for color in _OTHER_COLORS if color not in known.values()]
    fresh = dict(zip([column for column in columns if column not in known], left, strict=False))
    return {column: (known | fresh)[column] for column in columns}


def _draw_columns(ax: Axes, result: StudyResult, columns: Sequence[str]) -> None:
    for number, (column, color) in enumerate(_colors_of(columns).items()):
        _draw_column(ax, result, column, color, shift=_SHIFT * (number - (len(columns) - 1) / 2))


def _draw_bars(ax: Axes, result: StudyResult, columns: Sequence[str]) -> None:
    """A bar for each line, whose parts are the means of the columns; missing values count as 0."""
    bottom = np.zeros(len(result.lines))
    for column, color in _colors_of(columns).items():
        values = [line.get(column) for line in result.lines.values()]
        heights = np.array([0.0 if value is None else _as_interval(value)[0] for value in values])
        ax.bar(range(len(heights)), heights, bottom=bottom, color=color, width=0.6, label=literal(column))
        bottom += heights


def _draw_column(ax: Axes, result: StudyResult, column: str, color: str, *, shift: float) -> None:
    """Points with intervals. Neighbouring lines whose names differ in their number only are connected."""
    values = [(place, name, line.get(column)) for place, (name, line) in enumerate(result.lines.items())]
    points = [(place + shift, _series(name), _as_interval(value)) for place, name, value in values if value is not None]
    for run in (list(group) for _, group in groupby(points, key=lambda point: point[1])):
        ax.plot([x for x, _, _ in run], [mean for _, _, (mean, _, _) in run], "o-", color=color, markersize=4)
    ax.vlines([x for x, _, _ in points], *zip(*[interval[1:] for _, _, interval in points], strict=True), color=color)
    ax.plot([], [], "o-", color=color, markersize=4, label=literal(column))


def _series(name: str) -> str:
    """The part of a line's name before its number."""
    return re.split(r"\d", name)[0]


def _label_panel(ax: Axes, result: StudyResult, title: str, *, has_legend: bool) -> None:
    names = [literal(name) for name in result.lines]
    is_long = max(map(len, names)) > _LONG_NAME
    ax.set_xticks(range(len(names)), names, rotation=30 if is_long else 0, ha="right" if is_long else "center")
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_xlabel(literal(result.x))
    ax.set_ylabel(literal(title))
    style_axes(ax, grid="y")
    if ax.dataLim.ymin >= 0:
        ax.set_ylim(bottom=0)
    else:
        ax.axhline(0, color=INK, linewidth=0.8)
    if has_legend:
        ax.legend(frameon=False, fontsize="small")


def _as_interval(value: Any) -> Interval:
    """A number without an interval becomes an interval of width 0."""
    return value if isinstance(value, tuple) else (float(value), float(value), float(value))
