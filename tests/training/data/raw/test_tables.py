"""What Python's csv module writes is read back, whatever the separator, the quotes, and the pieces of the file."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.faults import DataError, Notes
from training.data.raw import text_files
from training.data.raw.tables import SEPARATORS, Table, TableFile
from training.data.raw.text_files import TextFile

NAMES = ["a", "b", "c"]
fields = st.text(st.sampled_from([*',;|\t"\n \\', "x", "1", "é", "€"]), max_size=6).map(str.strip)
rows_strategy = st.lists(st.tuples(fields, fields, fields), min_size=1, max_size=8)
ways = st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
separators, line_ends, blocks = (
    st.sampled_from(SEPARATORS[:4]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([16, 1 << 24]),
)


def read(path: Path, content: bytes, notes: Notes | None = None) -> Table:
    notes = Notes() if notes is None else notes
    path.write_bytes(content)
    table = TableFile.open(TextFile.open(path, None, notes))
    return table.read(table.first, lambda frame: frame, notes, has_header=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables") / "table.csv"


@given(st.tuples(rows_strategy, separators, ways, line_ends, blocks))
def test_what_was_written_is_read(path: Path, drawn: Any) -> None:
    rows, separator, quoting, line_end, block = drawn
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=line_end, quoting=quoting)
    writer.writerows([NAMES, *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block)
        table = read(path, text.getvalue().encode())
    assert (table.frame.rows(), table.broken_lines) == ([tuple(field or None for field in row) for row in rows], 0)


@given(
    st.lists(st.lists(st.sampled_from(["x", ",", "\n", "\\", "é"])).map("y".join), min_size=1, max_size=4), separators
)
def test_what_spark_wrote_is_read(path: Path, words: list[str], separator: str) -> None:
    """Quotes stand between letters: next to an end or a separator, a backslash and a quote can mean two things."""
    field = 'a"b'.join([*words, "end"])
    escaped = field.replace("\\", r"\\").replace('"', r"\"")
    table = read(path, f'name{separator}other\n"{escaped}"{separator}1\n'.encode())
    assert table.frame.rows() == [(field, "1")]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.sampled_from([8, 1 << 24]))
def test_lines_with_another_number_of_fields_are_counted(path: Path, counts: list[int], block: int) -> None:
    lines = ["a,b,c", *(",".join(["x"] * count) for count in counts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block)
        table = read(path, "\n".join(lines).encode())
    wrong = [line for line, count in enumerate(counts, start=2) if count != 3]
    assert (table.frame.height, table.broken_lines) == (counts.count(3), len(wrong))
    assert table.first_broken.startswith(f"table.csv line {wrong[0]}: " if wrong else "")


@given(st.lists(st.text("xyé ,", min_size=1).map("x".__add__), min_size=1, max_size=8), st.integers(0, 7))
def test_a_quote_that_is_not_closed_names_its_line(path: Path, titles: list[str], place: int) -> None:
    lines = ['"a","b"', *(f'"i","{title}"' for title in titles)]
    place = 1 + place % len(titles)
    lines[place] = lines[place].removesuffix('"')
    with pytest.raises(DataError, match=rf"line {place + 1}: a quote is not closed"):
        read(path, "\n".join(lines).encode())


def test_the_line_of_a_broken_record_counts_line_breaks_in_fields(path: Path) -> None:
    table = read(path, b'a,b\n1,"x\ny"\n\n2\n3,4\n')
    assert table.first_broken == "table.csv line 5: 1 fields instead of 2"
    assert table.frame.rows() == [("1", "x\ny"), ("3", "4")]


def test_a_quote_cannot_swallow_the_rest_of_a_long_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused when it is longer than any record, before the rest of the file is in memory."""
    monkeypatch.setattr("training.data.raw.tables._MAX_RECORD_BYTES", 50)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 20)
    with pytest.raises(DataError, match=r"line 3: a quote is not closed"):
        read(path, b'a,b\n1,2\n3,"4\n' + b"5,6\n" * 1000 + b'"\n')


def test_a_table_between_tabs_may_have_quotes_that_mean_nothing(path: Path) -> None:
    notes = Notes()
    table = read(path, b'a\tb\n1\t"Quoted" word\n2\t"open\n', notes)
    assert table.frame.rows() == [("1", '"Quoted" word'), ("2", '"open')]
    assert [note.what for note in notes] == ["quotes_are_plain_characters"]
