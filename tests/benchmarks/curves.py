"""The figures of growth.py. Colours of the reports, which colour-blind readers can tell apart; markers for print."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from training.report.plotting import ACCENT, INK, MUTED, OTHER

_STYLES = ((ACCENT, "o"), (OTHER, "s"), (INK, "^"), (MUTED, "D"))
Row = Mapping[str, float]


class Panel(NamedTuple):
    """One plot. `lines`: label → column; `unit` divides the values. A linear axis starts at zero."""

    label: str
    lines: Mapping[str, str]
    unit: float = 1.0
    is_log: bool = False


class Curve(NamedTuple):
    """One figure. `column` gives the x axis of all its panels."""

    column: str
    label: str
    panels: Sequence[Panel]
    is_log: bool = True


_CURVES = {
    "history": Curve(
        "events",
        "events of the user",
        (
            Panel("milliseconds, one client", {"/recommend": "p50_ms", "engine's part": "engine_p50_ms"}),
            Panel(
                "KiB of the user in the store",
                {"all keys": "bytes", "states": "states_bytes"},
                unit=1024,
                is_log=True,
            ),
        ),
    ),
    "catalogue": Curve(
        "items",
        "titles in the catalogue",
        (
            Panel("milliseconds, one query", {"whole answer": "p50_ms", "allowed first tokens": "mask_ms"}),
            Panel("seconds to build", {"tokens, trie, columns": "built_s"}, is_log=True),
        ),
    ),
    "batch": Curve(
        "batch",
        "queries in a batch",
        (Panel("milliseconds", {"batch": "p50_ms"}), Panel("milliseconds per query", {"query": "per_query_ms"})),
    ),
    "clients": Curve(
        "clients",
        "clients, each with one request at a time",
        (Panel("answers per second", {"answers": "per_s"}), Panel("milliseconds", {"p50": "p50_ms", "p99": "p99_ms"})),
    ),
    "load": Curve(
        "share",
        "events posted, as a share of the encoding capacity",
        (Panel("milliseconds until visible as memory", {"p50": "p50_ms", "p99": "p99_ms"}, is_log=True),),
        is_log=False,
    ),
}


def draw(found: Mapping[str, Sequence[Row]]) -> dict[str, Figure]:
    """Figures by file name without `.png`."""
    return {f"growth-{name}": _figure(_CURVES[name], rows) for name, rows in found.items()}


def _figure(curve: Curve, rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(4.5 * len(curve.panels) + 0.5, 3.2), layout=ConstrainedLayoutEngine(w_pad=0.12))
    axes = figure.subplots(1, len(curve.panels), squeeze=False)[0]
    for ax, panel in zip(axes, curve.panels, strict=True):
        _panel(ax, curve, panel, rows)
    return figure


def _panel(ax: Axes, curve: Curve, panel: Panel, rows: Sequence[Row]) -> None:
    places = [row[curve.column] for row in rows]
    for (name, column), (color, mark) in zip(panel.lines.items(), _STYLES, strict=False):
        values = [row[column] / panel.unit for row in rows]
        ax.plot(places, values, color=color, marker=mark, markersize=5, linewidth=1.8, label=name)
    if curve.is_log:
        ax.set_xscale("log")
        ax.set_xticks(places, [f"{place:,.0f}" for place in places])
        ax.minorticks_off()
    if panel.is_log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set_xlabel(curve.label)
    ax.set_ylabel(panel.label)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if len(panel.lines) > 1:
        ax.legend(frameon=False)
