"""What the readers of raw formats give: frames, and what was found in each file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from training.data.columns import ColumnNames
from training.data.faults import DataError, Notes
from training.data.times import SECONDS, TimeFormat

_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about raw files. `encoding` None: found by looking."""

    columns: ColumnNames = field(default_factory=dict)
    encoding: str | None = None
    times: TimeFormat = SECONDS

    def flags(self) -> dict[str, str]:
        """As `training.prepare` takes them."""
        columns = ",".join(f"{role}={name}" for role, names in self.columns.items() for name in names)
        flags = {"columns": columns, "encoding": self.encoding}
        flags |= {"time-unit": self.times.unit, "time-format": self.times.text}
        return {name: value for name, value in flags.items() if value}


@dataclass(frozen=True)
class RawFile:
    """`frame` has the columns of roles by their role. `facts` describe the file for the summary."""

    frame: pl.DataFrame
    facts: Mapping[str, Any]
    broken_lines: int = 0


@dataclass(frozen=True)
class RawData:
    """Frames for `clean_dataset`. Broken lines are not in them."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    queries: pl.DataFrame | None
    times: TimeFormat
    files: list[Mapping[str, Any]]
    broken_interactions: int = 0
    broken_items: int = 0

    @classmethod
    def of(cls, events: list[RawFile], items: list[RawFile], times: TimeFormat) -> "RawData":
        return cls(
            interactions=pl.concat([part.frame for part in events], how="diagonal_relaxed"),
            items=pl.concat([part.frame for part in items], how="diagonal_relaxed"),
            queries=None,
            times=times,
            files=[part.facts for part in (*events, *items) if part.facts],
            broken_interactions=sum(part.broken_lines for part in events),
            broken_items=sum(part.broken_lines for part in items),
        )


def files_named(source: Path, stems: Iterable[str], endings: Iterable[str]) -> list[Path]:
    """Files such as STEM.ENDING or STEM.ENDING.gz, in any case."""
    names = {f"{stem}.{ending}" for stem in stems for ending in endings}
    return sorted(file for file in source.iterdir() if file.is_file() and plain_name(file) in names)


def plain_name(file: Path) -> str:
    """In lower case, without the ending of a compressed file."""
    name = file.name.lower()
    return next((name.removesuffix(ending) for ending in _COMPRESSED if name.endswith(ending)), name)


def the_only(files: list[Path], source: Path, wanted: str) -> Path:
    """Raises DataError unless there is one file."""
    if not files:
        raise DataError(f"{source}: no file {wanted}; see --help for the files of each format")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{source}: several files could be {wanted}: {names}; leave one")
    return files[0]


def note_broken(notes: Notes, count: int, first: str) -> None:
    notes.add("broken_lines", count, first)


def compact(events: pl.DataFrame) -> pl.DataFrame:
    """The same events in a fifth of the memory. A column with text that is no number stays text."""
    numbers = [
        events[name].cast(dtype, strict=False)
        for name, dtype in (("timestamp", pl.Int64), ("rating", pl.Float32))
        if name in events.columns
    ]
    exact = [column.set(column.is_nan(), None) if column.dtype.is_float() else column for column in numbers]
    exact = [column for column in exact if column.null_count() == events[column.name].null_count()]
    return events.with_columns(*exact, pl.col("user_id", "item_id").cast(pl.Categorical))
