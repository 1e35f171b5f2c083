"""What is wrong with raw data: an error, or a note about what was changed or left out."""

from collections.abc import Iterator
from dataclasses import dataclass, field

_EXAMPLE_LENGTH = 200


class DataError(Exception):
    """The user's data is wrong. The message says where, what, how many rows, and what to do."""


@dataclass(frozen=True)
class Note:
    """`what` happened `count` times; `first` is the first example."""

    what: str
    count: int
    first: str

    def __str__(self) -> str:
        return f"{self.what.replace('_', ' ')}: {self.count}, the first: {self.first}"


@dataclass
class Notes:
    """What was changed or left out on the way from raw files to a data set, in the order of its discovery."""

    _notes: dict[str, Note] = field(default_factory=dict)

    def add(self, what: str, count: int, first: object) -> None:
        """Adds to the count of an earlier note of the same kind, which keeps its example. A count of 0 is no note."""
        if count:
            earlier = self._notes.get(what, Note(what, 0, one_line(first)))
            self._notes[what] = Note(what, earlier.count + count, earlier.first)

    def __iter__(self) -> Iterator[Note]:
        return iter(self._notes.values())


def one_line(value: object) -> str:
    """At most 200 characters, without line breaks."""
    text = str(value).encode(errors="replace").decode()
    text = " ".join(text.split())
    return text if len(text) <= _EXAMPLE_LENGTH else text[: _EXAMPLE_LENGTH - 1] + "…"
