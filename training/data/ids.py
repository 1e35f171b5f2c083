"""Ids of any type as text, each distinct id once.

In: a polars column as a file has it: text, whole numbers, decimals, floats without fraction. Out: `Ids`. What cannot be
read without loss is a `DataError`; what is changed is noted.
"""

from collections.abc import Mapping
from typing import NamedTuple

import polars as pl

from training.data.faults import DataError, Notes

_EXACT_WHOLE = 2**53  # between larger floats there are whole numbers that are no float
_POINT_ZERO, _WHOLE = r"^(-?\d+)\.0+$", r"^-?\d+(\.0+)?$"
_SHORTENED = r"^\d([.,]\d+)?[eE]\+\d+$"
_NO_FRACTIONS = "have a fraction; ids are text or whole numbers"


class Ids(NamedTuple):
    """Row n has the id `names[codes[n]]`; null is missing. `names` may repeat, and is not sorted."""

    codes: pl.Series
    names: pl.Series

    def __len__(self) -> int:
        return len(self.codes)

    def texts(self) -> pl.Series:
        return self.names.gather(self.codes)

    def without(self, is_missing: pl.Series) -> "Ids":
        return Ids(self.codes, self.names.set(is_missing.fill_null(True), None))

    def sorted(self) -> "Ids":
        """The same ids, where codes have the order of the texts, and names are distinct."""
        names = self.names.drop_nulls().unique().sort()
        codes = self.names.cast(pl.Enum(names)).to_physical()
        return Ids(codes.gather(self.codes), names)


def read_ids(column: pl.Series, place: str, notes: Notes) -> Ids:
    """Blank text and NaN are missing. Raises DataError for fractions and for types that are no ids."""
    ids = _coded(column if isinstance(column.dtype, pl.Categorical) else _texts(column, place, notes))
    names = ids.names
    shortened = names.filter(names.str.contains(_SHORTENED))
    notes.add("ids_shortened_by_a_spreadsheet", len(shortened), f"{place}: {_first(shortened)}")
    return ids.without(names.str.strip_chars() == "")


def _coded(column: pl.Series) -> Ids:
    distinct = column.unique().drop_nulls()
    if column.dtype == pl.String:
        return Ids(column.cast(pl.Enum(distinct)).to_physical(), distinct)
    physical = distinct.to_physical()  # codes among all texts that this process has ever read
    codes = pl.Series([None], dtype=pl.UInt32).new_from_index(0, 1 + max(physical.to_list(), default=0))
    codes = codes.scatter(physical, pl.int_range(len(distinct), dtype=pl.UInt32, eager=True))
    return Ids(codes.gather(column.to_physical()), distinct.cast(pl.String))


def unify(files: Mapping[str, Ids], notes: Notes) -> list[Ids]:
    """The same kind of id in several files: "17.0", as a data frame writes a whole float, becomes "17" in each of them.

    Only if the ids of one file are nothing but whole numbers with such ends: "1.0" beside "1.0b" is text.
    """
    if not any(_are_whole_floats(ids.names) for ids in files.values()):
        return list(files.values())
    for place, ids in files.items():
        is_changed = ids.names.str.contains(_POINT_ZERO)
        count = int(is_changed.gather(ids.codes).sum())
        notes.add(
            "ids_that_lost_point_zero", count, f"{place}: {_first(ids.names.filter(is_changed.fill_null(False)))}"
        )
    return [Ids(ids.codes, ids.names.str.replace(_POINT_ZERO, "$1")) for ids in files.values()]


def _are_whole_floats(names: pl.Series) -> bool:
    texts = names.drop_nulls()
    return bool(len(texts) and texts.str.contains(_WHOLE).all() and texts.str.contains(_POINT_ZERO).any())


def _texts(column: pl.Series, place: str, notes: Notes) -> pl.Series:
    dtype = column.dtype
    if dtype == pl.String:
        return column
    if dtype == pl.Null or dtype.is_integer() or isinstance(dtype, pl.Enum):
        return column.cast(pl.String)
    if dtype.is_float():
        return _whole_floats(column.fill_nan(None), place, notes)
    if dtype.is_decimal():
        texts = column.cast(pl.String)
        _refuse(texts, texts.str.contains(r"\.0*[1-9]"), place, _NO_FRACTIONS)
        return texts.str.replace(r"\.0*$", "")
    try:
        if dtype == pl.Binary:
            return column.cast(pl.String)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{place}: holds bytes that are not UTF-8; ids are text or whole numbers") from error
    raise DataError(f"{place}: holds values of type {dtype}; ids are text or whole numbers")


def _whole_floats(column: pl.Series, place: str, notes: Notes) -> pl.Series:
    _refuse(column, column.is_infinite() | (column != column.floor()), place, _NO_FRACTIONS)
    limit = _EXACT_WHOLE if column.dtype == pl.Float64 else 2**24
    _refuse(column, column.abs() > limit, place, f"are floats above {limit}, where two ids can become one number")
    notes.add("ids_that_were_floats", len(column) - column.null_count(), f"{place}: {_first(column)}")
    return column.cast(pl.Int64).cast(pl.String)


def _refuse(column: pl.Series, is_wrong: pl.Series, place: str, why: str) -> None:
    wrong = column.filter(is_wrong.fill_null(False))
    if len(wrong):
        total = len(column) - column.null_count()
        raise DataError(f"{place}: {len(wrong)} of {total} values {why} (the first: {wrong[0]})")


def _first(column: pl.Series) -> object:
    found = column.drop_nulls()
    return found[0] if len(found) else ""
