"""The report of an evaluation: metrics.json for programs; index.html, report.md and figures for people.

In: what `evaluate` found out, the judged targets. Out: files in one directory. `index.html` needs no other file and no
network and runs no script; whatever comes from data is escaped.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from training.memory.retrieval_quality import Judged
from training.report import tables
from training.report.figures import draw_figures
from training.report.tables import Table
from training.run.metrics import TITLE_SUFFIX
from training.run.stage import whole_file, write_json

TEMPLATE = "report.html.jinja"
_CAPTIONS = {
    "ndcg": "NDCG@10 with 95 % intervals",
    "differences": "Differences to every other row with 95 % intervals",
    "memory_worth": "What memory is worth, with 95 % intervals",
    "retrieval_gain": "Gain of what is retrieved against random elements and the oracle",
    "retrieval_distance": "How far back what is retrieved lies",
}


def write_report(report: Mapping[str, Any], judged: Judged | None, out: Path) -> None:
    """metrics.json last: where it stands, the others are of the same run."""
    figures = {name: _png(figure) for name, figure in draw_figures(report, judged).items()}
    for name, image in figures.items():
        with whole_file(out / f"{name}.png") as draft:
            draft.write_bytes(image)
    for name, text in (("index.html", html(report, figures)), ("report.md", markdown(report, figures))):
        with whole_file(out / name) as draft:
            draft.write_text(text, encoding="utf-8")
    write_json(out / "metrics.json", report)


def focus(report: Mapping[str, Any]) -> str:
    """The slice where memory can matter."""
    return "memory" if "memory" in report["slices"] else "all"


def html(report: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    images = {name: f"data:image/png;base64,{base64.b64encode(image).decode()}" for name, image in figures.items()}
    return environment.get_template(TEMPLATE).render(
        report=report, tables=tables, images=images, captions=_CAPTIONS, focus=focus(report), title_suffix=TITLE_SUFFIX
    )


def markdown(report: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    quality, run = report["retriever"], report["run"]
    lines = [
        f"# {_inline(report['data'])}, {report['split']} ({report['cut']} split)",
        "",
        f"{report['targets']} targets, {report['items']} items ranked, seen items "
        f"{'masked' if report['mask_seen'] else 'not masked'}, bundle {_inline(report['bundle'])} "
        f"(space {report['space']}). In brackets 95 % intervals, resampled by user.",
        "",
        *(f"- {_inline(sentence)}" for sentence in tables.summary(report, focus(report))),
    ]
    for name, part in report["slices"].items():
        lines += ["", f"## {name}: {part['targets']} targets of {part['users']} users", ""]
        lines += _table(tables.main_table(report, name))
        if part["own_minus"]:
            lines += ["", f"{tables.label(report['own'])} minus each row:", ""]
            lines += _table(tables.difference_table(report, name, "own_minus"))
        if part["minus_bigrec"]:
            lines += ["", f"Each row minus {tables.label('bigrec')}:", ""]
            lines += _table(tables.difference_table(report, name, "minus_bigrec"))
        if part["minus_no_memory"]:
            lines += ["", f"What memory is worth: each row minus {tables.label('no_memory')}:", ""]
            lines += _table(tables.difference_table(report, name, "minus_no_memory"))
    lines += ["", "## Cost and coverage", "", *_table(tables.cost_table(report))]
    if quality:
        lines += ["", "## The retriever alone", ""]
        lines += [f"- {sentence}" for sentence in tables.retriever_sentences(quality)]
        for table in (tables.precision_table(quality), tables.gain_table(quality), tables.distance_table(quality)):
            lines += ["", *_table(table)]
    lines += ["", *(f"![{_CAPTIONS[name]}]({name}.png)" for name in figures)]
    lines += ["", "## Again", "", "```bash", *run["commands"], "```"]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    lines = ["| | " + " | ".join(table.head) + " |", "|---" * (len(table.head) + 1) + "|"]
    for line in table.lines:
        cells = [" ".join(filter(None, (cell.text, cell.under))) for cell in line.cells]
        lines.append("| " + " | ".join([_inline(line.label), *cells]) + " |")
    return lines


def _inline(text: str) -> str:
    """On one line, and nothing in it that Markdown reads as markup."""
    return "".join(f"\\{char}" if char in r"\`*_{}[]<>|#" else char for char in " ".join(text.split()))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
