"""Which column of a file is the user, the item, the time, the rating, or the title.

In: the names in a file, and what `--columns` says. Out: a name for each role. Names are compared without case, blanks,
underscores and hyphens, so that `userId`, `User_ID` and `user_id` are equal; the order of columns means nothing.
"""

import re
from collections.abc import Mapping, Sequence

import polars as pl

from training.data.faults import DataError

EVENT_ROLES = ("user_id", "item_id", "timestamp")
ITEM_ROLES = ("item_id", "title")
QUERY_ROLES = (*EVENT_ROLES, "query")
# In the order of preference. A name that says nothing certain is in _WORDS, and is only offered.
_KNOWN = {
    "user_id": ("userid", "user", "uid", "reviewerid"),
    "item_id": ("itemid", "item", "iid", "movieid", "productid", "parentasin", "asin"),
    "timestamp": ("timestamp", "time", "datetime", "unixtime", "unixreviewtime"),
    "rating": ("rating", "value", "overall", "stars"),
    "title": ("title", "itemtitle", "movietitle", "producttitle"),
    "query": ("query",),
    "type": ("type", "eventtype", "event", "behavior", "behaviour", "action", "interactiontype"),
}
_WORDS = {
    "user_id": "user customer client member visitor account reviewer buyer reader person profile",
    "item_id": "item product sku movie book article song track game isbn asin stock content code",
    "timestamp": "time date when created ts at",
    "title": "title name label description product",
    "query": "query search text",
}
ColumnNames = Mapping[str, Sequence[str]]  # role -> names that the user gave with --columns


def parse_columns(text: str) -> dict[str, list[str]]:
    """`user_id=customer_id,item_id=sku` as role -> names. Raises DataError."""
    found: dict[str, list[str]] = {}
    for pair in filter(None, text.split(",")):
        role, equals, name = pair.partition("=")
        if not equals or not name.strip() or role.strip() not in _KNOWN:
            roles = ", ".join(_KNOWN)
            raise DataError(f"--columns {pair}: ROLE=NAME is expected, where ROLE is one of {roles}")
        found.setdefault(role.strip(), []).append(name.strip())
    return found


def find_columns(place: str, names: Sequence[str], roles: Sequence[str], given: ColumnNames) -> dict[str, str]:
    """Role -> name for those of `roles` that the file has. Raises DataError if several names fit one role."""
    named = [name for name in names if name]
    repeated = sorted({name for name in named if named.count(name) > 1})
    if repeated:
        raise DataError(f"{place}: two columns have the name {repeated[0]}; rename one")
    found = {}
    for role in roles:
        fitting = [name for name in given.get(role, ()) if name in named] or _known(role, named)
        if len(fitting) > 1:
            choice = f"--columns {role}={fitting[0]}"
            raise DataError(f"{place}: {' and '.join(fitting)} could both be {role}; choose one, such as {choice}")
        if fitting:
            found[role] = fitting[0]
    return found


def require_columns(place: str, names: Sequence[str], found: Mapping[str, str], roles: Sequence[str]) -> None:
    """Raises DataError that names what is missing and offers the most likely columns."""
    missing = [role for role in roles if role not in found]
    if missing:
        free = [name for name in names if name and name not in found.values()]
        offers = {role: _likely(role, free) for role in missing}
        offer = ",".join(f"{role}={name}" for role, name in offers.items() if name)
        advice = f"did you mean --columns {offer}" if offer else "rename it, or name it with --columns"
        found_names = ", ".join(filter(None, names)) or "nothing"
        raise DataError(f"{place}: column {', '.join(missing)} is missing (found: {found_names}); {advice}")


def with_roles(frame: pl.DataFrame, place: str, roles: Sequence[str], given: ColumnNames) -> pl.DataFrame:
    """`frame` with the names of roles; `roles`, and of events a rating and a type, are looked for. Raises DataError."""
    wanted = roles if "title" in roles else (*roles, "rating", *(("type",) if "query" not in roles else ()))
    found = find_columns(place, frame.columns, wanted, given)
    require_columns(place, frame.columns, found, roles)
    return rename(frame, found)


def rename(frame: pl.DataFrame, found: Mapping[str, str]) -> pl.DataFrame:
    """Columns get the names of their roles. Another column with such a name is left out."""
    replaced = [role for role, name in found.items() if role != name and role in frame.columns]
    return frame.drop(replaced).rename({name: role for role, name in found.items()})


def squashed(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _known(role: str, names: Sequence[str]) -> list[str]:
    """Names of the most preferred kind; several if they differ in case or underscores only."""
    if role in names:
        return [role]
    for known in _KNOWN[role]:
        if fitting := [name for name in names if squashed(name) == known]:
            return fitting
    return []


def _likely(role: str, names: Sequence[str]) -> str:
    for word in _WORDS.get(role, "").split():
        for name in names:
            if word in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", name.casefold()) or (
                len(word) > 3 and word in squashed(name)
            ):
                return name
    return ""
