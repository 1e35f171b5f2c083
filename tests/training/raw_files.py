"""Raw files in a directory of a test, and `training.prepare` run on them."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from training.data.dataset import Dataset, load_dataset
from training.prepare import main

Row = tuple[Any, ...]  # user, item, time, rating, and the type if the data has types


class RawFiles:
    """A directory of raw files, and `training.prepare` run on it."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.source, self.out, self.capsys = path / "raw", path / "books", capsys
        self.source.mkdir()
        self.errors = ""
        self.notes: dict[str, tuple[int, str]] = {}  # what -> count, first example

    def put(self, name: str, *lines: str, encoding: str = "utf-8") -> None:
        content = "".join(f"{line}\n" for line in lines).encode(encoding)
        (self.source / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    def put_bytes(self, name: str, content: bytes) -> None:
        (self.source / name).write_bytes(content)

    def prepare(self, format: str, *flags: str) -> tuple[Dataset, dict[str, Any]]:
        code = main(["--format", format, "--source", str(self.source), "--out", str(self.out), *flags])
        captured = self.capsys.readouterr()
        self.errors = captured.err
        assert code == 0, captured.err
        assert captured.out.count("\n") == 1, "stdout is one line of JSON"
        summary = json.loads(captured.out)
        self.notes = {note["what"]: (note["count"], note["first"]) for note in summary["notes"]}
        return load_dataset(self.out), summary

    def refuse(self, format: str, *flags: str) -> str:
        """Runs the program, which must fail; returns its line on stderr."""
        code = main(["--format", format, "--source", str(self.source), "--out", str(self.out), *flags])
        captured = self.capsys.readouterr()
        assert code == 2 and captured.out == ""
        assert not self.out.exists(), "something was written"
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
        return captured.err


def rows(dataset: Dataset) -> list[Row]:
    return dataset.interactions.rows()


def titles(dataset: Dataset) -> dict[str, str]:
    return dict(dataset.items.select("item_id", "title").rows())
