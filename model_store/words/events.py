"""An event with words: what a user chose, when, and what the user had written for it."""

from typing import NamedTuple

DAY_S = 86_400


class WordEvent(NamedTuple):
    """`row` of the catalogue. `query` is "" where the user wrote nothing. Events are equal if their ids are equal."""

    event_id: str
    row: int
    timestamp: int  # s
    query: str = ""
