"""RecBole's atomic files: NAME.inter and NAME.item, tables between tabs whose first line has names and types.

A first line is `user_id:token`, `item_id:token`, `rating:float`, `timestamp:float` between tabs. Values are not quoted.
A `token_seq` is a list of words between blanks.
"""

from dataclasses import replace
from pathlib import Path

import polars as pl

from training.data.columns import EVENT_ROLES, ITEM_ROLES, find_columns, rename, require_columns
from training.data.faults import DataError, Notes
from training.data.raw.found import RawData, RawFile, ReadOptions, compact, plain_name, the_only
from training.data.raw.tables import TableFile
from training.data.raw.text_files import TextFile
from training.data.raw.text_tables import read_columns

_TYPES = ("token", "token_seq", "float", "float_seq")


def read_recbole(source: Path, options: ReadOptions, notes: Notes) -> RawData:
    """Files of users, links and graphs are not read."""
    events = _read(source, ".inter", (*EVENT_ROLES, "rating"), options, notes)
    items = _read(source, ".item", ITEM_ROLES, options, notes)
    return RawData.of([events], [items], options.times)


def _read(source: Path, ending: str, roles: tuple[str, ...], options: ReadOptions, notes: Notes) -> RawFile:
    files = sorted(file for file in source.iterdir() if plain_name(file).endswith(ending))
    file = the_only(files, source, f"NAME{ending}")
    table = TableFile.separated(TextFile.open(file, options.encoding, notes), "\t")
    names, types = zip(*(_name_and_type(file, field) for field in table.first), strict=True)
    found = find_columns(str(file), names, roles, options.columns)
    require_columns(str(file), names, found, [role for role in roles if role != "rating"])
    is_event = ending == ".inter"
    attributes = [_typed(name, type_) for name, type_ in zip(names, types, strict=True) if name not in found.values()]

    def shape(frame: pl.DataFrame) -> pl.DataFrame:
        if is_event:
            return compact(rename(frame.select(found.values()), found))
        typed = frame.with_columns(attributes)
        for name in names:
            unread = frame[name].filter(typed[name].is_null() & frame[name].is_not_null())
            notes.add(
                "numbers_that_cannot_be_read", len(unread), f"{file.name}: {name}: {unread[0] if len(unread) else ''}"
            )
        return rename(typed, found)

    raw = read_columns(table, names, shape, notes, has_header=True, quoting="none")
    unused = [name for name in names if name not in found.values()] if is_event else []
    return replace(raw, facts={**raw.facts, "columns": found, "unused": unused})


def _name_and_type(file: Path, field: str) -> tuple[str, str]:
    name, _, type_ = field.strip().rpartition(":")
    if not name or type_ not in _TYPES:
        raise DataError(f"{file} line 1: {field} is not NAME:TYPE, where TYPE is one of {', '.join(_TYPES)}")
    return name, type_


def _typed(name: str, type_: str) -> pl.Expr:
    column = pl.col(name)
    words = column.str.split(" ").list.eval(pl.element().filter(pl.element() != ""))
    match type_:
        case "float":
            return column.cast(pl.Float64, strict=False)
        case "token_seq":
            return words.fill_null([])
        case "float_seq":
            return words.cast(pl.List(pl.Float64), strict=False).fill_null([])
        case _:
            return column
