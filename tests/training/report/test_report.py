"""One report for programs, one for people, and they say the same; what data says is shown and never obeyed."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from tests.training.small import METRICS
from training.memory.retrieval_quality import RANDOM_DRAWS, Judged, summarise
from training.report import tables
from training.report.report import write_report

EVIL = '<script>alert("1")</script> & | $x_1$ `rm`'
BETTER, EVEN, WORSE = [0.25, 0.125, 0.5], [0.25, -0.125, 0.5], [-0.25, -0.5, -0.125]
LATENCY = {"targets": 3, "ms": 20.0, "ms_p10": 15.0, "plain_ms": 16.0, "times_plain": [1.25, 1.2, 1.3]}
RUN = {
    "users": 9, "interactions": 99, "population": 70, "seed": 0, "vocabulary": "titles", "base_model": "llama",
    "adapter": None, "num_layers": 4, "split_layer": 2, "hidden_size": 32, "recent_length": 3, "max_memory": 12,
    "top_k": 2, "combine": "insert", "num_beams": 5, "neighbor_share": 0.6, "created_at": "2026-01-01",
    "device": "cpu", "threads": 1, "cores": 2, "python": "3.11", "torch": "2",
}  # fmt: skip


def judged() -> Judged:
    rng = np.random.default_rng(0)
    gain = rng.normal(size=(7, 4 + RANDOM_DRAWS))
    return Judged(
        users=np.arange(7),
        num_memory=np.full(7, 5),
        place_of_best=np.arange(7) % 5,
        correlation=gain[:, 0].clip(-1, 1),
        abstained=np.arange(7) == 3,
        first_gain=gain[:, 0],
        joint_gain=gain[:, 1],
        random_gain=gain[:, 4:],
        newest_gain=gain[:, 2],
        best_gain=gain[:, 3],
        days=rng.random((7, 2 + RANDOM_DRAWS)),
        positions=rng.integers(3, 9, size=(7, 2 + RANDOM_DRAWS)).astype(float),
    )


def part_of(own: str | None, baseline: bool, targets: int) -> dict[str, Any]:
    def all_metrics(interval: list[float] | None) -> dict[str, Any]:
        return dict.fromkeys(METRICS, interval)

    rivals = {"bigrec": EVEN, "random": BETTER, "oracle": WORSE} if own else {}
    others = {"random": EVEN, "automr": BETTER, "oracle": BETTER} if baseline else {}
    memories = {"random": WORSE, own: BETTER} if own and baseline else {}
    return {
        "targets": targets,
        "users": 3,
        "rows": {row: all_metrics([0.25, 0.125, 0.5]) for row in ("bigrec", "random", "automr", "oracle")},
        "minus_bigrec": {row: all_metrics(interval) for row, interval in others.items()},
        "minus_bigrec_relative": {row: all_metrics(None) for row in others},
        "minus_no_memory": {row: all_metrics(interval) for row, interval in memories.items()},
        "minus_no_memory_relative": {row: all_metrics(interval) for row, interval in memories.items()},
        "own_minus": {row: all_metrics(interval) for row, interval in rivals.items()},
        "own_minus_relative": {row: all_metrics(interval) for row, interval in rivals.items()},
        "by_seed": {"random": all_metrics([0.2, 0.3])},
    }


def report_of(
    *, own: str | None = "automr", baseline: bool = True, data: str = "shop", quality: bool = True
) -> dict[str, Any]:
    latency = {"bigrec": LATENCY, "random": LATENCY, "automr": LATENCY, "oracle": None}
    return {
        "data": data,
        "split": "test",
        "cut": "time",
        "targets": 7,
        "seeds": 3,
        "draws": 10,
        "items": 20,
        "mask_seen": False,
        "bundle": "tiny",
        "space": "0123",
        "own": own,
        "about_rows": {row: {"draws": 1, "coverage": 0.5, "latency": times} for row, times in latency.items()},
        "slices": {"all": part_of(own, baseline, 7), "memory": part_of(own, baseline, 5)},
        "retriever": summarise(judged(), top_k=2) if quality else None,
        "run": {**RUN, "commands": [f"python -m training.evaluate --data '{data}'"]},
    }


class Page(HTMLParser):
    """What a browser would make of it: tags, addresses, text."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.anchors |= {value or "" for name, value in attrs if name == "id"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(report: dict[str, Any], out: Path, of: Judged | None = None) -> Page:
    write_report(report, of, out)
    return Page((out / "index.html").read_text(encoding="utf-8"))


def test_the_files(tmp_path: Path) -> None:
    report = report_of()
    write_report(report, judged(), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(report))
    names = {"ndcg.png", "differences.png", "memory_worth.png", "retrieval_gain.png", "retrieval_distance.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "index.html", "report.md", *names}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_the_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    page = page_of(report_of(), tmp_path, judged())
    assert page.open == [], "tags left open"
    assert "script" not in page.tags and "link" not in page.tags
    outside = [address for address in page.addresses if not address.startswith(("data:image/png;base64,", "#"))]
    assert outside == [], "the page would ask the network"
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.anchors
    assert page.tags.count("img") == 5
    assert "url(" not in (tmp_path / "index.html").read_text()


def test_the_page_says_what_was_run_and_how_to_run_it_again(tmp_path: Path) -> None:
    text = " ".join(page_of(report_of(), tmp_path, judged()).text.split())
    for said in (
        "shop: 9 users, 20 items, 99 interactions",
        "7 targets, drawn by seed 0 out of 70",
        "seen items are not masked",
        "4 layers of width 32, split after layer 2",
        "10 of the random memory, 3 seeds",
        "python -m training.evaluate --data 'shop'",
    ):
        assert said in text, said


def test_page_and_text_show_the_same_tables(tmp_path: Path) -> None:
    report = report_of()
    page = page_of(report, tmp_path, judged())
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    quality = report["retriever"]
    shown = [
        tables.main_table(report, "all"),
        tables.difference_table(report, "memory", "own_minus"),
        tables.difference_table(report, "memory", "minus_no_memory"),
        tables.cost_table(report),
        tables.gain_table(quality),
        tables.precision_table(quality),
        tables.distance_table(quality),
    ]
    for cell in (cell for table in shown for line in table.lines for cell in line.cells):
        for said in filter(None, (cell.text, cell.under)):
            assert said in page.text, f"{said} is not in the page"
            assert said in text, f"{said} is not in the text"
    for sentence in [*tables.summary(report, "memory"), *tables.retriever_sentences(quality)]:
        assert sentence in page.text


def test_data_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    """A data set may be called anything: the page has no script of its, tables keep their cells, figures are drawn."""
    page = page_of(report_of(data=EVIL), tmp_path)
    assert EVIL in page.text
    assert "script" not in page.tags
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.splitlines()[0] == ('# \\<script\\>alert("1")\\</script\\> & \\| $x\\_1$ \\`rm\\`, test (time split)')


def test_text_that_looks_like_a_formula_is_drawn_as_text(tmp_path: Path) -> None:
    report = report_of()
    for part in report["slices"].values():
        part["rows"] = {"$\\oops$ & $": part["rows"]["bigrec"], **part["rows"]}
    report["about_rows"]["$\\oops$ & $"] = report["about_rows"]["bigrec"]
    write_report(report, None, tmp_path)
    assert (tmp_path / "ndcg.png").is_file(), "a row that nobody has heard of yet"


def test_every_line_of_a_table_has_the_same_number_of_cells(tmp_path: Path) -> None:
    write_report(report_of(), judged(), tmp_path)
    blocks = re.findall(r"(?:^\|.*\n)+", (tmp_path / "report.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(blocks) == 2 * 4 + 1 + 3, "two slices, the cost, the retriever"
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_the_summary_sorts_the_rows_by_what_the_intervals_say() -> None:
    told = tables.summary(report_of(), "memory")
    assert "5 targets with memory" in told[0]
    assert told[1] == "It is better than random memory (+25.0 %)."
    assert told[2] == "It cannot be told apart from BIGRec (+25.0 %)."
    assert told[3] == "Memory adds +0.2500 [+0.1250, +0.5000] to it, +25.0 % [+12.5, +50.0]."
    assert "oracle" in told[4] and "upper bound" in told[4], "the oracle is no rival"
    assert told[5] == "One answer takes 20.0 ms, 1.25 [1.20, 1.30] times the prompt without memory."


def test_an_interval_that_holds_zero_is_no_difference() -> None:
    assert tables.verdict((0.1, 0.01, 0.2)) == "better"
    assert tables.verdict((-0.1, -0.2, -0.01)) == "worse"
    assert tables.verdict((0.1, 0.0, 0.2)) == tables.verdict((0.0, 0.0, 0.0)) == "even"


def test_a_minus_is_a_minus() -> None:
    (line,) = [each for each in tables.difference_table(report_of(), "all", "own_minus").lines if each.kind == "bound"]
    assert line.cells[0] == ("−0.2500", "[−0.5000, −0.1250]", "worse")
    assert line.cells[1] == ("−25.0 %", "[−50.0, −12.5]", "worse")


def test_without_retriever_own_row_or_baseline_the_page_is_still_one(tmp_path: Path) -> None:
    page = page_of(report_of(own=None, baseline=False, quality=False), tmp_path)
    assert page.open == []
    assert "The retriever alone" not in page.text
    assert "minus each other row" not in page.text
    assert {path.name for path in tmp_path.glob("*.png")} == {"ndcg.png"}
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.anchors


def test_an_undefined_value_is_a_dash() -> None:
    quality = {**summarise(judged(), top_k=2), "precision@1": None, "captured": None, "rank_correlation": None}
    assert tables.precision_table(quality).lines[0].cells[0].text == "–"
    assert "nothing to capture" in tables.retriever_sentences(quality)[1]
