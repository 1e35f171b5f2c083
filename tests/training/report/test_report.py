"""The report: all files have the same numbers, the page is self-contained, and text from data is escaped."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from tests.training.small import METRICS
from training.memory.retrieval_metrics import RANDOM_DRAWS, RetrievalRecords, retrieval_summary
from training.report import evaluation_tables as tables
from training.report.evaluation_report import write_report

EVIL = '<script>alert("1")</script> & | $x_1$ `rm`'
BETTER, EVEN, WORSE = [0.25, 0.125, 0.5], [0.25, -0.125, 0.5], [-0.25, -0.5, -0.125]
LATENCY = {"targets": 3, "ms": 20.0, "ms_p10": 15.0, "plain_ms": 16.0, "times_plain": [1.25, 1.2, 1.3]}
RUN = {
    "users": 9, "interactions": 99, "population": 70, "seed": 0, "vocabulary": "titles", "base_model": "llama",
    "adapter": None, "num_layers": 4, "split_layer": 2, "hidden_size": 32, "recent_length": 3, "max_memory": 12,
    "top_k": 2, "combine": "insert", "num_beams": 5, "past_length": 300, "created_at": "2026-01-01",
    "device": "cpu", "threads": 1, "cores": 2, "python": "3.11", "torch": "2",
}  # fmt: skip


VOICES = {
    "memory_use": {"scale": 0.75, "discount": 0.25},
    "targets": {"teach": 30, "judge": 10},
    "valid_ndcg@10_window": 0.25,
    "valid_ndcg@10_memory": 0.375,
    "memory_minus_window": [0.125, 0.0625, 0.1875],
    "shares": {
        "overall": {"language_model": 0.5, "popularity": 0.125},
        "window": {"near": 0.125, "return": 0.0},
        "older": {"near": 0.0625, "return": 0.1875},
    },
}


def records() -> RetrievalRecords:
    rng = np.random.default_rng(0)
    gain = rng.normal(size=(7, 4 + RANDOM_DRAWS))
    return RetrievalRecords(
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


def about_row(latency: dict[str, Any] | None, **trained: Any) -> dict[str, Any]:
    return {"draws": 1, "coverage": 0.5, "latency": latency, "trained": [{"seed": 0, **trained}] if trained else []}


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
        "no_memory": "bigrec",
        "about_rows": {row: about_row(times) for row, times in latency.items()},
        "slices": {"all": part_of(own, baseline, 7), "memory": part_of(own, baseline, 5)},
        "voices": VOICES if quality else None,
        "retriever": retrieval_summary(records(), top_k=2) if quality else None,
        "run": {**RUN, "commands": [f"python -m training.evaluate --data '{data}'"]},
    }


class Page(HTMLParser):
    """The tags, addresses and text of a page, as a browser reads them."""

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
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(report: dict[str, Any], out: Path, of: RetrievalRecords | None = None) -> Page:
    write_report(report, of, out)
    return Page((out / "index.html").read_text(encoding="utf-8"))


def test_all_files_are_written(tmp_path: Path) -> None:
    report = report_of()
    write_report(report, records(), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(report))
    names = {"ndcg.png", "differences.png", "memory_worth.png", "retrieval_gain.png", "retrieval_distance.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "index.html", "report.md", *names}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_the_page_is_valid_and_self_contained(tmp_path: Path) -> None:
    page = page_of(report_of(), tmp_path, records())
    assert page.open == [], "tags that are not closed"
    assert "script" not in page.tags and "link" not in page.tags
    outside = [address for address in page.addresses if not address.startswith(("data:image/png;base64,", "#"))]
    assert outside == [], "the page must not need the network"
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.anchors
    assert page.tags.count("img") == 5
    assert "url(" not in (tmp_path / "index.html").read_text()


def test_the_page_tells_what_was_run_and_how_to_run_it_again(tmp_path: Path) -> None:
    text = " ".join(page_of(report_of(), tmp_path, records()).text.split())
    for part in (
        "shop: 9 users, 20 items, 99 interactions",
        "7 targets, drawn by seed 0 out of 70",
        "seen items are not masked",
        "4 layers of width 32, split after layer 2",
        "10 draws of the memory of another user, 3 seeds",
        "python -m training.evaluate --data 'shop'",
    ):
        assert part in text, part


def test_page_and_markdown_have_the_same_tables(tmp_path: Path) -> None:
    report = report_of()
    page = page_of(report, tmp_path, records())
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    quality = report["retriever"]
    shown = [
        tables.main_table(report, "all"),
        tables.difference_table(report, "memory", "own_minus"),
        tables.difference_table(report, "memory", "minus_no_memory"),
        tables.cost_table(report),
        tables.voice_table(report["voices"]),
        tables.gain_table(quality),
        tables.precision_table(quality),
        tables.distance_table(quality),
    ]
    for cell in (cell for table in shown for row in table.rows for cell in row.cells):
        for part in filter(None, (cell.text, cell.small)):
            assert part in page.text, f"{part} is not in the page"
            assert part in text, f"{part} is not in report.md"
    sentences = [*tables.summary(report, "memory"), *tables.retriever_sentences(quality)]
    for sentence in [*sentences, *tables.voice_sentences(report["voices"]), tables.BASKET]:
        assert sentence in page.text


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    """A data set may have any name: it must not add a script, break a table or stop a figure."""
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
    assert (tmp_path / "ndcg.png").is_file(), "a row that is not in the registry"


def test_all_rows_of_a_table_have_the_same_number_of_cells(tmp_path: Path) -> None:
    write_report(report_of(), records(), tmp_path)
    blocks = re.findall(r"(?:^\|.*\n)+", (tmp_path / "report.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(blocks) == 2 * 4 + 1 + 1 + 3, "four for each of two slices, cost, voices, three of the retriever"
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_the_summary_groups_the_rows_by_their_intervals() -> None:
    sentences = tables.summary(report_of(), "memory")
    assert "5 targets with memory" in sentences[0]
    assert sentences[1] == f"It is better than {tables.label('random')} (+25.0 %)."
    assert sentences[2] == "It does not differ significantly from BIGRec (+25.0 %)."
    assert sentences[3] == "Memory adds +0.2500 [+0.1250, +0.5000], which is +25.0 % [+12.5, +50.0]."
    assert sentences[4].startswith("Over the memory of another user, the user's own adds +0.2500 [+0.1250, +0.5000],")
    assert "which knows the answer, it is 0.2500. That is no bound" in sentences[5], (
        "a row that knows the answer must not be compared like other rows"
    )
    assert sentences[6] == "One answer takes 20.0 ms, 1.25 [1.20, 1.30] times as long as without memory."


def test_the_shares_of_the_voices_sum_to_one() -> None:
    rows = {row.label.partition(":")[0]: [cell.text for cell in row.cells] for row in tables.voice_table(VOICES).rows}
    assert rows["near"] == ["18.8 %", "12.5 %", "6.2 %"]
    assert rows["all events"] == ["37.5 %", "12.5 %", "25.0 %"]
    assert rows["the language model"] == ["50.0 %", "–", "–"]
    assert "by +0.1250 [+0.0625, +0.1875]" in tables.voice_sentences(VOICES)[2]


def returning_report(returning: int) -> dict[str, Any]:
    report = report_of()
    report["targets"] = 200
    report["slices"] |= {"returning": part_of("automr", True, returning), "new": part_of("automr", True, 200)}
    return report


def test_targets_that_come_back_have_a_small_table_if_there_are_enough(tmp_path: Path) -> None:
    table = tables.return_table(returning_report(2))
    assert table is not None
    assert table.head == ["2 targets that come back", "200 targets that are new"]
    assert [row.label for row in table.rows] == [tables.label(row) for row in ("bigrec", "random", "automr", "oracle")]
    assert tables.return_table(returning_report(1)) is None, "under 1 %"
    assert tables.return_table(report_of()) is None
    for file in ("page", "markdown"):
        text = page_of(returning_report(2), tmp_path).text if file == "page" else (tmp_path / "report.md").read_text()
        assert text.count("2 targets that come back") == 1, f"{file}: the slice needs no further table"


def test_choices_at_the_end_of_a_grid_and_trainings_without_end_are_told(tmp_path: Path) -> None:
    report = report_of()
    rows = {
        "item_knn": about_row(None, settings={"span": None, "half_life": 2.0}, at_grid_end={"span": None}),
        "sasrec": about_row(None, settings={"dropout": 0.1}, at_grid_end={}, epochs=41.5, stopped_early=True),
        "bigrec": about_row(None, steps=3000),
    }
    rows["sasrec_bce"] = {
        **about_row(None),
        "draws": 2,
        "trained": [{"seed": 1, "epochs": 95.0, "stopped_early": False}],
    }
    report["about_rows"] |= rows
    sentences = tables.choice_sentences(report)
    assert sorted(sentences) == [
        "SASRec (BCE), seed 1: 95 epochs, NOT CONVERGED, ended by the limit of steps.",
        "SASRec (strong): dropout = 0.1. 41.5 epochs, ended by early stopping.",
        "item-kNN: span = unlimited, half_life = 2. at the end of the values tried: span; a better one may lie beyond.",
    ]
    text = page_of(report, tmp_path).text
    assert all(sentence in text for sentence in [*sentences, *tables.TIES])
    assert "NOT CONVERGED" in (tmp_path / "report.md").read_text()


def test_an_interval_that_contains_zero_is_no_difference() -> None:
    assert tables.verdict((0.1, 0.01, 0.2)) == "better"
    assert tables.verdict((-0.1, -0.2, -0.01)) == "worse"
    assert tables.verdict((0.1, 0.0, 0.2)) == tables.verdict((0.0, 0.0, 0.0)) == "even"


def test_negative_numbers_have_a_minus_sign() -> None:
    (row,) = [each for each in tables.difference_table(report_of(), "all", "own_minus").rows if each.kind == "oracle"]
    assert row.cells[0] == ("−0.2500", "[−0.5000, −0.1250]", "worse")
    assert row.cells[1] == ("−25.0 %", "[−50.0, −12.5]", "worse")


def test_the_page_is_valid_without_retriever_own_row_and_baseline(tmp_path: Path) -> None:
    page = page_of(report_of(own=None, baseline=False, quality=False), tmp_path)
    assert page.open == []
    assert "The retriever alone" not in page.text
    assert "minus each other row" not in page.text
    assert {path.name for path in tmp_path.glob("*.png")} == {"ndcg.png"}
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.anchors


def test_an_undefined_value_is_a_dash() -> None:
    quality = {**retrieval_summary(records(), top_k=2), "precision@1": None, "captured": None, "rank_correlation": None}
    assert tables.precision_table(quality).rows[0].cells[0].text == "–"
    assert "no gain to reach" in tables.retriever_sentences(quality)[1]
