"""`python -m training.prepare`: converts raw data in one of four formats to a data set.

In: a directory of raw files. Out: a directory with `interactions.parquet`, `items.parquet`, `dataset.json`. Wrong data
ends with one line on stderr, exit status 2 and no files. The last line on stdout is JSON: the size of the data set and
what was left out. Knows nothing of splits or models.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.data.dataset import DataError, clean_dataset, save_dataset
from training.data.sources import READERS, read_source

FORMATS_HELP = """\
formats, by the files expected in --source:
  parquet    interactions.parquet (user_id, item_id, timestamp in s, optional rating)
             and items.parquet (item_id, title, any further columns);
             queries.parquet (user_id, query, item_id, timestamp) beside or instead of interactions.parquet
  csv        interactions.csv and items.csv with the same columns
  movielens  ratings and movies as .dat, .csv, or u.data and u.item
  amazon     reviews and meta*: .json, .jsonl, plain or .gz, as released in 2018 or 2023
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        summary = prepare(args.format, args.source, args.out)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(json.dumps(summary, ensure_ascii=False))
    return 0


def prepare(format: str, source: Path, out: Path) -> dict[str, Any]:
    """Raises `DataError`."""
    if out.resolve() == source.resolve():
        raise DataError(f"{out}: --out is --source; choose another directory, the raw data stays as it is")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; --out is a directory")
    raw = read_source(format, source)
    if raw.broken_lines:
        print(
            f"warning: {raw.broken_lines} broken lines left out, the first: {raw.first_broken}",
            file=sys.stderr,
        )
    dataset, dropped = clean_dataset(out.resolve().name, raw.interactions, raw.items, raw.queries)
    origin = {"format": format, "path": str(source), "broken_lines": raw.broken_lines}
    manifest = save_dataset(dataset, out, source=origin, dropped=dropped)
    counts = {"broken_lines": raw.broken_lines, **asdict(dropped)}
    return {"out": str(out), "name": dataset.name, **manifest["stats"], "dropped": counts}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m training.prepare",
        description="Turn raw data into a data set.",
        epilog=FORMATS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", required=True, choices=list(READERS))
    parser.add_argument("--source", required=True, type=Path, help="directory of the raw files")
    parser.add_argument("--out", required=True, type=Path, help="directory of the data set to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
