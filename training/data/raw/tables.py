"""Text tables: a record per line, fields between separators, quotes as in RFC 4180 or as Spark writes them.

In: a `TextFile`. Out: a polars frame of text columns; an empty field is null. A file is read strictly: a quote that is
not closed, or text after a closing quote, is an error that names the line. polars splits the fields. Before it, regular
expressions find where records end, because polars does not notice wrong quotes. A line with a wrong number of fields is
left out and counted.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import polars as pl

from training.data.faults import DataError, Notes
from training.data.raw.text_files import TextFile

Quoting = Literal["doubled", "backslash", "none"]
Shape = Callable[[pl.DataFrame], pl.DataFrame]
SEPARATORS = (",", "\t", ";", "|", "\x01")
_MAX_RECORD_BYTES = 1 << 20
_RECORD_END = "\x1e"  # closes each record as a field of its own, so that a missing or additional field is seen
_DIRECTIVE = re.compile(r"sep=(.)", re.IGNORECASE)  # first line of files for Excel
_TWO_COLONS, _INSIDE = b"::", b"\x1f"  # polars takes separators of one byte


class Table(NamedTuple):
    """`broken_lines` have another number of fields than the first line; `first_broken` names the first of them."""

    frame: pl.DataFrame
    broken_lines: int
    first_broken: str


class _QuoteError(DataError):
    """`place` is the file and the line."""

    def __init__(self, place: str) -> None:
        super().__init__(f"{place}: a quote is not closed, or text follows a closing quote")
        self.place = place


@dataclass(frozen=True)
class TableFile:
    """`first` are the fields of the first line: names, unless the file has no header."""

    text: TextFile
    separator: str
    first: tuple[str, ...]
    skipped_lines: int = 0  # before `first`

    @classmethod
    def open(cls, text: TextFile) -> "TableFile":
        """Finds the separator by looking at the first line, where the most frequent candidate is it."""
        lines = next(text.pieces(progress=False), b"\n").split(b"\n")
        first = lines[0].decode()
        if directive := _DIRECTIVE.fullmatch(first.strip()):
            return cls(text, directive[1], _fields(lines[1].decode(), directive[1]), skipped_lines=1)
        if "::" in first:
            return cls.separated(text, "::")
        separator = max(SEPARATORS, key=lambda each: len(_fields(first, each)))
        return cls(text, separator, _fields(first, separator))

    @classmethod
    def separated(cls, text: TextFile, separator: str) -> "TableFile":
        """A file without quotes."""
        return cls(text, separator, tuple(text.first_line().split(separator)))

    def read(
        self, names: Sequence[str], shape: Shape, notes: Notes, *, has_header: bool, quoting: Quoting = "doubled"
    ) -> Table:
        """`names` are those of the columns from left to right. Raises DataError.

        `shape` makes the frame that is kept from the columns of a piece of the file; types may differ between pieces.
        If quotes are not well formed, they may be those of Spark, or a table between tabs may have none.
        """
        skipped = self.skipped_lines + has_header
        first_error: _QuoteError | None = None
        attempts: list[Quoting] = ["doubled", "backslash"] if quoting == "doubled" and self.separator != "::" else []
        if not attempts or self.separator == "\t":
            attempts.append("none")
        for attempt in attempts:
            reader = _Reader(self.text, self.separator, tuple(names), shape, attempt)
            try:
                table = reader.read(skipped)
            except _QuoteError as error:
                first_error = first_error or error
                continue
            if first_error is not None:
                kind = "quotes_are_escaped_by_backslashes" if attempt == "backslash" else "quotes_are_plain_characters"
                notes.add(kind, 1, first_error.place)
            return table
        assert first_error is not None
        raise first_error


@dataclass(frozen=True)
class _Reader:
    text: TextFile
    separator: str
    names: tuple[str, ...]
    shape: Shape
    quoting: Quoting

    def read(self, skipped: int) -> Table:
        frames = [self.shape(pl.DataFrame(schema=dict.fromkeys(self.names, pl.String)))]
        broken, first_broken = 0, ""
        for first_line, records in self._records(skipped):
            frame = self._split(records)
            end = frame[_RECORD_END]
            wrong = (end != _RECORD_END) | end.is_null()
            if wrong.any():
                is_blank = frame.to_series(0).is_null() & (frame.to_series(1) == _RECORD_END).fill_null(False)
                places = (wrong & ~is_blank).arg_true()
                broken += len(places)
                if len(places) and not first_broken:
                    first_broken = self._describe(
                        frame.row(places[0]), first_line + self._lines_before(records, places[0])
                    )
                frame = frame.filter(~wrong)
            texts = frame.drop(_RECORD_END)
            frames.append(self.shape(texts.with_columns(pl.when(pl.all() != "").then(pl.all()).name.keep())))
        return Table(pl.concat(frames, how="vertical_relaxed"), broken, first_broken)

    def _describe(self, row: tuple[str | None, ...], line: int) -> str:
        found = row.index(_RECORD_END) if _RECORD_END in row else f"more than {len(self.names)}"
        return f"{self.text.path.name} line {line}: {found} fields instead of {len(self.names)}"

    def _split(self, records: bytes) -> pl.DataFrame:
        separator = self.separator.encode()
        if separator == _TWO_COLONS:
            records, separator = records.replace(_TWO_COLONS, _INSIDE), _INSIDE
        end = separator + _RECORD_END.encode() + b"\n"
        has_line_breaks = self._has_quotes(records) and any(line.count(b'"') % 2 for line in records.split(b"\n"))
        marked = self._record.sub(rb"\1" + end, records) if has_line_breaks else records.replace(b"\n", end)
        frame = pl.read_csv(
            marked,
            has_header=False,
            separator=separator.decode(),
            quote_char=None if self.quoting == "none" else '"',
            schema=dict.fromkeys((*self.names, _RECORD_END), pl.String),
            truncate_ragged_lines=True,
            missing_columns="insert",
            extra_columns="ignore",
            raise_if_empty=False,
        )
        if separator + b" " in records or b" " + separator in records or b" \n" in records or b"\n " in records:
            return frame.with_columns(pl.all().str.strip_chars(" "))
        return frame

    def _records(self, skipped: int) -> Iterator[tuple[int, bytes]]:
        """Pieces that end where a record ends, with the number of their first line. Raises _QuoteError."""
        rest, line = b"", 1
        for piece in self.text.pieces():
            if line <= skipped:
                *_, piece = piece.split(b"\n", skipped)
                line += skipped
            piece = rest + piece
            records, rest = self._cut(piece)
            if len(rest) > _MAX_RECORD_BYTES:
                raise self._quote_error(line + piece.count(b"\n") - rest.count(b"\n"))
            yield line, records
            line += piece.count(b"\n") - rest.count(b"\n")
        if rest:
            raise self._quote_error(line)

    def _quote_error(self, line: int) -> _QuoteError:
        return _QuoteError(f"{self.text.path} line {line}")

    def _has_quotes(self, piece: bytes) -> bool:
        return self.quoting != "none" and b'"' in piece

    def _cut(self, piece: bytes) -> tuple[bytes, bytes]:
        """The well-formed records at the beginning, as RFC 4180 writes them, and the rest."""
        if not self._has_quotes(piece):
            return piece, b""
        strict, lenient = (pattern.match(piece) for pattern in self._patterns)
        assert strict and lenient
        records, rest = piece[: lenient.end()], piece[lenient.end() :]
        return (records if strict.end() == lenient.end() else self._field.sub(self._rewritten, records)), rest

    def _rewritten(self, match: re.Match[bytes]) -> bytes:
        """Without blanks around quotes, and with doubled quotes. A field that only contains quotes gets its own."""
        quoted, plain, end = match.groups()
        if quoted is not None:
            inner = quoted[1:-1]
            if self.quoting == "backslash":
                inner = re.sub(rb"\\(.)", rb"\1", inner, flags=re.DOTALL).replace(b'"', b'""')
            return b'"' + inner + b'"' + end
        return b'"' + plain.replace(b'"', b'""') + b'"' + end if b'"' in plain else plain + end

    @cached_property
    def _parts(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Regular expressions of the separator, a quoted field and a plain field, strict and lenient."""
        separator = re.escape(self.separator.encode())
        doubled, escaped = rb'"[^"]*+(?:""[^"]*+)*+"', rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
        quoted = escaped if self.quoting == "backslash" else doubled
        return separator, quoted, rb'[^"' + separator + rb"\n]*+", rb'(?! *+")[^' + separator + rb"\n]*+"

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
        """Any number of records: strict as in RFC 4180, and lenient: blanks around quotes, quotes in plain fields."""
        separator, quoted, strict, lenient = self._parts
        strict_field = rb"(?!)" if self.quoting == "backslash" else rb"(?:" + quoted + rb"|" + strict + rb")"
        fields = strict_field, rb"(?: *+" + quoted + rb" *+|" + lenient + rb")"
        first, second = (
            re.compile(rb"(?:%b(?:%b%b)*+\n)*+" % (field, separator, field), re.DOTALL) for field in fields
        )
        return first, second

    @cached_property
    def _field(self) -> re.Pattern[bytes]:
        separator, quoted, _, lenient = self._parts
        return re.compile(rb"(?: *+(%b) *+|(%b))(%b|\n)" % (quoted, lenient, separator), re.DOTALL)

    @cached_property
    def _record(self) -> re.Pattern[bytes]:
        """One record as RFC 4180 writes it, and its line end."""
        separator = self._parts[0]
        field = rb'(?:"[^"]*+(?:""[^"]*+)*+"|[^"' + separator + rb"\n]*+)"
        return re.compile(rb"(%b(?:%b%b)*+)\n" % (field, separator, field))

    def _lines_before(self, records: bytes, row: int) -> int:
        """Number of lines before the record number `row`, from 0."""
        if not self._has_quotes(records):
            return row
        ends = [match.end() for match, _ in zip(self._record.finditer(records), range(row), strict=False)]
        return records[: ends[-1]].count(b"\n") if ends else 0


def _fields(line: str, separator: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in next(csv.reader([line], delimiter=separator, skipinitialspace=True), []))
