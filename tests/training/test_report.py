"""One report for programs, one for people, and they say the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.metrics import metric_names
from training.report import write_report


@pytest.fixture
def report() -> dict[str, Any]:
    def rows(*names: str) -> dict[str, Any]:
        return {row: {name: [0.25, 0.125, 0.5] for name in metric_names()} for row in names}

    part = {"targets": 7, "users": 3, "rows": rows("bigrec", "automr"), "minus_bigrec": rows("automr")}
    return {
        "data": "shop",
        "split": "test",
        "cut": "time",
        "targets": 7,
        "items": 20,
        "mask_seen": False,
        "bundle": "tiny",
        "space": "0123",
        "slices": {"all": part, "memory": {**part, "targets": 5}},
    }


def test_the_three_files(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == report
    assert (tmp_path / "ndcg.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "report.md").read_text()
    assert "7 targets, 20 items ranked, seen items not masked, bundle tiny (space 0123)" in text
    assert "## memory: 5 targets of 3 users" in text
    assert "| automr | 0.2500 | 0.2500 | 0.2500 | 0.2500 | 0.2500 | +0.2500 [+0.1250, +0.5000] |" in text
    assert "| bigrec | 0.2500 | 0.2500 | 0.2500 | 0.2500 | 0.2500 |  |" in text


def test_every_line_of_a_table_has_the_same_number_of_cells(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(report, tmp_path)
    lines = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {8}


def test_without_a_baseline_there_are_no_differences(report: dict[str, Any], tmp_path: Path) -> None:
    for part in report["slices"].values():
        part["minus_bigrec"] = {}
    write_report(report, tmp_path)
    assert "[" not in (tmp_path / "report.md").read_text().split("![")[0]
