"""Results as files for people: tables as Markdown, self-contained HTML pages, several files written at once.

In: tables of text, a Jinja template, images. Out: text and files. The evaluation report and all studies are written
with it. A page needs no other file and no network and runs no script. Text that comes from data is escaped.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from training.run.metrics import Interval
from training.run.stage import atomic_file

_TEMPLATES = Path(__file__).parent  # of page.html.jinja and table.html.jinja
_MARKDOWN_MARKUP = r"\`*_{}[]<>|#"


class Cell(NamedTuple):
    """One value of a table, as text."""

    text: str
    small: str = ""  # set in small type below the text: the interval
    kind: str = ""  # better, worse or even for a difference, else ""


class TableRow(NamedTuple):
    label: str
    kind: str  # own (the bundle's row), oracle or ""
    cells: list[Cell]


class Table(NamedTuple):
    head: list[str]  # headings of the cells
    rows: list[TableRow]
    corner: str = ""  # heading of the labels


def number_text(value: float, form: str) -> str:
    """`value` in the format `form`, with a minus sign instead of a hyphen."""
    return f"{value:{form}}".replace("-", "−")


def interval_texts(interval: Interval, form: str, *, percent: bool = False) -> tuple[str, str]:
    """The mean, and the interval in brackets. With `percent`, shares are shown times 100."""
    mean, low, high = (number_text(100 * value if percent else value, form) for value in interval)
    return f"{mean} %" if percent else mean, f"[{low}, {high}]"


def markdown_table(table: Table) -> list[str]:
    """The lines of a Markdown table."""
    head = [escape_markdown(text) for text in (table.corner, *table.head)]
    lines = [head, ["---"] * len(head)]
    for row in table.rows:
        cells = [" ".join(filter(None, (cell.text, cell.small))) for cell in row.cells]
        lines.append([escape_markdown(row.label), *cells])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def escape_markdown(text: str) -> str:
    """`text` on one line, with a backslash before each character that Markdown would read as markup."""
    return "".join(f"\\{char}" if char in _MARKDOWN_MARKUP else char for char in " ".join(text.split()))


def render_page(template: Path, images: Mapping[str, bytes], values: Mapping[str, Any]) -> str:
    """The HTML of a template that extends page.html.jinja. `images` are PNGs by name, embedded in the page.

    A name that the template uses and `values` lacks is an error.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sources = {name: f"data:image/png;base64,{base64.b64encode(image).decode()}" for name, image in images.items()}
    return environment.get_template(template.name).render(**values, images=sources)


def write_files(out: Path, files: Mapping[str, bytes | str]) -> None:
    """Write each file atomically. Text is UTF-8. `out` is created."""
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_file(out / name) as draft:
            draft.write_bytes(content.encode() if isinstance(content, str) else content)
