"""Times of any type as Unix seconds.

In: a polars column: numbers in one unit, text with numbers or dates, dates with or without a zone. Out: whole seconds,
rounded down; null is missing.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from training.data.faults import DataError, Notes

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
MAX_TIME_S = 100_000_000_000  # the year 5138; as milliseconds, the same number is in March 1973
_START_OF_1990 = 631_152_000
MISSING_WORDS = ("", "na", "n/a", "nan", "none", "null", r"\n")  # in lower case
_USUAL = "%Y-%m-%d %H:%M:%S"
_CLOCK = r"^(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:[T ]+(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,]\d+)?)?)?"
_ZONE = r" ?(Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?$"


@dataclass(frozen=True)
class TimeFormat:
    """How times are written. `unit` and `text` are what the user says; None: found by looking.

    `usual_unit` is the unit of numbers in this kind of file. A number that looks like another unit is an error.
    `text` is a strptime format.
    """

    unit: str | None = None
    usual_unit: str = "s"
    text: str | None = None


SECONDS = TimeFormat()


def read_times(column: pl.Series, place: str, notes: Notes, form: TimeFormat) -> pl.Series:
    """Text is a number, an ISO 8601 date (UTC where it has no zone), or as `form.text` says. Raises DataError."""
    dtype = column.dtype
    if isinstance(dtype, pl.Date | pl.Datetime):
        return column.cast(pl.Datetime("us", getattr(dtype, "time_zone", None))).dt.epoch("s")
    if isinstance(dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    if column.dtype == pl.String:
        numbers, moments = _read_texts(column, form.text)
        is_unread = column.is_not_null() & numbers.is_null() & moments.is_null() & ~is_missing(column)
        first = f"{place}: {_first(column.filter(is_unread))} (--time-format names their format)"
        notes.add("times_that_cannot_be_read", int(is_unread.sum()), first)
    elif column.dtype.is_numeric() or column.dtype == pl.Null:
        numbers, moments = _floored(column), None
    else:
        raise DataError(f"{place}: holds values of type {dtype}; a time is a number, or a date and a time of day")
    _refuse_other_units(numbers, place, form)
    per_second = PER_SECOND[form.unit or form.usual_unit]
    times = numbers // per_second if per_second > 1 else numbers
    return times if moments is None else times.zip_with(numbers.is_not_null(), moments)


def note_unlikely_times(times: pl.Series, place: str, notes: Notes) -> None:
    """Hardly any log is from before 1990 or from the future: the unit or the format may be wrong."""
    tomorrow = int(datetime.now(UTC).timestamp()) + 86_400
    unlikely = times.filter((times < _START_OF_1990) | (times > tomorrow))
    notes.add(
        "times_before_1990_or_in_the_future", len(unlikely), f"{place}: {_first(pl.from_epoch(unlikely.head(1)))}"
    )


def is_missing(texts: pl.Series) -> pl.Series:
    """Whether a text stands for a missing value."""
    return texts.str.strip_chars().str.to_lowercase().is_in(MISSING_WORDS)


def _read_texts(texts: pl.Series, format: str | None) -> tuple[pl.Series, pl.Series]:
    """Numbers as they are written, and seconds of dates; each is null where the other is not."""
    moments = _nothing(len(texts))
    if format is not None:
        return moments, _parsed(texts.str.strip_chars(), format)
    numbers = texts.cast(pl.Int64, strict=False)
    if numbers.null_count() > texts.null_count():
        numbers = numbers.zip_with(
            numbers.is_not_null(), _floored(texts.str.strip_chars().cast(pl.Float64, strict=False))
        )
    rest = (texts.is_not_null() & numbers.is_null()).arg_true()
    return numbers, moments.scatter(rest, _dates(texts.gather(rest))) if len(rest) else moments


def _dates(texts: pl.Series) -> pl.Series:
    """Seconds of ISO 8601 dates, also with slashes or dots."""
    plain = texts.str.strip_chars()
    seconds = _parsed(plain, _USUAL)
    rest = seconds.is_null().arg_true()
    if not len(rest):
        return seconds
    parts = plain.gather(rest).str.extract_groups(_CLOCK + _ZONE).struct.unnest()
    year, month, day, hour, minute, second, zone = parts.get_columns()
    clock = hour.fill_null("0") + ":" + minute.fill_null("0") + ":" + second.fill_null("0")
    return seconds.scatter(rest, _parsed(year + "-" + month + "-" + day + " " + clock, _USUAL) - _offsets(zone))


def _parsed(texts: pl.Series, format: str) -> pl.Series:
    try:
        return texts.str.to_datetime(format, strict=False, time_unit="us").dt.epoch("s")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"--time-format {format}: {str(error).splitlines()[0]}") from error


def _offsets(zones: pl.Series) -> pl.Series:
    """Seconds east of UTC; 0 for names of UTC and for none."""
    sign, hours, minutes = zones.str.extract_groups(r"^([+-])(\d{2}):?(\d{2})?$").struct.unnest().get_columns()
    size = hours.cast(pl.Int64) * 3600 + minutes.cast(pl.Int64).fill_null(0) * 60
    return size.zip_with(sign == "+", -size).fill_null(0)


def _floored(numbers: pl.Series) -> pl.Series:
    if numbers.dtype.is_integer():
        return numbers.cast(pl.Int64, strict=False)
    return numbers.cast(pl.Float64).fill_nan(None).floor().cast(pl.Int64, strict=False)


def _nothing(length: int) -> pl.Series:
    return pl.Series([None], dtype=pl.Int64).new_from_index(0, length)


def _refuse_other_units(numbers: pl.Series, place: str, form: TimeFormat) -> None:
    """Units differ by factors of 1000, so a number after April 1973 tells its unit, up to the year 5138."""
    used = form.unit or form.usual_unit
    limit = min(MAX_TIME_S * PER_SECOND[used], 2**63 - 1)  # no 64-bit number of nanoseconds is later than 2262
    large, small = numbers.filter(numbers.abs() >= limit), pl.Series(dtype=pl.Int64)
    if form.unit is None and used != "s":
        small = numbers.filter((numbers.abs() < limit // 1000) & (numbers != 0))
    for wrong, when in ((large, "after the year 5138"), (small, "before April 1973")):
        if len(wrong):
            size, total = max(map(abs, wrong.to_list())), len(numbers) - numbers.null_count()
            guess = next((unit for unit, per in PER_SECOND.items() if size < MAX_TIME_S * per), "ns")
            counted = (
                f"{len(wrong)} of {total} timestamps are {when} if they are {_UNITS[used]} (the first: {wrong[0]})"
            )
            advice = f"{_UNITS[used]} are expected: {_convert(guess, used)}, or --time-unit {guess}"
            raise DataError(f"{place}: {counted}; they look like {_UNITS[guess]}, but {advice}")


def _convert(guess: str, used: str) -> str:
    factor = PER_SECOND[guess] / PER_SECOND[used]
    return f"divide by {factor:.0f}" if factor > 1 else f"multiply by {1 / factor:.0f}"


def _first(column: pl.Series) -> object:
    found = column.drop_nulls()
    return found[0] if len(found) else ""
