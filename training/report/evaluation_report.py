"""The report of an evaluation: metrics.json for programs; index.html, report.md and figures for people.

In: the report as metrics.json has it, and the retriever's quality by target. Out: files in one directory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.memory.retrieval_metrics import RetrievalRecords
from training.report import evaluation_tables as tables
from training.report.evaluation_figures import draw_figures
from training.report.plotting import png
from training.report.writer import escape_markdown, markdown_table, render_page, write_files
from training.run.metrics import TITLE_SUFFIX
from training.run.stage import write_json

_TEMPLATE = Path(__file__).with_name("evaluation.html.jinja")
_CAPTIONS = {
    "ndcg": "NDCG@10 with 95 % intervals",
    "differences": "Differences to every other row with 95 % intervals",
    "memory_worth": "What memory adds, with 95 % intervals",
    "retrieval_gain": "Gain of the retrieved element, compared with random elements and the best one",
    "retrieval_distance": "Age of the retrieved elements",
}


def write_report(report: Mapping[str, Any], records: RetrievalRecords | None, out: Path) -> None:
    """metrics.json is written last: where it exists, the other files are of the same run."""
    images = {name: png(figure) for name, figure in draw_figures(report, records).items()}
    write_files(out, {f"{name}.png": image for name, image in images.items()})
    write_files(out, {"index.html": _html(report, images), "report.md": _markdown(report, images)})
    write_json(out / "metrics.json", report)


def _html(report: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    values = {"report": report, "tables": tables, "captions": _CAPTIONS, "title_suffix": TITLE_SUFFIX}
    return render_page(_TEMPLATE, images, values | {"focus": tables.focus(report)})


def _markdown(report: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    lines = [
        f"# {escape_markdown(report['data'])}, {report['split']} ({report['cut']} split)",
        "",
        f"{report['targets']} targets, {report['items']} items ranked, seen items "
        f"{'masked' if report['mask_seen'] else 'not masked'}, bundle {escape_markdown(report['bundle'])} "
        f"(space {report['space']}). In brackets: 95 % intervals, resampled by user.",
        "",
        *(f"- {escape_markdown(sentence)}" for sentence in tables.summary(report, tables.focus(report))),
    ]
    for name in tables.shown_slices(report):
        lines += _slice(report, name)
    lines += _returns(report)
    lines += ["", "## Cost and coverage", "", *markdown_table(tables.cost_table(report))]
    if report["voices"]:
        lines += _voices(report["voices"])
    if report["retriever"]:
        lines += _retriever(report["retriever"])
    lines += ["", *(f"![{_CAPTIONS[name]}]({name}.png)" for name in images)]
    lines += _section("What was chosen on the valid period", tables.choice_sentences(report))
    lines += _section("What is shown", [tables.BASKET])
    lines += _section("Ties", tables.TIES)
    lines += ["", "## Run it again", "", "```bash", *report["run"]["commands"], "```"]
    return "\n".join(lines) + "\n"


def _slice(report: Mapping[str, Any], name: str) -> list[str]:
    part = report["slices"][name]
    lines = ["", f"## {name}: {part['targets']} targets of {part['users']} users", ""]
    lines += markdown_table(tables.main_table(report, name))
    headings = {
        "own_minus": f"{tables.label(report['own'] or '')} minus each row:",
        "minus_bigrec": f"Each row minus {tables.label('bigrec')}:",
        "minus_no_memory": f"What memory adds: each row minus {tables.label(report['no_memory'])}:",
    }
    for key, heading in headings.items():
        if part[key]:
            lines += ["", heading, "", *markdown_table(tables.difference_table(report, name, key))]
    return lines


def _returns(report: Mapping[str, Any]) -> list[str]:
    table = tables.return_table(report)
    return ["", "## NDCG@10 of items that come back, and of new ones", "", *markdown_table(table)] if table else []


def _section(heading: str, sentences: Sequence[str]) -> list[str]:
    """Nothing where there are no sentences."""
    return ["", f"## {heading}", "", *(f"- {escape_markdown(each)}" for each in sentences)] if sentences else []


def _voices(voices: Mapping[str, Any]) -> list[str]:
    lines = ["", "## The voices", "", *(f"- {sentence}" for sentence in tables.voice_sentences(voices))]
    return [*lines, "", *markdown_table(tables.voice_table(voices))]


def _retriever(quality: Mapping[str, Any]) -> list[str]:
    lines = ["", "## The retriever alone", "", *(f"- {sentence}" for sentence in tables.retriever_sentences(quality))]
    for table in (tables.precision_table(quality), tables.gain_table(quality), tables.distance_table(quality)):
        lines += ["", *markdown_table(table)]
    return lines
