"""`python -m training.prepare`: converts raw data in one of five formats to a data set.

In: a directory of raw files. Out: a directory with `interactions.parquet`, `items.parquet`, `dataset.json`. Wrong data
ends with one line on stderr, exit status 2 and no files. The last line on stdout is JSON: the size of the data set,
what was found in the files, and everything that was left out or changed, with its count and its first example. Knows
nothing of splits or models.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from training.data.cleaning import read_events
from training.data.columns import parse_columns
from training.data.dataset import (
    MAX_DROPPED,
    Dataset,
    Dropped,
    clean_dataset,
    dataset_stats,
    read_table_of_types,
    save_dataset,
)
from training.data.faults import DataError, Notes
from training.data.raw.found import RawData, ReadOptions
from training.data.raw.sources import READERS, read_source
from training.data.times import PER_SECOND, TimeFormat

WARN_ABOVE = 0.01
_PREVIEW_ROWS = 5

FORMATS_HELP = """\
formats, by the files expected in --source:
  parquet    interactions.parquet (user_id, item_id, timestamp, optional rating)
             and items.parquet (item_id, title, any further columns);
             queries.parquet (user_id, query, item_id, timestamp) beside or instead of interactions.parquet
  csv        interactions.csv and items.csv with the same columns; also .tsv, .txt or .jsonl. Without items.csv,
             titles in the file of interactions count, as in GET /users/{id}/export; so do its queries, unless
             there is queries.csv. events and export are names like interactions
  movielens  ratings and movies as .dat, .csv, or u.data and u.item
  amazon     reviews and meta*: .json or .jsonl, as released in 2018 or 2023
  recbole    NAME.inter and NAME.item

found by looking: the encoding (UTF-8, UTF-16, Windows-1252, Latin-1), the separator (comma, tab, semicolon, |, ::),
compression (gzip, zstd, bzip2, xz), quotes (doubled, or with a backslash), the order of columns, and their names in any
case (userId, User_ID, movieId, reviewerID, …). A time is a number of seconds (amazon of 2023: milliseconds) or a date
such as 2022-06-24T21:20:11+02:00, in UTC if it has no zone.
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        times = TimeFormat(unit=args.time_unit, text=args.time_format)
        options = ReadOptions(parse_columns(args.columns), args.encoding, times)
        if args.preview:
            preview(args.format, args.source, options, args.max_dropped)
            return 0
        if args.out is None:
            raise DataError("--out is missing; it is the directory of the data set to write (or --preview)")
        summary = prepare(args.format, args.source, args.out, options, args.max_dropped)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(json.dumps(summary, ensure_ascii=False))
    return 0


def prepare(format: str, source: Path, out: Path, options: ReadOptions, max_dropped: float) -> dict[str, Any]:
    """Raises `DataError`, also if a larger share of the events than `max_dropped` would be left out."""
    if out.resolve() == source.resolve():
        raise DataError(f"{out}: --out is --source; choose another directory, the raw data stays as it is")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; --out is a directory")
    notes = Notes()
    raw = read_source(format, source, options, notes)
    dataset, dropped = _clean(out.resolve().name, raw, notes, max_dropped)
    dataset = replace(dataset, event_types=read_table_of_types(source))
    found = {"files": raw.files, "notes": [asdict(note) for note in notes]}
    origin = {"format": format, "path": str(source), "options": options.flags() | _flag(max_dropped)} | found
    manifest = save_dataset(dataset, out, source=origin, dropped=dropped)
    return {"out": str(out), "name": dataset.name, **manifest["stats"], "dropped": _counts(dropped, raw), **found}


def _flag(max_dropped: float) -> dict[str, str]:
    return {} if max_dropped == MAX_DROPPED else {"max-dropped": str(max_dropped)}


def preview(format: str, source: Path, options: ReadOptions, max_dropped: float) -> None:
    """Prints what `prepare` would do: the files, the first rows as they are understood, and the size. Writes nothing.

    Raises `DataError`.
    """
    notes = Notes()
    raw = read_source(format, source, options, notes)
    dataset, dropped = _clean(source.resolve().name, raw, notes, max_dropped)
    for facts in raw.files:
        print(" · ".join(f"{name} {_shown(value)}" for name, value in facts.items() if value))
    with pl.Config(tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True, fmt_str_lengths=60, tbl_cols=12):
        print("first interactions:", _first_events(raw, dataset), sep="\n")
        print("first items:", dataset.items.head(_PREVIEW_ROWS), sep="\n")
    print(json.dumps({**dataset_stats(dataset), "dropped": _counts(dropped, raw)}))


def _clean(name: str, raw: RawData, notes: Notes, max_dropped: float) -> tuple[Dataset, Dropped]:
    """Notes go to stderr. Raises DataError, also for what `max_dropped` refuses."""
    dataset, dropped = clean_dataset(name, raw.interactions, raw.items, raw.queries, notes=notes, times=raw.times)
    _judge(
        raw.broken_interactions + dropped.lost,
        raw.interactions.height + raw.broken_interactions,
        "interactions",
        notes,
        max_dropped,
    )
    _judge(raw.broken_items, raw.items.height + raw.broken_items, "lines of items", notes, max_dropped)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return dataset, dropped


def _judge(lost: int, total: int, what: str, notes: Notes, max_dropped: float) -> None:
    share = lost / max(1, total)
    message = f"{lost} of {total} {what} ({share:.1%}) are left out"
    if share > max_dropped:
        raise DataError(
            f"{message}: {'; '.join(map(str, notes))}. Mend the data, or allow it: --max-dropped {share:.2f}"
        )
    if share > WARN_ABOVE:
        print(f"warning: {message}", file=sys.stderr)


def _counts(dropped: Dropped, raw: RawData) -> dict[str, int]:
    return {"broken_lines": raw.broken_interactions + raw.broken_items, **asdict(dropped)}


def _first_events(raw: RawData, dataset: Dataset) -> pl.DataFrame:
    """In the order of the file."""
    head = read_events("interactions", raw.interactions.head(_PREVIEW_ROWS), Notes(), raw.times)
    events = {"user_id": head.users.texts(), "item_id": head.items.texts(), "time (UTC)": pl.from_epoch(head.times)}
    return pl.DataFrame(events).join(dataset.items.select("item_id", "title"), on="item_id", how="left")


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{role}={name}" for role, name in value.items())
    return repr(value) if isinstance(value, list) or not str(value).isprintable() else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m training.prepare",
        description="Turn raw data into a data set.",
        epilog=FORMATS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", required=True, choices=list(READERS))
    parser.add_argument("--source", required=True, type=Path, help="directory of the raw files")
    parser.add_argument("--out", type=Path, help="directory of the data set to write")
    parser.add_argument("--preview", action="store_true", help="show the first rows as understood, and write nothing")
    columns = "columns with other names: user_id=customer_id,item_id=sku,timestamp=…,rating=…,title=…"
    parser.add_argument("--columns", default="", metavar="ROLE=NAME,…", help=columns)
    parser.add_argument("--encoding", help="encoding of all text files, if looking is wrong")
    parser.add_argument("--time-unit", choices=list(PER_SECOND), help="unit of times that are numbers")
    time_format = "format of times that are text, such as '%%m/%%d/%%Y %%H:%%M' (strptime)"
    parser.add_argument("--time-format", metavar="FORMAT", help=time_format)
    dropped = f"largest share of interactions that may be left out (default {MAX_DROPPED})"
    parser.add_argument("--max-dropped", type=float, default=MAX_DROPPED, metavar="SHARE", help=dropped)
    return parser


if __name__ == "__main__":
    sys.exit(main())
