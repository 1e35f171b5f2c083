"""Cleaning of the three tables of a data set, whatever the types of their columns.

In: frames with the columns of their roles. Out: frames that are complete, distinct and sorted, and how many rows were
removed why. Each removal and each change is noted with its first example.
"""

from itertools import pairwise
from typing import NamedTuple

import polars as pl
import polars.selectors as cs

from model_store.event_types import UNTYPED
from model_store.text.history import clean_title, tie_key
from training.data.columns import EVENT_ROLES
from training.data.faults import DataError, Notes
from training.data.ids import Ids, read_ids, unify
from training.data.meaning import TYPE
from training.data.times import MISSING_WORDS, TimeFormat, is_missing, note_unlikely_times, read_times

MAX_QUERY_LENGTH = 500  # characters; the rest is cut off
_BY_TIME = ["user", "timestamp", "item"]
_TIED_AT_ONCE = 1_000_000  # events whose tie keys are in memory together


class Events(NamedTuple):
    """Rows of interactions or of queries, in the order of their file; `place` is the name of this file."""

    place: str
    frame: pl.DataFrame
    users: Ids
    items: Ids
    times: pl.Series


class CleanedItems(NamedTuple):
    """`items`: item_id, title and attributes, sorted by id. Of rows with one id, the first with a title stays."""

    items: pl.DataFrame
    num_without_title: int
    num_repeated: int


class CleanedEvents(NamedTuple):
    """`events`: user_id, item_id, timestamp in s, rating (or null), and type if the file has types; by user, time and
    tie key.
    """

    events: pl.DataFrame
    num_incomplete: int
    num_without_item: int
    num_repeated: int


def read_events(place: str, frame: pl.DataFrame, notes: Notes, form: TimeFormat) -> Events:
    """Raises DataError if a column cannot be ids or times."""
    users, items = (read_ids(frame[role], f"{place}: {role}", notes) for role in ("user_id", "item_id"))
    return Events(place, frame, users, items, read_times(frame["timestamp"], f"{place}: timestamp", notes, form))


def unify_ids(item_ids: Ids, place: str, events: list[Events], notes: Notes) -> tuple[Ids, list[Events]]:
    """Makes the ids of users and of items comparable between the tables."""
    users = unify({f"{each.place}: user_id": each.users for each in events}, notes)
    by_place = {f"{place}: item_id": item_ids} | {f"{each.place}: item_id": each.items for each in events}
    catalogue, *items = unify(by_place, notes)
    return catalogue, [
        each._replace(users=own_users, items=own_items)
        for each, own_users, own_items in zip(events, users, items, strict=True)
    ]


# --- items


def clean_items(items: pl.DataFrame, ids: Ids, place: str, notes: Notes) -> CleanedItems:
    """Attributes become values that JSON can hold. Raises DataError if titles are no texts."""
    titles = _clean_titles(items["title"], place, notes)
    typed = items.with_columns(ids.texts().alias("item_id"), titles.alias("title"), *_plain_attributes(items))
    usable = typed.filter(pl.col("item_id").is_not_null() & pl.col("title").is_not_null())
    kept = usable.unique("item_id", keep="first", maintain_order=True)
    num_distinct = typed["item_id"].n_unique()
    untitled = typed.filter(pl.col("item_id").is_null() | ~pl.col("item_id").is_in(kept["item_id"].implode()))
    notes.add("items_without_title", num_distinct - kept.height, _row(place, untitled.select("item_id", "title")))
    repeated = typed.filter(~pl.col("item_id").is_first_distinct())
    notes.add("items_repeated", repeated.height, _row(place, repeated.select("item_id", "title")))
    named = kept.sort("item_id").select("item_id", "title", pl.exclude("item_id", "title"))
    return CleanedItems(named, num_distinct - kept.height, repeated.height)


def _clean_titles(column: pl.Series, place: str, notes: Notes) -> pl.Series:
    """One line of visible characters; null if there are none."""
    if column.dtype.is_nested() or column.dtype.is_temporal() or column.dtype in (pl.Binary, pl.Boolean):
        raise DataError(f"{place}: title: holds values of type {column.dtype}; titles are text")
    texts = (column.fill_nan(None) if column.dtype.is_float() else column).cast(pl.String)
    clean = texts.map_elements(clean_title, return_dtype=pl.String)
    for what, is_noted in (
        ("titles_with_line_breaks", texts.str.strip_chars().str.contains("[\r\n]")),
        ("titles_normalised", clean != texts),
        ("titles_like_missing_values", clean.str.to_lowercase().is_in(MISSING_WORDS[1:])),
        ("titles_with_replacement_characters", clean.str.contains("\ufffd", literal=True)),
    ):
        places = (is_noted.fill_null(False) & (clean != "")).arg_true()
        if len(places):
            notes.add(what, len(places), f"{place}: {texts[places[0]]!a}")
    return clean.set(clean == "", None)


def _plain_attributes(items: pl.DataFrame) -> list[pl.Expr]:
    others = cs.exclude("item_id", "title")
    texts = (cs.temporal() - cs.duration()) | cs.categorical() | cs.enum()
    return [
        (cs.float() & others).fill_nan(None),
        (cs.decimal() & others).cast(pl.Float64),
        (cs.duration() & others).dt.total_seconds(fractional=True),
        (texts & others).cast(pl.String),
        (cs.list(texts) & others).cast(pl.List(pl.String)),
    ]


# --- events


def clean_interactions(raw: Events, known: pl.Series, notes: Notes) -> CleanedEvents:
    """`known` are the ids of items. Of rows with equal user, item, time and type, that with the best rating stays."""
    users, items = raw.users.sorted(), raw.items.sorted()
    ratings = _read_ratings(raw.frame, raw.place, notes)
    note_unlikely_times(raw.times, raw.place, notes)
    columns = {"user": users.codes, "item": items.codes, "timestamp": raw.times, "rating": ratings}
    if TYPE in raw.frame.columns:
        columns[TYPE] = _read_types(raw.frame)
    equal = [*_BY_TIME, *(name for name in columns if name == TYPE)]
    events = pl.DataFrame(columns).with_row_index("row")
    complete = events.drop_nulls(["user", "item", "timestamp"])
    _note_removed("interactions_incomplete", events, complete, raw, notes)
    is_known = items.names.is_in(known.implode())
    titled = complete if is_known.all() else complete.filter(is_known.gather(complete["item"]))
    _note_removed("interactions_without_item", complete, titled, raw, notes)
    num_complete, num_titled = complete.height, titled.height
    del events, complete
    by_time = titled.sort([*equal, "rating"], descending=[*(False for _ in equal), True], nulls_last=True)
    same = pl.all_horizontal(pl.col(equal) == pl.col(equal).shift())
    distinct = by_time.filter(~same.fill_null(False))
    _note_removed("interactions_repeated", titled, distinct, raw, notes)
    del titled, by_time
    ordered = _in_history_order(distinct.drop("row"), users.names, items.names)
    removed = raw.frame.height - num_complete, num_complete - num_titled, num_titled - ordered.height
    return CleanedEvents(ordered, *removed)


def _note_removed(what: str, before: pl.DataFrame, after: pl.DataFrame, raw: Events, notes: Notes) -> None:
    if after.height < before.height:
        is_removed = (
            pl.repeat(False, raw.frame.height, eager=True).scatter(before["row"], True).scatter(after["row"], False)
        )
        notes.add(what, before.height - after.height, _row(raw.place, raw.frame[is_removed.arg_max() or 0]))


def _in_history_order(events: pl.DataFrame, users: pl.Series, items: pl.Series) -> pl.DataFrame:
    """Names instead of codes. `events` are sorted by user, time and item; where times are equal, tie keys decide."""
    same = (pl.col("user") == pl.col("user").shift()) & (pl.col("timestamp") == pl.col("timestamp").shift())
    goes_on = events.select(same.fill_null(False)).to_series()
    places = (goes_on | goes_on.shift(-1, fill_value=False)).arg_true()
    if len(places):
        types = [TYPE] if TYPE in events.columns else []
        moved = ["item", "rating", *types]
        parts = []
        for start, end in pairwise(_bounds(~goes_on.gather(places))):
            tied = events.gather(places.slice(start, end - start))
            pairs = zip(users.gather(tied["user"]), items.gather(tied["item"]), strict=True)
            keys = pl.Series("tie", [tie_key(user, item) for user, item in pairs], dtype=pl.String)
            parts.append(tied.with_columns(keys).sort("user", "timestamp", "tie", "item", *types).select(moved))
        by_key = pl.concat(parts)
        events = events.with_columns(events[column].scatter(places, by_key[column]) for column in moved)
    return events.select(
        user_id=users.gather(events["user"]),
        item_id=items.gather(events["item"]),
        timestamp="timestamp",
        rating="rating",
        **({TYPE: pl.col(TYPE)} if TYPE in events.columns else {}),
    )


def _bounds(is_first: pl.Series) -> list[int]:
    """Of pieces of about `_TIED_AT_ONCE` rows that divide no group; `is_first` marks the first row of each group."""
    starts = is_first.arg_true()
    wanted = pl.int_range(0, len(is_first), _TIED_AT_ONCE, eager=True)
    return [*starts.gather(starts.search_sorted(wanted, side="right") - 1).unique().sort(), len(is_first)]


def _read_types(frame: pl.DataFrame) -> pl.Series:
    """Text; an event without a type has that of the service's events without one."""
    texts = frame[TYPE].cast(pl.String).str.strip_chars()
    return texts.set(is_missing(texts).fill_null(True), UNTYPED)


def _read_ratings(frame: pl.DataFrame, place: str, notes: Notes) -> pl.Series:
    """Numbers; null where there is none, or none that can be read. The event is kept."""
    if "rating" not in frame.columns:
        return pl.Series([None], dtype=pl.Float32).new_from_index(0, frame.height)
    column = frame["rating"]
    if column.dtype == pl.String:
        numbers = column.str.strip_chars().cast(pl.Float32, strict=False)
        if numbers.null_count() > column.null_count():
            with_point = column.str.strip_chars().str.replace(r"^(-?\d+),(\d+)$", "$1.$2")
            numbers = numbers.zip_with(numbers.is_not_null(), with_point.cast(pl.Float32, strict=False))
        no_number = column.filter(column.is_not_null() & ~numbers.is_finite().fill_null(False))
        words = no_number.filter(is_missing(no_number) & (no_number.str.strip_chars() != ""))
        notes.add("ratings_that_stand_for_none", len(words), f"{place}: {_head(words)}")
        unread = no_number.filter(~is_missing(no_number))
    elif column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
        numbers = column.cast(pl.Float32)
        unread = numbers.filter(numbers.is_infinite())
    else:
        raise DataError(f"{place}: rating: holds values of type {column.dtype}; ratings are numbers")
    notes.add("ratings_that_cannot_be_read", len(unread), f"{place}: {_head(unread)}")
    return numbers if numbers.is_finite().all() else numbers.set(~numbers.is_finite(), None)


# --- queries


def clean_queries(raw: Events, known: pl.Series, notes: Notes) -> pl.DataFrame:
    """Sorted by user, time, query and item. Text is lower case, one line, and at most `MAX_QUERY_LENGTH` long."""
    column = raw.frame["query"]
    if column.dtype != pl.String and column.dtype != pl.Null:
        raise DataError(f"{raw.place}: query: holds values of type {column.dtype}; queries are text")
    texts = column.cast(pl.String).map_elements(clean_title, return_dtype=pl.String)
    long = texts.filter((texts.str.len_chars() > MAX_QUERY_LENGTH).fill_null(False))
    notes.add("queries_cut_off", len(long), f"{raw.place}: {_head(long)}")
    typed = pl.DataFrame(
        {
            "user_id": raw.users.texts(),
            "item_id": raw.items.texts(),
            "timestamp": raw.times,
            "query": texts.str.slice(0, MAX_QUERY_LENGTH).str.strip_chars().str.to_lowercase(),
        }
    ).with_row_index("row")
    is_usable = pl.all_horizontal(pl.all().is_not_null()) & (pl.col("query") != "")
    asked = typed.filter(is_usable & pl.col("item_id").is_in(known.implode()))
    distinct = asked.unique(["user_id", "item_id", "timestamp", "query"], keep="first", maintain_order=True)
    _note_removed("queries_removed", typed, distinct, raw, notes)
    return distinct.drop("row").sort("user_id", "timestamp", "query", "item_id")


def _row(place: str, frame: pl.DataFrame) -> str:
    """The first row as text."""
    if frame.is_empty():
        return place
    values = frame.row(0, named=True)
    shown = [role for role in (*EVENT_ROLES, "rating", "title", "query") if role in values]
    return f"{place}: " + ", ".join(f"{role} {values[role]!r}" for role in shown)


def _head(column: pl.Series) -> object:
    return column[0] if len(column) else ""
