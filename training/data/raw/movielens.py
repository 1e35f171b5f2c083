"""MovieLens: ML-1M and 10M (.dat), 20M to 32M and latest (.csv), ML-100K (u.data), which have the same columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from training.data.columns import EVENT_ROLES, ITEM_ROLES, find_columns, squashed
from training.data.faults import DataError, Notes
from training.data.raw.found import RawData, RawFile, ReadOptions, compact, files_named
from training.data.raw.tables import Quoting, TableFile
from training.data.raw.text_files import TextFile
from training.data.raw.text_tables import is_headerless, read_columns, read_named

_RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_MOVIE_COLUMNS = ("item_id", "title", "genres")
_NO_GENRES = "(no genres listed)"


class _Release(NamedTuple):
    """`separator` None: the files are CSV, and their first line names the columns."""

    ratings: str
    movies: str
    separators: tuple[str, str] | None


_RELEASES = (
    _Release("ratings.dat", "movies.dat", ("::", "::")),
    _Release("ratings.csv", "movies.csv", None),
    _Release("u.data", "u.item", ("\t", "|")),
)


def read_movielens(source: Path, options: ReadOptions, notes: Notes) -> RawData:
    for release in _RELEASES:
        files = [files_named(source, [name.split(".")[0]], [name.split(".")[1]]) for name in release[:2]]
        if all(files):
            ratings, movies = (TextFile.open(found[0], options.encoding, notes) for found in files)
            if release.separators is None:
                parts = _read_csv(TableFile.open(ratings), TableFile.open(movies), options, notes)
            else:
                left, right = release.separators
                parts = (
                    _read_positions(TableFile.separated(ratings, left), _RATING_COLUMNS, notes),
                    _read_positions(TableFile.separated(movies, right), _MOVIE_COLUMNS, notes),
                )
            return RawData.of([parts[0]], [_with_categories(parts[1])], options.times)
    wanted = ", or ".join(f"{release.ratings} and {release.movies}" for release in _RELEASES)
    raise DataError(f"{source}: no MovieLens files; needed: {wanted}")


def _read_csv(ratings: TableFile, movies: TableFile, options: ReadOptions, notes: Notes) -> tuple[RawFile, RawFile]:
    """By name. A file without names has the columns of all releases in their order."""
    if _is_headerless(ratings, EVENT_ROLES, options):
        events = _read_positions(ratings, _RATING_COLUMNS, notes)
    else:
        events = read_named(ratings, EVENT_ROLES, ("rating",), options, notes)
    if _is_headerless(movies, ITEM_ROLES, options):
        return events, _read_positions(movies, _MOVIE_COLUMNS, notes)
    return events, read_named(movies, ITEM_ROLES, None, options, notes)


def _is_headerless(table: TableFile, roles: Sequence[str], options: ReadOptions) -> bool:
    return is_headerless(table, find_columns(str(table.text.path), table.first, roles, options.columns))


def _read_positions(table: TableFile, names: Sequence[str], notes: Notes) -> RawFile:
    """The first columns of a file without names. Further ones, as in u.item, are left out, and then so is the third."""
    if table.separator == ",":
        notes.add("files_without_names_of_columns", 1, f"{table.text.path.name}: {','.join(table.first)}")
    if len(table.first) < len(names) - 1:
        expected = f"{len(names)} fields between {table.separator!r}"
        raise DataError(f"{table.text.path} line 1: {expected} are expected, found {len(table.first)}")
    used = names if len(table.first) == len(names) else names[:2]
    every = (*used, *(f"column {place}" for place in range(len(used), len(table.first))))
    quoting: Quoting = "doubled" if table.separator == "," else "none"

    def shape(frame: pl.DataFrame) -> pl.DataFrame:
        return compact(frame.select(used)) if "user_id" in used else frame.select(used)

    return read_columns(table, every, shape, notes, has_header=False, quoting=quoting)


def _with_categories(movies: RawFile) -> RawFile:
    """Genres as lists."""
    named = [name for name in movies.frame.columns if squashed(name) == "genres"]
    if not named:
        empty = pl.lit([], dtype=pl.List(pl.String)).alias("categories")
        return RawFile(movies.frame.with_columns(empty), movies.facts, movies.broken_lines)
    genres = pl.col(named[0]).replace(_NO_GENRES, None).str.split("|").fill_null([]).alias("categories")
    return RawFile(movies.frame.with_columns(genres).drop(named[0]), movies.facts, movies.broken_lines)
