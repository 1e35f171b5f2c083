"""The style that all figures share: colours, axes, text, PNG."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, ACCENT, OTHER, VIOLET = "#24292f", "#8b949e", "#0b6e69", "#b35900", "#5b4b9a"


def style_axes(ax: Axes, *, grid: str) -> None:
    """`grid` is x, y or both: the axis whose values have grid lines."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, alpha=0.25)  # type: ignore[arg-type]


def literal(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
